"""One-shot cooperative games of continuous actions."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from torchrl.data import Bounded

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas

Payoff = Callable[[torch.Tensor], torch.Tensor]


def two_quadratics(actions: torch.Tensor) -> torch.Tensor:
    r"""The maximum of two quadratics: a broad local optimum of 0 and a narrow global one of 10.

    With :math:`x_i = 10 a_i`: :math:`\max(-0.8 \sum_i (x_i + 5)^2 / 9,\, 10 - \sum_i (x_i - 5)^2)`.
    The game of Wei, Wicke, Freelan and Luke (`arXiv 1804.09817
    <https://arxiv.org/abs/1804.09817>`_), for any number of agents.

    Args:
        actions (Tensor): ``[*B, n_agents, A]``, in [-1, 1].

    Returns:
        Tensor: payoffs ``[*B]``.

    Examples:
        >>> two_quadratics(torch.tensor([[[0.5], [0.5]], [[-0.5], [-0.5]]])).tolist()
        [10.0, 0.0]
    """
    x = 10 * actions
    local = 0.0 - 0.8 * ((x + 5) / 3).square().sum((-2, -1))
    return torch.maximum(local, 10.0 - (x - 5).square().sum((-2, -1)))


class SmoothMatrixGame:
    r"""A matrix game whose actions are places on the interval [-1, 1].

    Action :math:`k` of :math:`K` is at :math:`c_k = -1 + (2 k + 1) / K`, with the weight
    :math:`w_k(a) = \exp(-(a - c_k)^2 / 2 \sigma^2)` at place :math:`a`, where :math:`\sigma` is
    ``width`` times the distance of two places. The payoff is the sum over all joint actions of
    their payoff times the agents' weights. With a small width it is the matrix game's payoff at the
    places, and 0 far from all.

    Args:
        payoff (Tensor): ``[K_1, ..., K_n]``, one axis of actions per agent.

    Keyword Args:
        width (float): width of the weights.

    Raises:
        ValueError: for a width that is not positive, or actions of another shape.

    Examples:
        >>> from torchrl_agentmixer.envs import penalty
        >>> game = SmoothMatrixGame(penalty(-25.0))
        >>> place = 2 / 3
        >>> game(torch.tensor([[[-place], [place]], [[place], [place]]])).round().tolist()
        [10.0, -25.0]
    """

    def __init__(self, payoff: torch.Tensor, *, width: float = 0.2) -> None:
        if not width > 0:
            raise ValueError(f"SmoothMatrixGame: expected `width` > 0, got {width}.")
        self.payoff, self.width = torch.as_tensor(payoff, dtype=torch.float32), width

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        """Payoffs ``[*B]`` of actions ``[*B, n_agents, 1]``."""
        if actions.shape[-2:] != (self.payoff.ndim, 1):
            raise ValueError(
                f"SmoothMatrixGame: expected actions [*B, {self.payoff.ndim}, 1] of "
                f"{self.payoff.ndim} agents, got actions of {actions.shape[-2]}, shape "
                f"{tuple(actions.shape)}."
            )
        agents = ascii_lowercase[: self.payoff.ndim]
        weights = []
        for i, count in enumerate(self.payoff.shape):
            places = (2 * torch.arange(count, device=actions.device) + 1) / count - 1
            distance = (actions[..., i, :] - places) / (self.width * 2 / count)  # [*B, K_i]
            weights.append((-distance.square() / 2).exp())
        subscripts = ",".join(f"...{axis}" for axis in agents)
        return torch.einsum(f"{agents},{subscripts}->...", self.payoff.to(actions.device), *weights)


class ContinuousGameEnv(TeamEnv):
    """A one-step game of continuous actions with team reward ``payoff(actions)``.

    Actions ``[*B, n, action_dim]`` are in [-1, 1]. Observation ``[*B, n, 1]`` and state ``[*B, 1]``
    are the constant 1. Every episode terminates after one step.

    Args:
        payoff (callable): maps actions ``[num_envs, n_agents, action_dim]`` to payoffs
            ``[num_envs]``: :func:`two_quadratics`, :class:`SmoothMatrixGame` or your own.

    Keyword Args:
        n_agents (int): number of agents.
        action_dim (int): action dimensions of one agent.
        num_envs, device, seed: as :class:`~torchrl_agentmixer.envs.TeamEnv`.

    Raises:
        ValueError: for less than one agent or action dimension, or payoffs of another shape.

    Examples:
        >>> env = ContinuousGameEnv(two_quadratics, num_envs=4)
        >>> env.rollout(1)["agents", "action"].shape
        torch.Size([4, 1, 2, 1])
    """

    def __init__(
        self,
        payoff: Payoff,
        *,
        n_agents: int = 2,
        action_dim: int = 1,
        num_envs: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        check_at_least("ContinuousGameEnv", 1, n_agents=n_agents, action_dim=action_dim)
        action = Bounded(-1.0, 1.0, (action_dim,))
        super().__init__(n_agents, action, 1, 1, num_envs=num_envs, device=device, seed=seed)
        self.payoff = payoff
        shape = tuple(payoff(torch.zeros(num_envs, n_agents, action_dim, device=self.device)).shape)
        if shape != (num_envs,):
            raise ValueError(
                f"ContinuousGameEnv: expected `payoff` to return [{num_envs}] for actions "
                f"[{num_envs}, {n_agents}, {action_dim}], got shape {shape}."
            )

        self._played = torch.zeros(num_envs, n_agents, action_dim, device=self.device)
        self._over = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def _reset_where(self, mask: torch.Tensor) -> None:
        self._over = self._over & ~mask

    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._played = actions.clamp(-1, 1)
        self._over = torch.ones_like(self._over)
        return self.payoff(self._played), self._over, ~self._over

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        ones = torch.ones(*self.batch_size, self.n_agents, 1, device=self.device)
        return ones, ones[:, 0].clone()

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of the first dimension of each agent's action, ``[H, W, 3]``, uint8."""
        width, row = 240, 24
        bottom = max(self.n_agents * row, 60)
        canvas = Canvas(width, bottom + 24)
        for i in range(self.n_agents):
            canvas.box((10, i * row + 11, width - 10, i * row + 13), fill=(200, 200, 200))
        if not self._over[env_index]:
            canvas.text((4, bottom + 4), "step 0")
            return canvas.image()
        for i, place in enumerate(self._played[env_index, :, 0].tolist()):
            x = int(width / 2 + place * (width / 2 - 10))
            canvas.box((x - 4, i * row + 6, x + 4, i * row + 18), fill=(60, 110, 190))
        canvas.caption(bottom + 4, 1, self.payoff(self._played)[env_index])
        return canvas.image()
