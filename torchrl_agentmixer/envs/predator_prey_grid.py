"""The paper's 5x5 predator-prey grid, batched in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torchrl_agentmixer._choices import check_at_least, check_values
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas

# Row and column offsets of the actions down, left, up, right, stay.
MOVES = ((1, 0), (0, -1), (-1, 0), (0, 1), (0, 0))
# Moves that a prey samples before it stays.
TRIES = 5
# The cell of a captured prey: a corner of the wall, which is never reached or seen.
_GONE = 0


class PredatorPreyGridEnv(TeamEnv):
    """Predator-prey on a grid: a capture takes several predators, and fewer pay a penalty.

    The grid of AgentMixer's appendix (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_),
    after the predator-prey task of DICG (`arXiv 2006.11438 <https://arxiv.org/abs/2006.11438>`_).
    In one step the predators move in order, each into a free cell or not at all. Then each living
    prey counts the predators in the four cells next to it: ``capture_size`` or more capture it for
    ``capture_reward``; fewer, but not none, cost ``penalty``. A living prey then samples a move,
    up to five times, until the move leads next to no predator; otherwise it stays. A move into a
    wall or an occupied cell has no effect. Every step costs ``step_cost``. All rewards are team
    rewards. The episode terminates when no prey is left, and is truncated after ``max_steps``.

    An agent observes ``[row, column, view * view cells, time]``, all in [0, 1]: its position, a 1
    for each cell with a living prey in the square around it, and the share of ``max_steps`` that
    has passed. The state is ``[view * view cells of each predator, row, column of each predator,
    of each prey, alive of each prey, time]``; a captured prey has row and column 0. (A critic
    learns much more slowly from the coordinates alone, without the views.)

    Keyword Args:
        grid_size (int): number of rows and of columns.
        n_predators (int): number of agents.
        n_prey (int): number of prey.
        capture_size (int): predators next to a prey that capture it, from 1 to 4; 2 in the paper.
        penalty (float): team reward when predators are next to a prey, but fewer than
            ``capture_size``; the paper's P.
        spread (float): captures and lone attempts pay their reward plus or minus this number by a
            fair coin, with the same mean; 0 in the paper.
        capture_reward (float): team reward of a capture.
        step_cost (float): team cost of every step.
        max_steps (int): time limit, in steps.
        view (int): width of the square that an agent observes, odd, in cells.
        prey_move_probs (sequence of float): probabilities of down, left, up, right, stay.
        num_envs, device, seed: as :class:`~torchrl_agentmixer.envs.TeamEnv`.

    Raises:
        ValueError: for sizes that do not fit, a positive penalty, or probabilities that do not
            sum to 1.

    Examples:
        >>> env = PredatorPreyGridEnv(num_envs=4, penalty=-1.0, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["state"].shape
        (torch.Size([4, 3, 2, 28]), torch.Size([4, 3, 58]))
    """

    def __init__(
        self,
        *,
        num_envs: int = 1,
        grid_size: int = 5,
        n_predators: int = 2,
        n_prey: int = 1,
        capture_size: int = 2,
        penalty: float = 0.0,
        spread: float = 0.0,
        capture_reward: float = 10.0,
        step_cost: float = 0.01,
        max_steps: int = 128,
        view: int = 5,
        prey_move_probs: Sequence[float] = (0.175, 0.175, 0.175, 0.175, 0.3),
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        name = "PredatorPreyGridEnv"
        check_at_least(name, 1, n_predators=n_predators, n_prey=n_prey, max_steps=max_steps)
        total, entities = sum(prey_move_probs), n_predators + n_prey
        is_distribution = min(prey_move_probs) >= 0 and abs(total - 1) <= 1e-6
        check_values(
            name,
            grid_size=(
                grid_size,
                grid_size >= 2 and entities <= grid_size**2,
                f">= 2, with room for {n_predators} predators and {n_prey} prey",
            ),
            view=(view, view >= 1 and view % 2 == 1, ">= 1, odd"),
            capture_size=(
                capture_size,
                1 <= capture_size <= 4,
                "from 1 to 4, the cells next to a prey",
            ),
            penalty=(penalty, penalty <= 0, "<= 0 (a reward)"),
            spread=(spread, spread >= 0, ">= 0"),
            prey_move_probs=(
                prey_move_probs,
                len(prey_move_probs) == len(MOVES) and is_distribution,
                "of down, left, up, right, stay: five numbers >= 0 with sum 1",
            ),
        )
        super().__init__(
            n_predators,
            len(MOVES),
            view * view + 3,
            n_predators * (view * view + 2) + 3 * n_prey + 1,
            num_envs=num_envs,
            device=device,
            seed=seed,
        )
        self.grid_size, self.n_prey, self.max_steps = grid_size, n_prey, max_steps
        self._make_tables(grid_size, view)
        self._step_cost = step_cost
        self._spread = spread
        self._capture_size = capture_size
        by_predators = [0.0, *[penalty] * (capture_size - 1), capture_reward]
        self._rewards = torch.tensor(by_predators, device=self.device)
        self._move_cdf = torch.tensor(prey_move_probs, device=self.device).cumsum(0)[:-1]
        # Cell numbers of predators, then of prey; see `_make_tables`.
        self._cells = torch.zeros(
            num_envs, n_predators + n_prey, dtype=torch.int64, device=self.device
        )
        self._time = torch.zeros(num_envs, device=self.device)
        self._last_reward = torch.zeros(num_envs, device=self.device)

    def _make_tables(self, grid_size: int, view: int) -> None:
        """Number the cells of the grid and of a wall around it, row by row.

        With a wall thicker than half the view, each visible offset has a unique difference of cell
        numbers.
        """
        half = view // 2
        margin = half + 1
        self._margin, self._width = margin, grid_size + 2 * margin
        number = torch.arange(self._width**2, device=self.device)
        row, column = number // self._width - margin, number % self._width - margin
        self._is_wall = (row.clamp(0, grid_size - 1) != row) | (
            column.clamp(0, grid_size - 1) != column
        )
        self._free_cells = number[~self._is_wall]
        position = torch.stack([row, column], -1) / (grid_size - 1)
        self._position = position.masked_fill(self._is_wall[:, None], 0.0)  # of a cell, in [0, 1]
        self._offset = torch.tensor([r * self._width + c for r, c in MOVES], device=self.device)
        # View index of each difference of cell numbers; `view * view` is out of view.
        self._seen_at = torch.full((2 * len(number),), view * view, device=self.device)
        span = torch.arange(-half, half + 1, device=self.device)
        differences = (span[:, None] * self._width + span).flatten()
        self._seen_at[differences + len(number)] = torch.arange(view * view, device=self.device)
        self._view_cells = view * view

    def _reset_where(self, mask: torch.Tensor) -> None:
        self._cells = torch.where(mask[:, None], self._start(), self._cells)
        self._time = torch.where(mask, 0.0, self._time)
        self._last_reward = torch.where(mask, 0.0, self._last_reward)

    def _start(self) -> torch.Tensor:
        """Distinct random cells, with prey next to no predator if the grid has such cells."""
        n_cells = len(self._free_cells)
        chosen = self._rand(*self.batch_size, n_cells).topk(self.n_agents).indices
        predators = self._free_cells[chosen]  # [N, n]
        here = self._free_cells[:, None]
        near = (here == self._next_to(predators)[:, None]).any(-1)
        taken = (here == predators[:, None]).any(-1)  # [N, n_cells]
        rank = self._rand(*self.batch_size, n_cells) - near.float() - 3 * taken.float()
        prey = self._free_cells[rank.topk(self.n_prey).indices]
        return torch.cat([predators, prey], -1)

    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = self.n_agents
        self._cells = self._cells.clone()
        targets = self._cells[:, :n] + self._offset[actions]
        for i in range(n):
            self._move(i, targets[:, i])
        danger = self._next_to(self._cells[:, :n])  # [N, 4 n]
        draws = self._offset[self._draw_prey_moves()]  # [N, n_prey, TRIES]
        reward = torch.full_like(self._time, -self._step_cost)
        for j in range(n, n + self.n_prey):
            count = (danger == self._cells[:, j, None]).sum(-1)
            predators = count.clamp(max=self._capture_size)
            reward = reward + self._rewards[predators]
            if self._spread:
                coin = torch.where(self._rand(*self.batch_size) < 0.5, -1.0, 1.0)
                reward = reward + self._spread * coin * (predators > 0)
            self._cells[:, j].masked_fill_(predators == self._capture_size, _GONE)
            self._move(j, self._first_safe(self._cells[:, j], draws[:, j - n], danger))
        self._time = self._time + 1
        self._last_reward = reward
        caught_all = (self._cells[:, n:] == _GONE).all(-1)
        return reward, caught_all, self._time >= self.max_steps

    def _draw_prey_moves(self) -> torch.Tensor:
        """Indices into ``MOVES``, ``[N, n_prey, TRIES]``."""
        u = self._rand(*self.batch_size, self.n_prey, TRIES)
        return torch.bucketize(u, self._move_cdf, right=True)

    def _first_safe(
        self, cell: torch.Tensor, offsets: torch.Tensor, danger: torch.Tensor
    ) -> torch.Tensor:
        """Target ``[N]`` of the first sampled move that avoids predators; else ``cell``."""
        targets = cell[:, None] + offsets  # [N, TRIES]
        unsafe = (targets[:, :, None] == danger[:, None]).any(-1)
        first = unsafe.long().argmin(-1, keepdim=True)
        return torch.where(unsafe.all(-1), cell, targets.gather(-1, first).squeeze(-1))

    def _move(self, k: int, target: torch.Tensor) -> None:
        """Move entity ``k`` to ``target`` ``[N]`` where that cell is free."""
        blocked = (self._cells == target[:, None]).any(-1) | self._is_wall[target]
        self._cells[:, k] = torch.where(blocked, self._cells[:, k], target)

    def _next_to(self, cells: torch.Tensor) -> torch.Tensor:
        """The four cells around each of ``cells`` ``[N, m]``: ``[N, 4 m]``."""
        return (cells.unsqueeze(-1) + self._offset[:4]).flatten(1)

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        n = self.n_agents
        predators, prey = self._cells[:, :n], self._cells[:, n:]
        seen = self._seen_at[prey[:, None] - predators[:, :, None] + len(self._is_wall)]
        view = torch.zeros(*self.batch_size, n, self._view_cells + 1, device=self.device)
        view = view.scatter_(-1, seen, 1.0)[..., :-1]
        position = self._position[self._cells]  # [N, n + n_prey, 2]
        time = (self._time / self.max_steps)[:, None]
        observation = torch.cat([position[:, :n], view, time[:, None].expand(-1, n, 1)], -1)
        alive = (prey != _GONE).float()
        state = torch.cat([view.flatten(1), position.flatten(1), alive, time], -1)
        return observation, state

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of predators (numbered), living prey (red), step and reward, ``[H, W, 3]``."""
        cell = 48
        size = self.grid_size * cell
        canvas = Canvas(max(size, 200), size + 20)
        for row in range(self.grid_size):
            for column in range(self.grid_size):
                box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
                canvas.box(box, fill=(246, 246, 240), outline=(215, 215, 205))
        for k, number in enumerate(self._cells[env_index].tolist()):
            if number == _GONE:
                continue
            row, column = number // self._width - self._margin, number % self._width - self._margin
            center = ((column + 0.5) * cell, (row + 0.5) * cell)
            if k < self.n_agents:
                canvas.shape(center, 0.38 * cell, fill=(60, 110, 190))
                canvas.text((center[0] - 3, center[1] - 6), str(k), fill=(255, 255, 255))
            else:
                canvas.shape(center, 0.28 * cell, fill=(205, 60, 50))
        canvas.caption(size, self._time[env_index], self._last_reward[env_index])
        return canvas.image()
