"""One-shot cooperative games given by a payoff tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas


def climbing() -> torch.Tensor:
    """Payoffs of the climbing game: the optimum, 11, is next to a penalty of -30.

    Claus and Boutilier, 1998, with the payoffs of AgentMixer's appendix
    (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Examples:
        >>> climbing().max().item()
        11.0
    """
    return torch.tensor([[0.0, 6.0, 5.0], [-30.0, 7.0, 0.0], [11.0, -30.0, 0.0]])


def climbing_spread(kind: str) -> torch.Tensor:
    """Half the distance of the two payoffs of each joint action in a stochastic climbing game.

    The means are those of :func:`climbing`. A method that prefers lucky joint actions settles at
    (b, b), worth 7 in the mean. ``"partial"`` and ``"full"`` are after Kapetanakis and Kudenko,
    AAAI 2002.

    Args:
        kind (str): ``"partial"``: (b, b) pays 14 or 0, everything else its mean; ``"full"``: every
            joint action pays one of two payoffs; ``"noisy"``: each joint action of b and c pays its
            mean plus or minus 20, so (b, b) often pays 27.

    Raises:
        ValueError: for an unknown kind.

    Examples:
        >>> mean, spread = climbing(), climbing_spread("partial")
        >>> (mean - spread)[1, 1].item(), (mean + spread)[1, 1].item()
        (0.0, 14.0)
    """
    check_known("kind of stochastic climbing game", [kind], ("partial", "full", "noisy"))
    if kind == "noisy":
        return torch.tensor([[0.0, 0.0, 0.0], [0.0, 20.0, 20.0], [0.0, 20.0, 20.0]])
    if kind == "partial":
        return torch.tensor([[0.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]])
    return torch.tensor([[8.0, 6.0, 5.0], [35.0, 7.0, 5.0], [1.0, 35.0, 5.0]])


def penalty(k: float = -25.0) -> torch.Tensor:
    """Payoffs of the penalty game: two optima of 10, ``k`` for miscoordination, 2 for safety.

    Claus and Boutilier, 1998, with the payoffs of AgentMixer's appendix
    (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Args:
        k (float): payoff of a miscoordination.

    Examples:
        >>> penalty(-100.0).min().item()
        -100.0
    """
    return torch.tensor([[float(k), 0.0, 10.0], [0.0, 2.0, 0.0], [10.0, 0.0, float(k)]])


def stag_hunt(n_agents: int = 4, *, stag: float = 10.0, alone: float = -5.0) -> torch.Tensor:
    """Payoffs of the team stag hunt: each agent hunts the stag (action 0) or a hare (1).

    Each hare pays 1. The team payoff is ``stag`` if all agents hunt the stag; otherwise each of
    its hunters pays ``alone``. Agents that explore at random learn to hunt hares.

    Args:
        n_agents (int): number of agents.

    Keyword Args:
        stag (float): team payoff if all agents hunt the stag.
        alone (float): payoff per hunter of the stag if some agents do not hunt it.

    Examples:
        >>> stag_hunt(2).tolist()
        [[10.0, -4.0], [-4.0, 2.0]]
    """
    hunters = n_agents - torch.stack(
        torch.meshgrid([torch.arange(2)] * n_agents, indexing="ij")
    ).sum(0)
    payoff = hunters * alone + (n_agents - hunters)
    return torch.where(hunters == n_agents, stag, payoff)


class MatrixGameEnv(TeamEnv):
    """A one-step game of any number of agents with team reward ``payoff[a_1, ..., a_n]``.

    With a ``spread``, each environment is paid the payoff plus or minus the spread by a fair coin.
    Observation ``[*B, n, 1]`` and state ``[*B, 1]`` are the constant 1. Every episode
    terminates after one step. Agents with different numbers of actions get an ``action_mask``.

    Args:
        payoff (Tensor): ``[K_1, ..., K_n]``, one axis of actions per agent.

    Keyword Args:
        spread (float or Tensor): a number, or a tensor of the shape of ``payoff``.
        num_envs, device, seed: as :class:`~torchrl_agentmixer.envs.TeamEnv`.

    Raises:
        ValueError: for a payoff without axes or entries, a spread of another shape, or NaN or
            infinity in either.

    Examples:
        >>> env = MatrixGameEnv(climbing(), num_envs=2)
        >>> step = env.rollout(1)
        >>> step["agents", "action"].shape, step["next", "reward"].shape
        (torch.Size([2, 1, 2]), torch.Size([2, 1, 1]))
    """

    def __init__(
        self,
        payoff: torch.Tensor,
        *,
        spread: float | torch.Tensor = 0.0,
        num_envs: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        payoff = torch.as_tensor(payoff, dtype=torch.float32)
        if payoff.ndim < 1 or payoff.numel() == 0:
            raise ValueError(
                "MatrixGameEnv: expected `payoff` with one axis of actions per agent, "
                f"[K_1, ..., K_n], got shape {tuple(payoff.shape)}."
            )
        spread = torch.as_tensor(spread, dtype=torch.float32)
        if spread.ndim and spread.shape != payoff.shape:
            raise ValueError(
                "MatrixGameEnv: expected `spread` as a number or with the shape of `payoff`, "
                f"{tuple(payoff.shape)}, got shape {tuple(spread.shape)}."
            )
        for name, value in {"payoff": payoff, "spread": spread}.items():
            if not value.isfinite().all():
                worst = value[~value.isfinite()][0].item()
                raise ValueError(f"MatrixGameEnv: expected a finite `{name}`, got {worst} in it.")
        super().__init__(
            payoff.ndim, tuple(payoff.shape), 1, 1, num_envs=num_envs, device=device, seed=seed
        )
        self.payoff = payoff.to(self.device)
        self._stochastic = bool(spread.any())
        self.spread = spread.expand_as(payoff).to(self.device)
        self._played = torch.full((num_envs, payoff.ndim), -1, device=self.device)

    def _reset_where(self, mask: torch.Tensor) -> None:
        self._played = torch.where(mask.unsqueeze(-1), -1, self._played)

    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._played = actions
        joint = tuple(actions.unbind(-1))
        reward = self.payoff[joint]
        if self._stochastic:
            heads = self._rand(*self.batch_size) < 0.5
            reward = reward + torch.where(heads, -1, 1) * self.spread[joint]
        terminated = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        return reward, terminated, ~terminated

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones(*self.batch_size, self.n_agents, 1, device=self.device)
        return ones, ones[:, 0].clone()

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of the mean payoffs and the joint action that was taken, ``[H, W, 3]``, uint8.

        With more than two agents, payoffs of the first two, given the others' actions.
        """
        played = self._played[env_index].tolist()
        table = self.payoff.cpu()[(..., *(max(action, 0) for action in played[2:]))]
        table = table.reshape(len(table), -1)  # [K_1, K_2 or 1]
        cell, (rows, columns) = 56, table.shape
        height = rows * cell
        canvas = Canvas(max(columns * cell, 230), height + 36)
        low, high = float(self.payoff.min()), float(self.payoff.max())
        for row in range(rows):
            for column in range(columns):
                share = (float(table[row, column]) - low) / max(high - low, 1e-9)
                left, top = column * cell, row * cell
                canvas.box(
                    (left + 2, top + 2, left + cell - 2, top + cell - 2),
                    fill=(int(235 - 140 * share), int(235 - 40 * share), 235),
                    outline=(200, 30, 30) if [row, column][: self.n_agents] == played[:2] else None,
                )
                canvas.text((left + 14, top + 20), f"{float(table[row, column]):.3g}")
        if played[0] < 0:
            canvas.text((4, height + 4), "step 0")
        else:
            canvas.caption(height, 1, self.payoff[tuple(played)])
            canvas.text((4, height + 20), f"joint action {played}")
        return canvas.image()
