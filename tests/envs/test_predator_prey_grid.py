"""Predator-prey grid: comparison with a scalar implementation, and tests of each rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from tensordict import TensorDict

from torchrl_agentmixer.envs import PredatorPreyGridEnv

DOWN, LEFT, UP, RIGHT, STAY = range(5)
DELTA = {DOWN: (1, 0), LEFT: (0, -1), UP: (-1, 0), RIGHT: (0, 1), STAY: (0, 0)}
Cell = tuple[int, int]


@dataclass
class World:
    """One environment, in plain Python."""

    size: int
    predators: list[Cell]
    prey: list[Cell | None]  # None: captured
    penalty: float
    events: Counter
    capture_size: int = 2

    def neighbors(self, cell: Cell) -> int:
        return sum(abs(r - cell[0]) + abs(c - cell[1]) == 1 for r, c in self.predators)

    def free(self, cell: Cell) -> bool:
        inside = 0 <= cell[0] < self.size and 0 <= cell[1] < self.size
        return inside and cell not in self.predators and cell not in self.prey

    def step(self, actions: list[int], draws: list[list[int]]) -> float:
        reward = -0.01
        for i, action in enumerate(actions):
            target = _plus(self.predators[i], action)
            if self.free(target):
                self.predators[i] = target
            elif action != STAY:
                self.events["predator blocked"] += 1
        for j, cell in enumerate(self.prey):
            if cell is None:
                continue
            near = self.neighbors(cell)
            if 0 < near < self.capture_size:
                reward += self.penalty
                self.events["lone"] += 1
            if near >= self.capture_size:
                reward += 10.0
                self.prey[j] = None
                self.events["caught"] += 1
                continue
            for tried, move in enumerate(draws[j]):
                target = _plus(cell, move)
                if self.neighbors(target) == 0:
                    if self.free(target):
                        self.prey[j] = target
                    elif move != STAY:
                        self.events["prey blocked"] += 1
                    self.events["retried"] += tried > 0
                    break
            else:
                self.events["no safe move"] += 1
        return reward

    def view(self, i: int, side: int) -> list[float]:
        row, column = self.predators[i]
        span = range(-(side // 2), side // 2 + 1)
        return [float((row + r, column + c) in self.prey) for r in span for c in span]


def _plus(cell: Cell, move: int) -> Cell:
    return cell[0] + DELTA[move][0], cell[1] + DELTA[move][1]


def _read(env: PredatorPreyGridEnv, state: torch.Tensor) -> tuple[list, list, float]:
    """Predators, prey and time of one environment, from its state."""
    n, m = env.n_agents, env.n_prey
    state = state[n * env._view_cells :]
    cells = (state[: 2 * (n + m)] * (env.grid_size - 1)).round().long().unflatten(0, (-1, 2))
    cells = [tuple(cell) for cell in cells.tolist()]
    alive = state[2 * (n + m) : -1].bool().tolist()
    prey = [cell if there else None for cell, there in zip(cells[n:], alive, strict=True)]
    return cells[:n], prey, float(state[-1])


def _place(env: PredatorPreyGridEnv, predators: list[Cell], prey: list[Cell]) -> None:
    cells = [(r + env._margin) * env._width + c + env._margin for r, c in [*predators, *prey]]
    env.reset()
    env._cells = torch.tensor(cells).expand(env.batch_size[0], -1).clone()


def _step(env: PredatorPreyGridEnv, actions) -> TensorDict:
    actions = torch.as_tensor(actions).expand(env.batch_size[0], env.n_agents)
    data = TensorDict({"agents": {"action": actions}}, batch_size=env.batch_size)
    return env.step(data)["next"]


@pytest.mark.parametrize(
    ("grid_size", "n_predators", "n_prey", "view", "capture_size"),
    [
        (5, 2, 1, 5, 2),
        (4, 3, 2, 3, 2),
        (3, 2, 3, 5, 2),
        (6, 4, 3, 1, 2),
        (2, 2, 1, 7, 2),
        (3, 3, 2, 3, 3),
        (4, 2, 2, 3, 1),
    ],
)
def test_transitions_match_a_scalar_transcription(
    grid_size, n_predators, n_prey, view, capture_size, monkeypatch
):
    num_envs, steps = 40, 40
    env = PredatorPreyGridEnv(
        num_envs=num_envs,
        grid_size=grid_size,
        n_predators=n_predators,
        n_prey=n_prey,
        view=view,
        capture_size=capture_size,
        penalty=-1.5,
        max_steps=20,
        seed=0,
    )
    drawn = []
    draw = env._draw_prey_moves
    monkeypatch.setattr(env, "_draw_prey_moves", lambda: drawn.append(draw()) or drawn[-1])
    data, events = env.reset(), Counter()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        before = data["state"]
        actions = torch.randint(5, (num_envs, n_predators), generator=generator)
        data["agents", "action"] = actions
        stepped, data = env.step_and_maybe_reset(data)
        after = stepped["next"]
        for k in range(num_envs):
            predators, prey, time = _read(env, before[k])
            world = World(grid_size, predators, prey, -1.5, events, capture_size)
            reward = world.step(actions[k].tolist(), drawn[-1][k].tolist())
            assert _read(env, after["state"][k])[:2] == (world.predators, world.prey)
            assert after["reward"][k].item() == pytest.approx(reward, abs=1e-5)
            over = all(cell is None for cell in world.prey)
            assert after["terminated"][k].item() == over
            assert after["truncated"][k].item() == (round(time * 20) + 1 == 20 and not over)
            for i in range(n_predators):
                row, column = world.predators[i]
                scale = grid_size - 1
                expected = [row / scale, column / scale, *world.view(i, view), time + 1 / 20]
                assert after["agents", "observation"][k, i].tolist() == pytest.approx(expected)
            there = world.predators + [cell for cell in world.prey if cell]
            assert len(set(there)) == len(there)  # no shared cells
    needed = {"predator blocked", "caught", "retried"}
    if capture_size > 1:
        needed |= {"lone", "no safe move"}
    assert not needed - {kind for kind, count in events.items() if count > 5}


@pytest.mark.parametrize(("penalty", "reward"), [(0.0, -0.01), (-1.0, -1.01), (-1.5, -1.51)])
def test_one_predator_pays_the_penalty(penalty, reward):
    env = PredatorPreyGridEnv(penalty=penalty, seed=0)
    _place(env, [(2, 1), (4, 4)], [(2, 2)])
    after = _step(env, [STAY, STAY])
    assert after["reward"].item() == pytest.approx(reward)
    assert not after["done"].item()


def test_two_predators_capture():
    env = PredatorPreyGridEnv(penalty=-1.0, seed=0)
    _place(env, [(2, 0), (3, 2)], [(2, 2)])
    after = _step(env, [RIGHT, STAY])  # the first arrives in this step
    assert after["reward"].item() == pytest.approx(9.99)
    assert after["terminated"].item()
    assert after["state"][0, 54:57].tolist() == [0, 0, 0]
    assert not after["agents", "observation"][..., 2:27].any()


@pytest.mark.parametrize(
    ("predators", "mean"), [([(2, 1), (4, 4)], -1.51), ([(2, 1), (3, 2)], 9.99)]
)
def test_a_spread_pays_by_a_fair_coin(predators, mean):
    env = PredatorPreyGridEnv(num_envs=2000, penalty=-1.5, spread=5.0, seed=0)
    _place(env, predators, [(2, 2)])
    rewards = _step(env, [STAY, STAY])["reward"].flatten()
    assert sorted({round(value, 2) for value in rewards.tolist()}) == [mean - 5, mean + 5]
    # 5 standard errors of a fair coin: fails by chance once in 10^6.
    assert abs((rewards > mean).float().mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_a_spread_pays_nothing_where_nothing_happens():
    env = PredatorPreyGridEnv(num_envs=50, spread=5.0, seed=0)
    _place(env, [(0, 0), (4, 4)], [(2, 2)])
    assert (_step(env, [STAY, STAY])["reward"] == -0.01).all()


def test_state_contains_every_view():
    env = PredatorPreyGridEnv(num_envs=7, n_predators=3, view=3, seed=0)
    data = env.rollout(20)
    views = data["agents", "observation"][..., 2:-1]
    assert views.any()
    assert torch.equal(data["state"][..., : 3 * 9], views.flatten(-2))


def test_diagonal_cells_are_not_neighbors():
    env = PredatorPreyGridEnv(penalty=-1.0, seed=0)
    _place(env, [(1, 1), (3, 3)], [(2, 2)])
    assert _step(env, [STAY, STAY])["reward"].item() == pytest.approx(-0.01)


def test_predators_move_in_order():
    env = PredatorPreyGridEnv(seed=0)
    _place(env, [(0, 0), (0, 1)], [(4, 4)])
    after = _step(env, [RIGHT, RIGHT])  # the first is blocked by the second, which moves later
    assert _read(env, after["state"][0])[0] == [(0, 0), (0, 2)]
    _place(env, [(0, 1), (0, 0)], [(4, 4)])
    after = _step(env, [RIGHT, RIGHT])  # the first moves out of the way
    assert _read(env, after["state"][0])[0] == [(0, 2), (0, 1)]


def test_a_cornered_prey_stays():
    env = PredatorPreyGridEnv(num_envs=200, penalty=-1.0, seed=0)
    _place(env, [(2, 0), (4, 4)], [(0, 0)])
    after = _step(env, [STAY, STAY])
    cells = {_read(env, state)[1][0] for state in after["state"]}
    assert cells == {(0, 0), (0, 1)}  # (1, 0) is next to a predator


def test_move_probabilities_of_prey():
    env = PredatorPreyGridEnv(num_envs=20_000, seed=0, prey_move_probs=(0.1, 0.2, 0.3, 0.4, 0.0))
    share = env._draw_prey_moves().flatten().bincount(minlength=5) / (5 * 20_000)
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]), atol=0.01, rtol=0)


def test_starting_positions_are_apart_and_uniform():
    env = PredatorPreyGridEnv(num_envs=5_000, seed=0)
    state = env.reset()["state"]
    counts = Counter()
    for k in range(5_000):
        predators, prey, time = _read(env, state[k])
        assert len({*predators, *prey}) == 3
        assert time == 0
        for r, c in predators:
            assert abs(r - prey[0][0]) + abs(c - prey[0][1]) > 1
        counts[predators[0]] += 1
    assert len(counts) == 25
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_starting_positions_on_a_full_grid():
    env = PredatorPreyGridEnv(num_envs=20, grid_size=2, n_predators=2, n_prey=2, seed=0)
    for state in env.reset()["state"]:
        predators, prey, _ = _read(env, state)
        assert len({*predators, *prey}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_predators": 0}, "`n_predators` >= 1, got 0"),
        ({"n_prey": 0}, "`n_prey` >= 1, got 0"),
        ({"max_steps": 0}, "`max_steps` >= 1, got 0"),
        ({"grid_size": 1}, "`grid_size` >= 2.*got 1"),
        ({"grid_size": 2, "n_prey": 3}, "room for 2 predators and 3 prey, got 2"),
        ({"view": 4}, "`view` >= 1, odd, got 4"),
        ({"capture_size": 5}, "`capture_size` from 1 to 4.*got 5"),
        ({"penalty": 1.0}, "`penalty` <= 0.*got 1.0"),
        ({"prey_move_probs": (0.5, 0.5)}, r"`prey_move_probs`.* got \(0.5, 0.5\)"),
        (
            {"prey_move_probs": (0.5, 0.5, 0.5, 0, 0)},
            r"`prey_move_probs`.* got \(0.5, 0.5, 0.5, 0, 0\)",
        ),
        (
            {"prey_move_probs": (1.5, -0.5, 0, 0, 0)},
            r"`prey_move_probs`.* got \(1.5, -0.5, 0, 0, 0\)",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PredatorPreyGridEnv(**options)
