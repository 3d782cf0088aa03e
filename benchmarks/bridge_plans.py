"""Plans of trained teams on bridge crossing, and what one agent could gain alone, exactly.

    python benchmarks/bridge_plans.py runs/grids/bridge_crossing/agent_mixer/3

An agent's observations depend on its size and its own actions alone. So the modes of a team are a
plan per agent and size, and a best response of one agent to the other's plans follows from backward
induction over steps and cells. One row per run: the return, the returns after a best response of A
and of B, and the plans: the passages that are crossed, or where an agent stops.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import print_rows
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer.envs import BridgeCrossingEnv
from torchrl_agentmixer.envs.bridge_crossing import GRID, MOVES
from torchrl_agentmixer.experiment import load_run

Cell = tuple[int, int]
Plans = tuple[tuple[list[Cell], list[Cell]], ...]  # cells of A and B, small and big, by step

STARTS = tuple(
    next((row, line.index(name)) for row, line in enumerate(GRID) if name in line) for name in "AB"
)
GOALS = STARTS[::-1]
CELLS = [(row, c) for row, line in enumerate(GRID) for c, mark in enumerate(line) if mark != "#"]


def moved(cell: Cell, action: int) -> Cell:
    """The cell after a move; walls stop it."""
    row, column = cell[0] + MOVES[action][0], cell[1] + MOVES[action][1]
    inside = 0 <= row < len(GRID) and 0 <= column < len(GRID[0])
    return (row, column) if inside and GRID[row][column] != "#" else cell


def targets(cell: Cell) -> set[Cell]:
    """Cells that one step reaches."""
    return {moved(cell, action) for action in range(len(MOVES))}


def same_passage(one: Cell, other: Cell) -> bool:
    """Whether both cells are inside the same passage."""
    first, second = (GRID[row][column] for row, column in (one, other))
    return first == second and first in "12"


def plans_of(policy: TensorDictModuleBase, max_steps: int) -> Plans:
    """Plans of a deterministic policy without memory."""
    plans = tuple(([start], [start]) for start in STARTS)
    for _ in range(max_steps):
        # Both small, both big.
        observed = torch.tensor([[[*own[s][-1], s] for own in plans] for s in (0, 1)])
        observed = observed / torch.tensor([len(GRID) - 1, len(GRID[0]) - 1, 1])
        data = TensorDict({"agents": {"observation": observed}}, [2])
        actions = policy(data)["agents", "action"].tolist()
        for agent, own in enumerate(plans):
            for size, cells in enumerate(own):
                arrived = cells[-1] == GOALS[agent]
                cells.append(cells[-1] if arrived else moved(cells[-1], actions[size][agent]))
    return plans


class Team:
    """Expected returns of plans, by the costs and the probability of an environment."""

    def __init__(self, env: BridgeCrossingEnv) -> None:
        self.max_steps = env.max_steps
        self.costs = env.step_cost, env.congestion_cost
        self.probs = env.small_prob, 1 - env.small_prob  # small, big

    def step(self, agent: int, size: int, move: tuple[Cell, Cell], time: int, team: Plans) -> float:
        """Expected reward of a step of one agent of this size, over the other's size."""
        step_cost, congestion_cost = self.costs
        reward = -step_cost * (move[0] != GOALS[agent])
        for prob, other_size, cells in zip(self.probs, (0, 1), team[1 - agent], strict=True):
            reward -= prob * step_cost * (cells[time] != GOALS[1 - agent])
            jam = bool(size or other_size) and same_passage(move[1], cells[time + 1])
            reward -= prob * congestion_cost * jam
        return reward

    def value(self, team: Plans) -> float:
        """Return of a team."""
        return sum(
            prob * self.step(0, size, (cells[time], cells[time + 1]), time, team)
            for size, (prob, cells) in enumerate(zip(self.probs, team[0], strict=True))
            for time in range(self.max_steps)
        )

    def best_response(self, agent: int, team: Plans) -> float:
        """Return where one agent takes its best plan and the other keeps its own."""
        result = 0.0
        for size, prob in enumerate(self.probs):
            later = dict.fromkeys(CELLS, 0.0)
            for time in reversed(range(self.max_steps)):
                later = {
                    cell: max(
                        self.step(agent, size, (cell, to), time, team) + later[to]
                        for to in ({cell} if cell == GOALS[agent] else targets(cell))
                    )
                    for cell in CELLS
                }
            result += prob * later[STARTS[agent]]
        return result


def described(agent: int, cells: list[Cell]) -> str:
    """The passages of a plan, and where it ends if not at the goal."""
    passages = dict.fromkeys(GRID[r][c] for r, c in cells if GRID[r][c] in "12")
    way = ", ".join(f"passage {number}" for number in passages)
    if cells[-1] == GOALS[agent]:
        return way
    if cells[-1] == STARTS[agent]:
        return f"{way}, stays at its start".removeprefix(", ")
    return f"{way}, stops"


def row_of(run: Path) -> dict[str, Any]:
    """Return, best responses and plans of a complete run."""
    algorithm, env, config = load_run(run)
    while not isinstance(env, BridgeCrossingEnv):
        if not hasattr(env, "base_env"):
            raise SystemExit(f"{run}: expected a run on grid/bridge_crossing, got {env}.")
        env = env.base_env
    policy = algorithm.execution_policy
    if config.normalize_observations or policy.in_keys != [("agents", "observation")]:
        raise SystemExit(
            f"{run}: expected a policy of observations alone, not normalized, got one of "
            f"{policy.in_keys} with normalize_observations={config.normalize_observations}."
        )
    plans, team = plans_of(policy, env.max_steps), Team(env)
    row: dict[str, Any] = {"run": run, "return": f"{team.value(plans):.2f}"}
    for agent, name in enumerate("AB"):
        row[f"best response of {name}"] = f"{team.best_response(agent, plans):.2f}"
    for agent, name in enumerate("AB"):
        for size, cells in zip(("small", "big"), plans[agent], strict=True):
            row[f"{size} {name}"] = described(agent, cells)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="complete runs on bridge crossing")
    for number, run in enumerate(parser.parse_args().runs):
        print_rows([row_of(run)], header=number == 0)


if __name__ == "__main__":
    main()
