"""Bridge crossing: comparison with a Python implementation, and optima by exhaustive search."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product
from typing import NamedTuple

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_agentmixer.envs import BridgeCrossingEnv

DOWN, LEFT, UP, RIGHT, STAY = range(5)
DELTA = {DOWN: (1, 0), LEFT: (0, -1), UP: (-1, 0), RIGHT: (0, 1), STAY: (0, 0)}
Cell = tuple[int, int]
Sizes = tuple[bool, bool]  # A is big, B is big

# A Python implementation of the rules; cells are (row, column).
ENDS: tuple[Cell, Cell] = ((1, 0), (1, 3))
PASSAGES: dict[int, set[Cell]] = {
    1: {(0, 0), (0, 1), (0, 2), (0, 3)},
    2: {(2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (2, 3)},
}
OPEN = PASSAGES[1] | PASSAGES[2] | set(ENDS)
SIZES = list(product((False, True), repeat=2))
# Shortest paths by (agent, passage).
CROSSINGS = {
    (0, 1): [UP, RIGHT, RIGHT, RIGHT, DOWN],
    (0, 2): [DOWN, DOWN, RIGHT, RIGHT, RIGHT, UP, UP],
    (1, 1): [UP, LEFT, LEFT, LEFT, DOWN],
    (1, 2): [DOWN, DOWN, LEFT, LEFT, LEFT, UP, UP],
}


def walk(cell: Cell, goal: Cell, action: int) -> Cell:
    there = cell[0] + DELTA[action][0], cell[1] + DELTA[action][1]
    return there if there in OPEN and cell != goal else cell


def passage(cell: Cell) -> int:
    return next((number for number, cells in PASSAGES.items() if cell in cells), 0)


def too_full(cells: list[Cell], sizes: Sizes) -> bool:
    """A big agent has size 2, a small one size 1, and the capacity is 2."""
    loads = Counter(dict.fromkeys(PASSAGES, 0))
    for cell, big in zip(cells, sizes, strict=True):
        loads[passage(cell)] += 2 if big else 1
    return max(loads[1], loads[2]) > 2


def _act(env: BridgeCrossingEnv, actions) -> TensorDict:
    actions = torch.as_tensor(actions).expand(*env.batch_size, 2)
    return env.step(TensorDict({"agents": {"action": actions}}, batch_size=env.batch_size))["next"]


def _place(env: BridgeCrossingEnv, cells: tuple[Cell, Cell], sizes) -> None:
    env.reset()
    env._cells = torch.tensor([4 * r + c for r, c in cells]).expand(*env.batch_size, 2)
    env._big = torch.as_tensor(sizes).expand(*env.batch_size, 2)


def _cross(env: BridgeCrossingEnv, choices: tuple[int, int], sizes) -> list[TensorDict]:
    """Steps of a crossing by the shortest path of each agent's passage."""
    env.reset()
    env._big = torch.as_tensor(sizes).expand(*env.batch_size, 2)
    a, b = (CROSSINGS[i, choice] + [STAY] * 2 for i, choice in enumerate(choices))
    history: list[TensorDict] = []
    for actions in zip(a, b, strict=False):
        history.append(_act(env, actions))
        if history[-1]["done"].all():
            return history
    raise AssertionError("did not arrive")


def _memoryless(agent: int, number: int) -> torch.Tensor:
    """Actions by row and column that follow the shortest path of a passage."""
    actions = torch.full((4, 4), STAY)
    cell = ENDS[agent]
    for action in CROSSINGS[agent, number]:
        actions[cell] = action
        cell = walk(cell, ENDS[1 - agent], action)
    return actions


def _read(state: torch.Tensor) -> tuple[list[Cell], Sizes]:
    rows = (state.view(2, 3) * torch.tensor([3, 3, 1])).round().int().tolist()
    return [(r, c) for r, c, _ in rows], (bool(rows[0][2]), bool(rows[1][2]))


# Rules.


def test_transitions_match_a_python_implementation():
    num_envs, limit = 60, 12
    env = BridgeCrossingEnv(num_envs=num_envs, max_steps=limit, small_prob=0.6, seed=0)
    data, events, steps = env.reset(), Counter(), [0] * num_envs
    generator = torch.Generator().manual_seed(1)
    ways = [[_memoryless(agent, number) for agent in (0, 1)] for number in (1, 2)]
    for _ in range(120):
        before = data["state"]
        actions = torch.randint(5, (num_envs, 2), generator=generator)
        for k, i in product(range(num_envs), (0, 1)):  # random actions rarely arrive
            if torch.rand((), generator=generator) < 0.7:
                actions[k, i] = ways[(k >> i) % 2][i][_read(before[k])[0][i]]
        stepped, data = env.step_and_maybe_reset(data.set(("agents", "action"), actions))
        after = stepped["next"]
        for k in range(num_envs):
            cells, sizes = _read(before[k])
            goals = ENDS[::-1]
            waiting = sum(cell != goal for cell, goal in zip(cells, goals, strict=True))
            cells = [walk(cells[i], goals[i], int(actions[k, i])) for i in (0, 1)]
            congested = too_full(cells, sizes)
            steps[k] += 1
            over = tuple(cells) == goals
            expected = -0.1 * waiting - 0.5 * congested
            assert _read(after["state"][k]) == (cells, sizes)
            assert after["reward"][k].item() == pytest.approx(expected, abs=1e-6)
            assert after["terminated"][k].item() == over
            assert after["truncated"][k].item() == (steps[k] == limit and not over)
            events["congested", passage(cells[0])] += congested
            events["one arrived"] += waiting == 1
            events["over"] += over
            events["truncated"] += bool(after["truncated"][k])
            events["two small"] += passage(cells[0]) == passage(cells[1]) > 0 and not any(sizes)
            if after["done"][k]:
                steps[k] = 0
    needed = {("congested", 1), ("congested", 2), "one arrived", "over", "truncated", "two small"}
    assert not needed - {kind for kind, count in events.items() if count > 5}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("number", "cells"), [(1, 4), (2, 6)])
def test_capacity_of_a_passage(sizes, number, cells):
    history = _cross(BridgeCrossingEnv(), (number, number), sizes)
    rewards = [-0.7 if any(sizes) else -0.2] * cells + [-0.2]
    assert [step["reward"].item() for step in history] == pytest.approx(rewards)


@pytest.mark.parametrize("choices", [(1, 2), (2, 1)])
def test_distinct_passages_are_never_congested(choices):
    for sizes in SIZES:
        history = _cross(BridgeCrossingEnv(), choices, sizes)
        rewards = [step["reward"].item() for step in history]
        assert rewards == pytest.approx([-0.2] * 5 + [-0.1] * 2)


def test_starts_and_goals_have_no_capacity():
    env = BridgeCrossingEnv()
    _place(env, ((1, 0), (0, 0)), (True, True))
    assert _act(env, [STAY, DOWN])["reward"].item() == pytest.approx(-0.2)


def test_congestion_does_not_block():
    env = BridgeCrossingEnv()
    _place(env, ((0, 1), (0, 2)), (True, True))
    cells, _ = _read(_act(env, [RIGHT, LEFT])["state"][0])
    assert cells == [(0, 2), (0, 1)]


def test_an_agent_at_its_goal_stays_and_costs_nothing():
    env = BridgeCrossingEnv()
    _place(env, ((1, 3), (2, 3)), (False, False))
    after = _act(env, [UP, STAY])
    assert _read(after["state"][0])[0] == [(1, 3), (2, 3)]
    assert after["reward"].item() == pytest.approx(-0.1)
    assert not after["done"].any()


def test_the_own_start_is_not_the_goal():
    env = BridgeCrossingEnv()
    env.reset()
    _act(env, [UP, UP])
    assert not _act(env, [DOWN, DOWN])["done"].any()
    assert _act(env, [STAY, STAY])["reward"].item() == pytest.approx(-0.2)


def test_arrival_terminates_and_the_time_limit_truncates():
    env = BridgeCrossingEnv(max_steps=7)
    last = _cross(env, (1, 2), (True, True))[-1]  # in step 7
    assert last["terminated"].all()
    assert not last["truncated"].any()
    env.reset()
    for t in range(7):
        after = _act(env, [STAY, STAY])
        assert after["done"].item() == (t == 6)
    assert after["truncated"].all()
    assert not after["terminated"].any()


def test_sizes_are_sampled_independently():
    env = BridgeCrossingEnv(num_envs=20_000, small_prob=0.6, seed=0)
    big = env.reset()["state"][:, [2, 5]]
    share = torch.stack([(big == torch.tensor(sizes).float()).all(-1) for sizes in SIZES])
    expected = torch.tensor([0.36, 0.24, 0.24, 0.16])
    torch.testing.assert_close(share.float().mean(-1), expected, atol=0.015, rtol=0)
    for prob, value in ((0.0, 1.0), (1.0, 0.0)):
        env = BridgeCrossingEnv(num_envs=2_000, small_prob=prob)
        assert (env.reset()["state"][:, [2, 5]] == value).all()


def test_a_partial_reset_samples_sizes_only_there():
    env = BridgeCrossingEnv(num_envs=200, seed=0)
    data = env.reset()
    mask = torch.arange(200) < 100
    before = data["state"]
    env.reset(data.clone().set("_reset", mask[:, None]))
    after = _act(env, [STAY, STAY])["state"]  # of the simulation, not of the output
    assert torch.equal(after[100:], before[100:])
    assert not torch.equal(after[:100], before[:100])


# Observations, rendering, options.


@pytest.mark.parametrize("agent", [0, 1])
def test_observations_are_independent_of_the_other_agent(agent):
    """For all sizes and actions of the other agent, with and without congestion and arrival."""
    num_envs = 400
    generator = torch.Generator().manual_seed(agent)
    env = BridgeCrossingEnv(num_envs=num_envs)
    env.reset()
    env._big = torch.randint(2, (num_envs, 2), generator=generator).bool()
    env._big[:, agent] = True
    crossing = CROSSINGS[agent, 1]
    rewards = []
    for t in range(12):
        actions = torch.randint(5, (num_envs, 2), generator=generator)
        actions[:, agent] = crossing[t] if t < len(crossing) else STAY
        after = _act(env, actions)
        own, other = (after["agents", "observation"][:, i] for i in (agent, 1 - agent))
        assert (own == own[0]).all()
        assert len(other.unique(dim=0)) > 2
        assert torch.equal(after["state"], after["agents", "observation"].flatten(1))
        rewards.append(after["reward"])
    assert len(torch.cat(rewards).unique()) >= 3  # the episodes differ


def test_observation_and_state():
    env = BridgeCrossingEnv()
    _place(env, ((3, 1), (0, 3)), (True, False))
    after = _act(env, [STAY, STAY])
    expected = [[1.0, 1 / 3, 1.0], [0.0, 1.0, 0.0]]
    torch.testing.assert_close(after["agents", "observation"][0], torch.tensor(expected))
    torch.testing.assert_close(after["state"][0], torch.tensor(expected).flatten())


def test_render():
    env = BridgeCrossingEnv(num_envs=2)
    pictures = {}
    for sizes in SIZES:
        _place(env, ENDS, sizes)
        pictures[sizes] = env.render().tobytes()
    for cell in ((2, 3), (0, 3), (0, 2)):
        _place(env, (ENDS[0], cell), (False, False))
        pictures[cell] = env.render().tobytes()
    assert len(set(pictures.values())) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_prob": 1.2}, r"`small_prob` in \[0, 1\], got 1.2"),
        ({"small_prob": float("nan")}, r"`small_prob` in \[0, 1\], got nan"),
        ({"step_cost": 0.0}, "`step_cost` > 0 .*, got 0.0"),
        ({"congestion_cost": -0.5}, "`congestion_cost` > 0 .*, got -0.5"),
        ({"max_steps": 6}, "`max_steps` >= 7.*, got 6"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BridgeCrossingEnv(**options)


# Optima.
#
# An agent's observations depend only on its size and its actions. A deterministic decentralized
# policy, with or without memory, is therefore one path per size of each agent. A stochastic policy
# is a mixture of these, and its return is their average. The return depends on a path only by its
# arrival and by the steps in each passage, and fewer steps in a passage are never worse. A path is
# dominated, and ignored, if another one arrives no later and is in each passage only at steps at
# which this one is.


class Plan(NamedTuple):
    """Steps until arrival or the time limit, and bits of the steps that end in passages 1 and 2."""

    steps: int
    first: int
    second: int


@cache
def plans(agent: int, max_steps: int) -> tuple[Plan, ...]:
    """All paths that are not dominated."""
    start, goal = ENDS[agent], ENDS[1 - agent]
    alive = {(start, 0, 0)}
    found: set[Plan] = set()
    for t in range(max_steps):
        following = set()
        for cell, first, second in alive:
            for action in DELTA:
                there = walk(cell, goal, action)
                bits = first | (passage(there) == 1) << t, second | (passage(there) == 2) << t
                if there == goal:
                    found.add(Plan(t + 1, *bits))
                else:
                    following.add((there, *bits))
        alive = following
    found |= {Plan(max_steps, first, second) for _, first, second in alive}
    kept: list[Plan] = []
    for plan in sorted(found, key=lambda p: (p.steps, (p.first | p.second).bit_count())):
        if not any(k.first & ~plan.first == 0 and k.second & ~plan.second == 0 for k in kept):
            kept.append(plan)
    return tuple(kept)


def straight(number: int) -> Plan:
    return Plan(5, 0b1111, 0) if number == 1 else Plan(7, 0, 0b111111)


def delayed(plan: Plan, wait: int) -> Plan:
    return Plan(plan.steps + wait, plan.first << wait, plan.second << wait)


def congestion(a: Plan, b: Plan) -> int:
    return (a.first & b.first).bit_count() + (a.second & b.second).bit_count()


class Exact:
    """Returns of all pairs of plans."""

    def __init__(self, small_prob=0.5, step_cost=0.1, congestion_cost=0.5, max_steps=12) -> None:
        self.plans = [plans(agent, max_steps) for agent in (0, 1)]
        self.prob = {(a, b): _prob(a, small_prob) * _prob(b, small_prob) for a, b in SIZES}
        pairs = [[(a, b) for b in self.plans[1]] for a in self.plans[0]]
        steps = torch.tensor([[a.steps + b.steps for a, b in row] for row in pairs]).double()
        jam = torch.tensor([[congestion(a, b) for a, b in row] for row in pairs]).double()
        self.returns = {s: -step_cost * steps - congestion_cost * jam * any(s) for s in SIZES}
        self.straight = [[own.index(straight(n)) for n in (1, 2)] for own in self.plans]

    def full_information(self) -> float:
        return sum(float(self.prob[s] * self.returns[s].max()) for s in SIZES)

    def experts(self) -> dict[Sizes, list[tuple[int, int]]]:
        """Indices of all optimal pairs of plans, by pair of sizes."""
        best = {s: self.returns[s] > self.returns[s].max() - 1e-9 for s in SIZES}
        return {s: [tuple(pair) for pair in best[s].nonzero().tolist()] for s in SIZES}

    def decentralized(self) -> torch.Tensor:
        """Expected returns of all plans of (small A, big A, small B, big B)."""
        n, m = len(self.plans[0]), len(self.plans[1])
        total = torch.zeros(n, n, m, m, dtype=torch.float64)
        for a, b in SIZES:
            shape = [1 if a else n, n if a else 1, 1 if b else m, m if b else 1]
            total += self.prob[a, b] * self.returns[a, b].view(shape)
        return total

    def students(self, expert: dict[Sizes, list[tuple[int, int]]]) -> list[dict]:
        """Probabilities of the expert's plans, by agent and size."""
        shares = []
        for i in (0, 1):
            shares.append({big: torch.zeros(len(self.plans[i])).double() for big in (False, True)})
            for sizes in SIZES:
                for pair in expert[sizes]:
                    weight = self.prob[sizes] / len(expert[sizes])
                    shares[i][sizes[i]][pair[i]] += weight
        return [{big: share / share.sum() for big, share in own.items()} for own in shares]

    def score(self, students: list[dict]) -> float:
        a, b = students
        values = {s: self.prob[s] * (a[s[0]] @ self.returns[s] @ b[s[1]]) for s in SIZES}
        return sum(float(value) for value in values.values())

    def mode_scores(self, students: list[dict]) -> list[float]:
        """Returns of the modes, for all ways to break ties."""
        sides = [students[i][big] for i in (0, 1) for big in (False, True)]
        modes = [(side > side.max() - 1e-9).nonzero().flatten().tolist() for side in sides]
        return [float(self.decentralized()[choice]) for choice in product(*modes)]


def _prob(big: bool, small_prob: float) -> float:
    return 1 - small_prob if big else small_prob


# The defaults, `examples/conf/env/bridge_crossing.yaml`, and limits of the formulas.
OPTIONS = [
    {},
    {"small_prob": 0.6},
    {"small_prob": 0.6, "congestion_cost": 0.2},
    {"small_prob": 0.6, "congestion_cost": 0.2, "max_steps": 9},
    {"small_prob": 0.5, "congestion_cost": 0.2, "max_steps": 9},
    {"small_prob": 0.55, "congestion_cost": 3.0, "max_steps": 10},
    {"small_prob": 0.3, "step_cost": 1.0, "congestion_cost": 2.0, "max_steps": 9},
    {"small_prob": 0.05, "congestion_cost": 0.2, "max_steps": 9},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def test_plans():
    left, right = plans(0, 12), plans(1, 12)
    assert left == right  # the bridge is symmetric
    assert {straight(1), straight(2), Plan(12, 0, 0)} <= set(left)
    assert Plan(9, 0b11110000, 0) in left  # waits for four steps first
    # All plans are delayed shortest paths, or to stay.
    assert set(left) == {
        *(delayed(straight(1), wait) for wait in range(7)),
        *(delayed(straight(2), wait) for wait in range(5)),
        Plan(12, 0, 0),
    }


@every_option
def test_full_information_optimum(options):
    exact, env = Exact(**options), BridgeCrossingEnv(**options)
    assert env.full_information_optimum == pytest.approx(exact.full_information())
    (a1, a2), (b1, b2) = exact.straight
    for sizes, pairs in exact.experts().items():
        assert pairs == ([(a1, b2), (a2, b1)] if any(sizes) else [(a1, b1)])


@every_option
def test_decentralized_optimum(options):
    exact, env = Exact(**options), BridgeCrossingEnv(**options)
    returns = exact.decentralized()
    assert env.decentralized_optimum == pytest.approx(float(returns.max()))
    (a1, a2), (b1, b2) = exact.straight
    best = (returns > returns.max() - 1e-9).nonzero().tolist()
    assert best == [[a1, a1, b2, b2], [a2, a2, b1, b1]]  # only distinct passages


@every_option
def test_imitation_returns(options):
    exact, env = Exact(**options), BridgeCrossingEnv(**options)
    students = exact.students(exact.experts())
    assert env.imitation_return == pytest.approx(exact.score(students))
    assert students[0][True][exact.straight[0][0]] == pytest.approx(0.5)
    assert env.imitation_mode_return == pytest.approx(max(exact.mode_scores(students)))


@pytest.mark.parametrize("options", [{}, {"small_prob": 0.6}], ids=str)
def test_students_of_any_expert_are_worse_than_the_optimum(options):
    """Eight deterministic experts (all ways to break ties), and the one that samples."""
    exact, env = Exact(**options), BridgeCrossingEnv(**options)
    optimal = exact.experts()
    experts = [
        dict(zip(SIZES, ([p] for p in pick), strict=True)) for pick in product(*optimal.values())
    ]
    assert len(experts) == 8
    for expert in [*experts, optimal]:
        students = exact.students(expert)
        assert exact.score(students) < env.decentralized_optimum - 0.1
        modes = exact.mode_scores(students)
        if env.small_prob > 0.5 or expert is optimal:
            assert max(modes) < env.decentralized_optimum - 0.1
        else:  # at 1/2 a student may tie
            assert min(modes) < env.decentralized_optimum - 0.1
    assert (
        env.imitation_return
        < env.imitation_mode_return
        < env.decentralized_optimum
        < env.full_information_optimum
    )


def test_returns_of_plans_in_the_environment():
    """All pairs of delayed shortest paths, for all sizes."""
    exact = Exact()
    env = BridgeCrossingEnv(num_envs=4)
    choices = list(product((1, 2), range(5)))  # passage, steps of delay
    for choice in product(choices, repeat=2):
        paths = [
            [STAY] * wait + CROSSINGS[i, number] + [STAY] * 7
            for i, (number, wait) in enumerate(choice)
        ]
        env.reset()
        env._big = torch.tensor(SIZES)
        actions = list(zip(*paths, strict=False))[:12]
        total = sum(_act(env, pair)["reward"][:, 0] for pair in actions)
        a, b = (
            exact.plans[i].index(delayed(straight(number), wait))
            for i, (number, wait) in enumerate(choice)
        )
        expected = torch.stack([exact.returns[sizes][a, b] for sizes in SIZES])
        torch.testing.assert_close(total, expected.float())


def test_a_memoryless_decentralized_policy_attains_the_optimum():
    tables = torch.stack([_memoryless(0, 1), _memoryless(1, 2)])

    def act(observation: torch.Tensor) -> torch.Tensor:
        row, column = (observation[..., :2] * 3).round().long().unbind(-1)
        return tables[torch.arange(2), row, column]

    policy = TensorDictModule(
        act, in_keys=[("agents", "observation")], out_keys=[("agents", "action")]
    )
    env = BridgeCrossingEnv(num_envs=50, seed=0)
    rollout = env.rollout(12, policy, break_when_any_done=False, break_when_all_done=True)
    returns = rollout["next", "reward"].sum(1)
    torch.testing.assert_close(returns, torch.full_like(returns, env.decentralized_optimum))
    assert rollout["next", "terminated"][:, -1].all()


@pytest.mark.parametrize("small_prob", [0.5, 0.6])
def test_students_in_the_environment(small_prob):
    """Students that sample passages with the expert's probabilities, given their sizes."""
    num_envs = 40_000
    env = BridgeCrossingEnv(num_envs=num_envs, small_prob=small_prob, seed=0)
    big = env.reset()["agents", "observation"][..., 2]
    first = torch.where(big == 1, 0.5, (1 + small_prob) / 2)
    drawn = torch.rand(first.shape, generator=torch.Generator().manual_seed(1)) >= first
    paths = torch.full((2, 2, 12), STAY)  # [agent, passage, step]
    for (agent, number), crossing in CROSSINGS.items():
        paths[agent, number - 1, : len(crossing)] = torch.tensor(crossing)
    actions = paths[torch.arange(2), drawn.long()]  # [num_envs, agent, step]
    total = sum(_act(env, actions[..., t])["reward"] for t in range(12))
    assert total.mean().item() == pytest.approx(env.imitation_return, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_prob": 0.7}, "`small_prob` <= 0.6, got 0.7"),
        ({"congestion_cost": 0.15}, "`congestion_cost` >= 2 .* got 0.15"),
        ({"max_steps": 8}, "`max_steps` >= 9, got 8"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "full_information_optimum",
        "decentralized_optimum",
        "imitation_return",
        "imitation_mode_return",
    ],
)
def test_optima_out_of_range(options, message, name):
    with pytest.raises(ValueError, match=message):
        getattr(BridgeCrossingEnv(**options), name)
