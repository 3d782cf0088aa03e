"""One-shot cooperative games given by a payoff tensor."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas


def climbing() -> torch.Tensor:
    """Payoffs of the climbing game: optimum 11, reached past a penalty of -30.

    Claus and Boutilier, 1998, with the payoffs of AgentMixer's appendix
    (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Examples:
        >>> climbing().max().item()
        11.0
    """
    return torch.tensor([[0.0, 6.0, 5.0], [-30.0, 7.0, 0.0], [11.0, -30.0, 0.0]])


def penalty(k: float = -25.0) -> torch.Tensor:
    """Payoffs of the penalty game: two optima worth 10, ``k`` for mixing them up, 2 for playing safe.

    Args:
        k (float): payoff of a miscoordination.

    Examples:
        >>> penalty(-100.0).min().item()
        -100.0
    """
    return torch.tensor([[float(k), 0.0, 10.0], [0.0, 2.0, 0.0], [10.0, 0.0, float(k)]])


class MatrixGameEnv(TeamEnv):
    """A one-step game for any number of agents, who all receive ``payoff[a_1, ..., a_n]``.

    Observation and state are a constant one. Every episode lasts one step and terminates.

    Args:
        payoff (Tensor): ``[K, ..., K]``, one axis of ``K`` actions for each agent.

    Keyword Args:
        num_envs (int): games played at once.
        device (optional): where they live.
        seed (int, optional): accepted for symmetry; the game draws nothing.

    Raises:
        ValueError: for a payoff without axes, with axes of different lengths, or not finite.

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
        num_envs: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        payoff = torch.as_tensor(payoff, dtype=torch.float32)
        if payoff.ndim < 1 or len(set(payoff.shape)) > 1 or payoff.numel() == 0:
            raise ValueError(
                "MatrixGameEnv: expected a payoff with one axis of K actions for each agent "
                f"[K, ..., K], got shape {tuple(payoff.shape)}."
            )
        if not payoff.isfinite().all():
            raise ValueError("MatrixGameEnv: expected finite payoffs.")
        super().__init__(
            payoff.ndim, payoff.shape[0], 1, 1, num_envs=num_envs, device=device, seed=seed
        )
        self.payoff = payoff.to(self.device)
        self._played = torch.full((num_envs, payoff.ndim), -1, device=self.device)

    def _reset_where(self, mask: torch.Tensor) -> None:
        self._played = torch.where(mask.unsqueeze(-1), -1, self._played)

    def _advance(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._played = actions
        terminated = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        return self.payoff[tuple(actions.unbind(-1))], terminated, ~terminated

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones(*self.batch_size, self.n_agents, 1, device=self.device)
        return ones, ones[:, 0].clone()

    def render(self, env_index: int = 0, **kwargs) -> np.ndarray:
        """The payoffs of the first two agents' actions, the joint action marked: ``[H, W, 3]``."""
        played = self._played[env_index].tolist()
        others = tuple(max(action, 0) for action in played[2:])
        table = self.payoff.cpu().reshape(self.payoff.shape + (1,) * (2 - min(2, self.n_agents)))
        table = table[(slice(None), slice(None), *others)]
        cell, rows, columns = 56, *table.shape
        canvas = Canvas(columns * cell, rows * cell + 24)
        low, high = float(self.payoff.min()), float(self.payoff.max())
        for row in range(rows):
            for column in range(columns):
                value = float(table[row, column])
                share = (value - low) / max(high - low, 1e-9)
                color = (int(235 - 140 * share), int(235 - 40 * share), 235)
                chosen = [row, column][: self.n_agents] == played[:2]
                canvas.box(
                    (column * cell + 2, row * cell + 2, (column + 1) * cell - 2, (row + 1) * cell - 2),
                    fill=color,
                    outline=(200, 30, 30) if chosen else None,
                )
                canvas.text((column * cell + 14, row * cell + 20), f"{value:g}")
        canvas.text((4, rows * cell + 6), f"joint action {played}")
        return canvas.image()
