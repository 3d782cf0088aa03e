"""The paper's bridge crossing (Figure 1), batched in torch, with its optima in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_agentmixer._choices import check_values
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas, Color

# Starts of agents A and B (each is the other's goal), cells of passages 1 and 2, and walls (#).
GRID = (
    "1111",
    "A##B",
    "2##2",
    "2222",
)
# Row and column offsets of the actions down, left, up, right, stay.
MOVES = ((1, 0), (0, -1), (-1, 0), (0, 1), (0, 0))

_FILLS: dict[str, Color] = {"#": (120, 120, 115), "1": (225, 238, 225), "2": (246, 240, 215)}
_AGENT_FILLS: tuple[Color, Color] = ((60, 110, 190), (230, 140, 40))
_STAR = [
    (11 * r * np.sin(k * np.pi / 5), -11 * r * np.cos(k * np.pi / 5))
    for k, r in enumerate((1.0, 0.45) * 5)
]


class BridgeCrossingEnv(TeamEnv):
    """Two agents of hidden sizes cross to opposite ends, by a short or a long passage.

    Figure 1 of AgentMixer (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). Agent A starts
    at the left end and its goal is the right end; agent B crosses in the other direction::

        1 1 1 1
        A # # B
        2 # # 2
        2 2 2 2

    In every episode each agent is small with probability ``small_prob``, otherwise big. The
    capacity of a passage is two small agents or one big agent. In one step both agents move into a
    neighboring cell; a move into a wall has no effect, and an agent at its goal stays there. A step
    costs the team ``step_cost`` per agent that was not at its goal, and ``congestion_cost`` if it
    ends with a passage over capacity. The episode terminates when both agents are at their goals,
    and is truncated after ``max_steps``.

    An agent observes its ``[row, column, big]``, all in [0, 1]; the state is A's observation, then
    B's. Congestion costs reward but does not block. An agent's observations therefore depend only
    on its size and its actions: **they never contain information about the other agent**. A
    decentralized policy is a plan per size of each agent.

    The closed-form :attr:`full_information_optimum`, :attr:`decentralized_optimum`,
    :attr:`imitation_return` and :attr:`imitation_mode_return` use :math:`s` = ``step_cost``,
    :math:`c` = ``congestion_cost``, :math:`p` = ``small_prob`` and :math:`q = 1 - p`. A crossing
    takes 5 steps by passage 1 (4 of them inside) and 7 by passage 2 (6 inside).

    Keyword Args:
        small_prob (float): probability that an agent is small. Above 1/2, the modes of a student
            of *any* full-information optimum are worse than the decentralized optimum; at 1/2 they
            may tie, and then equal it by chance.
        step_cost (float): team cost per step and agent that is not at its goal.
        congestion_cost (float): team cost per step that ends with a passage over capacity.
        max_steps (int): time limit, in steps; at least 7, a crossing by passage 2.
        num_envs, device, seed: as :class:`~torchrl_agentmixer.envs.TeamEnv`.

    Raises:
        ValueError: for a probability outside [0, 1], a cost that is not positive, or a time limit
            less than 7.

    Examples:
        >>> env = BridgeCrossingEnv(num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["state"].shape
        (torch.Size([4, 3, 2, 3]), torch.Size([4, 3, 6]))
        >>> for name in ("full_information_optimum", "decentralized_optimum", "imitation_return"):
        ...     print(f"{name} {getattr(env, name):.3f}")
        full_information_optimum -1.150
        decentralized_optimum -1.200
        imitation_return -2.025
    """

    def __init__(
        self,
        *,
        num_envs: int = 1,
        small_prob: float = 0.5,
        step_cost: float = 0.1,
        congestion_cost: float = 0.5,
        max_steps: int = 12,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        check_values(
            "BridgeCrossingEnv",
            small_prob=(small_prob, 0 <= small_prob <= 1, "in [0, 1]"),
            step_cost=(step_cost, step_cost > 0, "> 0 (it is subtracted)"),
            congestion_cost=(congestion_cost, congestion_cost > 0, "> 0 (it is subtracted)"),
            max_steps=(max_steps, max_steps >= 7, ">= 7, the steps of the long passage"),
        )
        super().__init__(2, len(MOVES), 3, 6, num_envs=num_envs, device=device, seed=seed)
        self.small_prob, self.max_steps = small_prob, max_steps
        self.step_cost, self.congestion_cost = step_cost, congestion_cost
        self._make_tables()
        self._cells = self._starts.expand(num_envs, -1)
        self._big = torch.zeros(num_envs, 2, dtype=torch.bool, device=self.device)
        self._time = torch.zeros(num_envs, device=self.device)
        self._last_reward = torch.zeros(num_envs, device=self.device)

    def _make_tables(self) -> None:
        """Number the cells row by row; tabulate the targets of actions, passages and positions."""
        rows, columns = len(GRID), len(GRID[0])
        cells = "".join(GRID)
        leads_to = []
        for number in range(rows * columns):
            row, column = divmod(number, columns)
            for down, right in MOVES:
                r, c = row + down, column + right
                free = 0 <= r < rows and 0 <= c < columns and GRID[r][c] != "#"
                leads_to.append(r * columns + c if free else number)
        self._leads_to = torch.tensor(leads_to, device=self.device).view(-1, len(MOVES))
        passage = [int(cell) if cell in "12" else 0 for cell in cells]
        self._passage = torch.tensor(passage, device=self.device)  # 1, 2, or 0 outside of both
        index = torch.arange(rows * columns, device=self.device)
        self._position = torch.stack(
            [index // columns / (rows - 1), index % columns / (columns - 1)], -1
        )  # row and column, in [0, 1]
        self._starts = torch.tensor([cells.index("A"), cells.index("B")], device=self.device)
        self._goals = self._starts.flip(0)

    @property
    def full_information_optimum(self) -> float:
        r"""Best return of a policy that observes the state, :math:`-s\,(12 - 2 p^2)`.

        Two small agents take passage 1 together: :math:`2 \cdot 5` steps. With a big agent they
        take one passage each: :math:`5 + 7`; waiting until passage 1 is free takes 9 steps.
        """
        self._check_optima()
        return -(12 - 2 * self.small_prob**2) * self.step_cost

    @property
    def decentralized_optimum(self) -> float:
        r"""Best return of decentralized policies, :math:`-12 s`.

        The agents always take distinct passages. The tests compare it with all pairs of plans.
        """
        self._check_optima()
        return -12 * self.step_cost

    @property
    def imitation_return(self) -> float:
        r"""Return of students that imitate the full-information expert and sample their actions.

        The expert samples uniformly from the optima: two symmetric ones unless both agents are
        small. A student minimizes :math:`KL(\text{expert} \| \text{student})` over the expert's
        episodes, given its observations: it takes passage 1 as often as the expert does, with
        probability :math:`m = (1 + p) / 2` when small and 1/2 when big. It crosses in the expert's
        time, but independently of the other student. A small and a big agent meet inside passage 1
        for 4 steps with probability :math:`m / 2`, inside 2 for 6 steps with
        :math:`(1 - m) / 2`; two big agents with 1/4 and 1/4:

        .. math:: -s\,(12 - 2 p^2) - c\,\left(2 p q\,(3 - m) + \tfrac{5}{2} q^2\right)
        """
        p, q = self.small_prob, 1 - self.small_prob
        congested = 2 * p * q * (3 - (1 + p) / 2) + 2.5 * q**2
        return self.full_information_optimum - congested * self.congestion_cost

    @property
    def imitation_mode_return(self) -> float:
        r"""Best return of the students of :attr:`imitation_return` with their modes.

        A small agent takes passage 1; a big agent is indifferent. In the best case a big A takes 1
        and a big B takes 2, and a big A and a small B meet for 4 steps:
        :math:`-s\,(10 + 2 q) - 4 p q\, c`.
        """
        self._check_optima()
        p, q = self.small_prob, 1 - self.small_prob
        return -(10 + 2 * q) * self.step_cost - 4 * p * q * self.congestion_cost

    def _check_optima(self) -> None:
        """Check the range of the formulas; outside, waiting or sharing may be better."""
        p, cost, steps = self.small_prob, self.congestion_cost, self.max_steps
        check_values(
            "BridgeCrossingEnv, optima",
            small_prob=(p, p <= 0.6, "<= 0.6"),
            congestion_cost=(cost, cost >= 2 * self.step_cost, ">= 2 * `step_cost`"),
            max_steps=(steps, steps >= 9, ">= 9"),
        )

    def _reset_where(self, mask: torch.Tensor) -> None:
        big = self._rand(*self.batch_size, 2) >= self.small_prob
        self._big = torch.where(mask[:, None], big, self._big)
        self._cells = torch.where(mask[:, None], self._starts, self._cells)
        self._time = torch.where(mask, 0.0, self._time)
        self._last_reward = torch.where(mask, 0.0, self._last_reward)

    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        crossing = self._cells != self._goals
        moved = self._leads_to[self._cells, actions]
        self._cells = torch.where(crossing, moved, self._cells)
        first, second = self._passage[self._cells].unbind(-1)
        congested = (first == second) & (first > 0) & self._big.any(-1)
        reward = -self.step_cost * crossing.sum(-1) - self.congestion_cost * congested
        self._time = self._time + 1
        self._last_reward = reward
        arrived = (self._cells == self._goals).all(-1)
        return reward, arrived, self._time >= self.max_steps

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        observation = torch.cat(
            [self._position[self._cells], self._big.unsqueeze(-1).float()], -1
        )  # [N, 2, 3]
        return observation, observation.flatten(1)

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of agents (boxes by size), their goals (stars) and passages, ``[H, W, 3]``."""
        cell, rows, columns = 56, len(GRID), len(GRID[0])
        canvas = Canvas(columns * cell, rows * cell + 20)
        for row, line in enumerate(GRID):
            for column, kind in enumerate(line):
                left, top = column * cell, row * cell
                fill = _FILLS.get(kind, (250, 250, 250))
                canvas.box((left, top, left + cell, top + cell), fill, (215, 215, 205))
                if kind in "12":
                    canvas.text((left + 5, top + 4), kind)
                if kind in "AB":  # the other's goal
                    other = _AGENT_FILLS[1 - "AB".index(kind)]
                    canvas.shape((left + cell / 2, top + 12), _STAR, other)
        agents = zip(self._cells[env_index].tolist(), self._big[env_index].tolist(), strict=True)
        for i, (number, big) in enumerate(agents):
            row, column = divmod(number, columns)
            half = 13 if big else 9
            x, y = (column + 0.5) * cell + (26 * i - 13), (row + 0.5) * cell + 10  # side by side
            canvas.box((x - half, y - half, x + half, y + half), _AGENT_FILLS[i], (40, 40, 40))
            canvas.text((x - 3, y - 6), "AB"[i], fill=(255, 255, 255))
        canvas.caption(rows * cell, self._time[env_index], self._last_reward[env_index])
        return canvas.image()
