"""The benchmark of plans on bridge crossing: returns and best responses are exact."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_agentmixer.envs import BridgeCrossingEnv
from torchrl_agentmixer.experiment import load_run
from torchrl_agentmixer.training import evaluate

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import bridge_plans  # noqa: E402

DOWN, LEFT, UP, RIGHT, STAY = range(5)
FRAMES = ("frames_per_batch", "total_frames", "eval_interval")
PASSAGES = {
    "A": ([UP, RIGHT, RIGHT, RIGHT, DOWN], [DOWN, DOWN, RIGHT, RIGHT, RIGHT, UP, UP]),
    "B": ([UP, LEFT, LEFT, LEFT, DOWN], [DOWN, DOWN, LEFT, LEFT, LEFT, UP, UP]),
}


def cells(agent: str, passage: int, steps: int) -> list[bridge_plans.Cell]:
    """A crossing by a passage; 0 stays at the start."""
    way = [bridge_plans.STARTS["AB".index(agent)]]
    for action in PASSAGES[agent][passage - 1] if passage else []:
        way.append(bridge_plans.moved(way[-1], action))
    return way + way[-1:] * (steps + 1 - len(way))


def team_of(small_a, big_a, small_b, big_b, steps=12):
    return (
        (cells("A", small_a, steps), cells("A", big_a, steps)),
        (cells("B", small_b, steps), cells("B", big_b, steps)),
    )


def test_known_returns():
    team = bridge_plans.Team(BridgeCrossingEnv(small_prob=0.6))
    apart, together = team_of(1, 1, 2, 2), team_of(1, 1, 1, 1)
    assert team.value(apart) == pytest.approx(-1.2)  # the decentralized optimum
    assert [team.best_response(i, apart) for i in (0, 1)] == pytest.approx([-1.2, -1.2])
    assert team.value(together) == pytest.approx(-1.0 - 0.64 * 4 * 0.5)
    assert [team.best_response(i, together) for i in (0, 1)] == pytest.approx([-1.2, -1.2])
    waits = team_of(0, 2, 1, 1)  # small A never starts: 12 steps instead of 7
    assert team.value(waits) == pytest.approx(-1.2 - 0.6 * 5 * 0.1)
    assert [team.best_response(i, waits) for i in (0, 1)] == pytest.approx([-1.2, -1.5])


def test_best_response_is_the_best_of_all_plans():
    env = BridgeCrossingEnv(small_prob=0.3, max_steps=7)
    team = bridge_plans.Team(env)
    plans = team_of(2, 1, 1, 0, steps=7)
    plans[0][1][2:] = plans[0][1][:1] * 6  # big A turns back: B waits for a step
    ways = set()
    for actions in itertools.product(range(5), repeat=7):
        way = [bridge_plans.STARTS[1]]
        for action in actions:
            arrived = way[-1] == bridge_plans.GOALS[1]
            way.append(way[-1] if arrived else bridge_plans.moved(way[-1], action))
        ways.add(tuple(way))
    # What the plan of one size is worth does not depend on that of the other.
    small, big = plans[1]
    small = max(ways, key=lambda way: team.value((plans[0], (way, big))))
    big = max(ways, key=lambda way: team.value((plans[0], (small, way))))
    best = team.value((plans[0], (small, big)))
    assert team.best_response(1, plans) == pytest.approx(best)


def test_plans_of_a_policy_have_its_return():
    torch.manual_seed(3)
    table = torch.randint(5, (2, 2, 4, 4))  # actions by agent, size, row, column

    def act(observation):
        row, column = (observation[..., :2] * 3).round().long().unbind(-1)
        return table[torch.arange(2), observation[..., 2].long(), row, column]

    policy = TensorDictModule(
        act, in_keys=[("agents", "observation")], out_keys=[("agents", "action")]
    )
    env = BridgeCrossingEnv(num_envs=4_000, small_prob=0.6, seed=0)
    plans = bridge_plans.plans_of(policy, env.max_steps)
    sampled = evaluate(policy, env, max_steps=env.max_steps).returns.mean().item()
    assert bridge_plans.Team(env).value(plans) == pytest.approx(sampled, 0.05)


def test_script(tmp_path, run_script):
    run = tmp_path / "run"
    small = ("env.num_envs=2", *(f"env.{key}=20" for key in FRAMES))
    train = ("algorithm=mappo", "algorithm.num_minibatches=1", "plots=false")
    run_script("examples/train.py", "env=bridge_crossing", *train, *small, f"hydra.run.dir={run}")
    output = run_script("benchmarks/bridge_plans.py", run)
    algorithm, env, _ = load_run(run)
    team = bridge_plans.Team(env)
    value = team.value(bridge_plans.plans_of(algorithm.execution_policy, env.max_steps))
    row = output.splitlines()[-1].split(" | ")
    assert row[1] == f"{value:.2f}"
    assert all(float(best) >= float(row[1]) for best in row[2:4])
    other = tmp_path / "other"
    run_script("examples/train.py", "env=climbing", *train, *small, f"hydra.run.dir={other}")
    with pytest.raises(SystemExit, match="expected a run on grid/bridge_crossing"):
        bridge_plans.row_of(other)


@pytest.mark.parametrize("option", ["algorithm.memory_dim=4", "normalize_observations=true"])
def test_other_observations_are_refused(tmp_path, run_script, option):
    small = ("env.num_envs=2", *(f"env.{key}=20" for key in FRAMES), f"hydra.run.dir={tmp_path}")
    train = ("algorithm=mappo", "algorithm.num_minibatches=1", "plots=false", option)
    run_script("examples/train.py", "env=bridge_crossing", *train, *small)
    with pytest.raises(SystemExit, match="observations alone, not normalized"):
        bridge_plans.row_of(tmp_path)
