"""The paper's 5x5 predator-prey grid, batched in torch."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas

# Rows and columns moved by each action: down, left, up, right, stay.
MOVES = ((1, 0), (0, -1), (-1, 0), (0, 1), (0, 0))
_STAY = len(MOVES) - 1


class PredatorPreyGridEnv(TeamEnv):
    """Predators must stand next to a prey together; one alone pays a penalty.

    The grid of AgentMixer's appendix (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_),
    after the predator-prey task of DICG (`arXiv 2006.11438 <https://arxiv.org/abs/2006.11438>`_).
    In one step the predators move in order, each into a free cell or not at all. Then every living
    prey counts the predators next to it (not diagonally): two or more catch it for
    ``capture_reward``; exactly one costs ``penalty``. A prey that lives on draws a move, up to five
    times until it is one that leads next to no predator, else it stays; a move into a wall or an
    occupied cell stays. Every step costs ``step_cost``; all rewards are the team's, not one for
    each agent. The episode terminates when no prey is left, and is truncated after ``max_steps``.

    An agent observes its own row and column, the prey in a square ``view`` around it, and the time:
    ``[row, column, view * view cells, time]``, all in [0, 1]. The state holds the positions of all
    predators and prey, which prey are alive, and the time.

    Args:
        num_envs (int): environments in the batch.

    Keyword Args:
        grid_size (int): cells of a side.
        n_predators (int): agents.
        n_prey (int): prey.
        penalty (float): team reward when exactly one predator is next to a prey; the paper's P.
        capture_reward (float): team reward of a catch.
        step_cost (float): team cost of every step.
        max_steps (int): time limit, in steps.
        view (int): side of the square an agent sees, odd, in cells.
        prey_move_probs (tuple of float): of down, left, up, right, stay.
        device (optional): where the environments live.
        seed (int, optional): of the environment's generator.

    Raises:
        ValueError: for sizes that do not fit, or probabilities that do not sum to 1.

    Examples:
        >>> env = PredatorPreyGridEnv(num_envs=4, penalty=-1.0, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["state"].shape
        (torch.Size([4, 3, 2, 28]), torch.Size([4, 3, 8]))
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        grid_size: int = 5,
        n_predators: int = 2,
        n_prey: int = 1,
        penalty: float = 0.0,
        capture_reward: float = 10.0,
        step_cost: float = 0.01,
        max_steps: int = 128,
        view: int = 5,
        prey_move_probs: tuple[float, ...] = (0.175, 0.175, 0.175, 0.175, 0.3),
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        for name, value in (
            ("n_predators", n_predators),
            ("n_prey", n_prey),
            ("max_steps", max_steps),
        ):
            if value < 1:
                raise ValueError(f"PredatorPreyGridEnv: expected `{name}` >= 1, got {value}.")
        if grid_size < 2 or n_predators + n_prey > grid_size**2:
            raise ValueError(
                f"PredatorPreyGridEnv: expected a grid with room for {n_predators} predators and "
                f"{n_prey} prey, got `grid_size` {grid_size}."
            )
        if view < 1 or view % 2 == 0:
            raise ValueError(f"PredatorPreyGridEnv: expected an odd `view` >= 1, got {view}.")
        if len(prey_move_probs) != len(MOVES) or abs(sum(prey_move_probs) - 1) > 1e-6:
            raise ValueError(
                "PredatorPreyGridEnv: expected five `prey_move_probs` (down, left, up, right, stay) "
                f"that sum to 1, got {prey_move_probs}."
            )
        self.grid_size = grid_size
        self.n_prey = n_prey
        self.penalty = penalty
        self.capture_reward = capture_reward
        self.step_cost = step_cost
        self.max_steps = max_steps
        self.view = view
        super().__init__(
            n_predators,
            len(MOVES),
            view * view + 3,
            2 * n_predators + 3 * n_prey + 1,
            num_envs=num_envs,
            device=device,
            seed=seed,
        )
        options = {"device": self.device}
        self._moves = torch.tensor(MOVES, **options)
        self._move_cdf = torch.tensor(prey_move_probs, **options).cumsum(0)[:-1]
        self._predators = torch.zeros(num_envs, n_predators, 2, dtype=torch.int64, **options)
        self._prey = torch.zeros(num_envs, n_prey, 2, dtype=torch.int64, **options)
        self._alive = torch.zeros(num_envs, n_prey, dtype=torch.bool, **options)
        self._time = torch.zeros(num_envs, dtype=torch.int64, **options)
        self._reward = torch.zeros(num_envs, **options)
        cells = torch.arange(grid_size**2, **options)
        self._cells = torch.stack([cells // grid_size, cells % grid_size], -1)

    # -- dynamics ---------------------------------------------------------------------------------

    def _reset_where(self, mask: torch.Tensor) -> None:
        predators, prey = self._start_positions()
        pair = mask[:, None, None]
        self._predators = torch.where(pair, predators, self._predators)
        self._prey = torch.where(pair, prey, self._prey)
        self._alive = mask[:, None] | self._alive
        self._time = torch.where(mask, 0, self._time)
        self._reward = torch.where(mask, 0.0, self._reward)

    def _start_positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct random cells; prey next to no predator where the grid allows it."""
        n = self.n_agents
        order = self._rand(*self.batch_size, len(self._cells))
        chosen = order.topk(n, dim=-1).indices  # [N, n]
        predators = self._cells[chosen]
        near = self._distance(self._cells.expand(*self.batch_size, -1, -1), predators)  # [N, C, n]
        # A random number for each cell, lowered by 1 next to a predator and by 3 where one stands.
        rank = self._rand(*self.batch_size, len(self._cells))
        rank = rank - (near == 1).any(-1).float() - 3.0 * (near == 0).any(-1).float()
        return predators, self._cells[rank.topk(self.n_prey, dim=-1).indices]

    def _advance(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        targets = self._predators + self._moves[actions]  # each moves once, so these are fixed
        for i in range(self.n_agents):
            self._predators = self._move(self._predators, i, targets[:, i])
        reward = torch.full_like(self._reward, -self.step_cost)
        draws = self._draw_prey_moves()  # [N, prey, tries]
        for j in range(self.n_prey):
            near = (self._distance(self._prey[:, j : j + 1], self._predators) == 1).sum((-1, -2))
            caught = self._alive[:, j] & (near >= 2)
            lone = self._alive[:, j] & (near == 1)
            reward = reward + self.capture_reward * caught + self.penalty * lone
            self._alive = self._set(self._alive, j, self._alive[:, j] & ~caught)
            step = self._moves[self._first_safe(j, draws[:, j])]
            target = self._prey[:, j] + step * self._alive[:, j, None]
            self._prey = self._move(self._prey, j, target)
        self._time = self._time + 1
        self._reward = reward
        return reward, ~self._alive.any(-1), self._time >= self.max_steps

    def _draw_prey_moves(self, tries: int = 5) -> torch.Tensor:
        u = self._rand(*self.batch_size, self.n_prey, tries)
        return torch.bucketize(u, self._move_cdf, right=True)

    def _first_safe(self, j: int, draws: torch.Tensor) -> torch.Tensor:
        """The first of the drawn moves that leads next to no predator; else stay. ``[N]``"""
        targets = self._prey[:, j : j + 1] + self._moves[draws]  # [N, tries, 2]
        safe = (self._distance(targets, self._predators) != 1).all(-1)
        first = safe.long().argmax(-1, keepdim=True)
        return torch.where(safe.any(-1), draws.gather(-1, first).squeeze(-1), _STAY)

    def _move(self, group: torch.Tensor, i: int, target: torch.Tensor) -> torch.Tensor:
        """``group`` with its member ``i`` on ``target`` where that cell is free. ``[N, m, 2]``"""
        inside = ((target >= 0) & (target < self.grid_size)).all(-1)
        point = target[:, None]
        predator_there = (self._distance(point, self._predators) == 0).any((-1, -2))
        prey_there = ((self._distance(point, self._prey) == 0) & self._alive[:, None]).any((-1, -2))
        free = inside & ~predator_there & ~prey_there
        return self._set(group, i, torch.where(free[:, None], target, group[:, i]))

    @staticmethod
    def _set(group: torch.Tensor, i: int, value: torch.Tensor) -> torch.Tensor:
        group = group.clone()
        group[:, i] = value
        return group

    @staticmethod
    def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Steps between ``[N, m, 2]`` and ``[N, k, 2]``: ``[N, m, k]``."""
        return (a[:, :, None] - b[:, None]).abs().sum(-1)

    # -- observation and picture ------------------------------------------------------------------

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        n, half = self.n_agents, self.view // 2
        offset = self._prey[:, None] - self._predators[:, :, None] + half  # [N, n, prey, 2]
        seen = ((offset >= 0) & (offset < self.view)).all(-1) & self._alive[:, None]
        index = (offset[..., 0] * self.view + offset[..., 1]).clamp(0, self.view**2 - 1)
        window = torch.zeros(*self.batch_size, n, self.view**2, device=self.device)
        window = window.scatter_reduce(-1, index, seen.float(), "amax")
        position = self._predators / (self.grid_size - 1)
        time = (self._time / self.max_steps)[:, None]
        observation = torch.cat([position, window, time[:, None].expand(-1, n, 1)], -1)
        prey = self._prey / (self.grid_size - 1)
        state = torch.cat(
            [position.flatten(1), prey.flatten(1), self._alive.float(), time], -1
        )
        return observation, state

    def render(self, env_index: int = 0, **kwargs) -> np.ndarray:
        """Predators (numbered), living prey (red), time and last team reward: ``[H, W, 3]``."""
        cell = 48
        size = self.grid_size * cell
        canvas = Canvas(size, size + 20)
        for row in range(self.grid_size):
            for column in range(self.grid_size):
                box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
                canvas.box(box, fill=(246, 246, 240), outline=(215, 215, 205))
        for i, (row, column) in enumerate(self._predators[env_index].tolist()):
            center = ((column + 0.5) * cell, (row + 0.5) * cell)
            canvas.disc(center, 0.38 * cell, fill=(60, 110, 190))
            canvas.text((center[0] - 3, center[1] - 6), str(i), fill=(255, 255, 255))
        for (row, column), alive in zip(
            self._prey[env_index].tolist(), self._alive[env_index].tolist(), strict=True
        ):
            if alive:
                canvas.disc(((column + 0.5) * cell, (row + 0.5) * cell), 0.28 * cell, (205, 60, 50))
        time, reward = int(self._time[env_index]), float(self._reward[env_index])
        canvas.text((4, size + 4), f"step {time}   team reward {reward:+.2f}")
        return canvas.image()
