"""The loop: what it writes, what it counts, and what it refuses."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torchrl.data import Categorical
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import Transform

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env
from torchrl_agentmixer.reporting import plot_learning_curve, read_metrics, results_table
from torchrl_agentmixer.training import (
    Evaluation,
    LoopConfig,
    RunDirectory,
    evaluate,
    record_gif,
    train,
)

LOOP = LoopConfig(total_frames=120, frames_per_batch=40, eval_interval=80, eval_steps=5)


def small_run(path, seed=0, loop=LOOP, name="agent_mixer"):
    torch.manual_seed(seed)
    env = make_env("grid/predator_prey", num_envs=4, seed=seed)
    eval_env = make_env("grid/predator_prey", num_envs=3, seed=seed)
    algorithm = make_algorithm(name, env, loop.total_frames, {"epochs": 2})
    run = RunDirectory(path)
    row = train(algorithm, env, eval_env, loop, run)
    return row, run, algorithm


def without_rates(path):
    return {k: v for k, v in read_metrics(path).items() if not k.startswith("fps")}


def test_writes_metrics_evaluations_and_parameters(tmp_path):
    row, run, algorithm = small_run(tmp_path / "run")
    metrics = read_metrics(run.path)
    assert metrics["frames"] == [40, 80, 120]
    assert row["frames"] == 120
    for name in ("eval_return", "eval_joint_score", "eval_individual_score"):
        evaluated = [value is not None for value in metrics[name]]
        assert evaluated == [False, True, True]
    for name in (
        "entropy",
        "ratio",
        "kl",
        "clip_fraction",
        "mode_agreement",
        "divergence",
        "fps",
        "fps_collect",
        "fps_update",
        "fps_evaluate",
        "team_mode_agreement",
    ):
        assert all(value is not None for value in metrics[name]), name
    with run.episodes_path.open() as file:
        episodes = list(csv.DictReader(file))
    assert [int(e["frames"]) for e in episodes] == [80] * 3 + [120] * 3
    saved = torch.load(run.path / "algorithm.pt", weights_only=True)
    current = algorithm.state_dict()
    assert all(torch.equal(saved[key], current[key]) for key in current)


@pytest.mark.parametrize("name", ["agent_mixer", "mappo"])
def test_evaluates_executed_joint_and_individual_policies(tmp_path, monkeypatch, name):
    """The joint one apart only where there is one."""
    evaluated = []

    def numbered(policy, env, *, deterministic, **kwargs):
        evaluated.append((policy, deterministic))
        return Evaluation(torch.full((3,), float(len(evaluated))), torch.ones(3))

    monkeypatch.setattr("torchrl_agentmixer.training.metrics.evaluate", numbered)
    once = LoopConfig(total_frames=40, frames_per_batch=40, eval_interval=40, eval_steps=5)
    row, _, algorithm = small_run(tmp_path, loop=once, name=name)
    policies = [(algorithm.execution_policy, True), (algorithm.individual_policy, False)]
    if name == "agent_mixer":
        policies.insert(1, (algorithm.policy, True))
    assert evaluated == policies
    number = (row["eval_return"], row["eval_joint_return"], row["eval_individual_return"])
    assert number == ((1, 2, 3) if name == "agent_mixer" else (1, 1, 2))


def test_same_seed_same_csv(tmp_path):
    for name in ("a", "b"):
        small_run(tmp_path / name, seed=5)
    small_run(tmp_path / "c", seed=6)
    assert without_rates(tmp_path / "a") == without_rates(tmp_path / "b")
    assert without_rates(tmp_path / "a") != without_rates(tmp_path / "c")


def test_evaluating_more_often_does_not_change_training(tmp_path):
    often = LoopConfig(total_frames=120, frames_per_batch=40, eval_interval=40, eval_steps=5)
    small_run(tmp_path / "a")
    small_run(tmp_path / "b", loop=often)
    a, b = without_rates(tmp_path / "a"), without_rates(tmp_path / "b")
    assert a["loss_objective"] == b["loss_objective"]
    assert a["score"] == b["score"]


def test_refuses_a_used_run_directory_and_keeps_it(tmp_path):
    _, run, _ = small_run(tmp_path / "run")
    before = run.metrics_path.read_bytes()
    with pytest.raises(FileExistsError, match="results of another run"):
        RunDirectory(run.path)
    assert run.metrics_path.read_bytes() == before


def test_a_folder_is_claimed_before_anything_is_written(tmp_path):
    """Two runs that start at once: the second writes nothing, not even its config."""
    first = RunDirectory(tmp_path)
    with pytest.raises(FileExistsError, match=r"or its claim, an empty metrics\.csv"):
        RunDirectory(tmp_path)
    first.log({"frames": 1})
    assert first.metrics_path.read_text() == "frames\n1\n"


class _Poison(Transform):
    """Replaces an entry by NaN from the given step on."""

    def __init__(self, key, after):
        super().__init__(in_keys=[key], out_keys=[key])
        self.after, self.count = after, 0

    def _step(self, tensordict, next_tensordict):
        self.count += 1
        if self.count > self.after:
            key = self.in_keys[0]
            next_tensordict.set(key, torch.full_like(next_tensordict.get(key), torch.nan))
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("reward", FloatingPointError, "reward"),
        (("agents", "observation"), (FloatingPointError, ValueError), "observation|logits"),
        ("state", (FloatingPointError, ValueError), "state|perturbation"),
    ],
)
def test_nan_stops_with_its_name_and_keeps_results(tmp_path, key, error, words):
    env = TransformedEnv(make_env("grid/predator_prey", num_envs=4, seed=0), _Poison(key, 15))
    algorithm = make_algorithm("agent_mixer", env, 120, {"epochs": 1})
    run = RunDirectory(tmp_path)
    with pytest.raises(error, match=words):
        train(algorithm, env, make_env("grid/predator_prey", num_envs=2), LOOP, run)
    assert read_metrics(tmp_path)["frames"] == [40]


def test_nan_parameters_stop_with_a_clear_error(tmp_path):
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    algorithm = make_algorithm("mappo", env, 120)
    with torch.no_grad():
        next(algorithm.policy.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="expected finite `logits`, got nan"):
        train(algorithm, env, env, LOOP, RunDirectory(tmp_path))


def test_frames_must_fit_the_environments(tmp_path):
    loop = LoopConfig(total_frames=100, frames_per_batch=10, eval_interval=10, eval_steps=1)
    env = make_env("grid/predator_prey", num_envs=4)
    algorithm = make_algorithm("mappo", env, 100)
    with pytest.raises(ValueError, match=r"multiple of 4 environments, got 10"):
        train(algorithm, env, env, loop, RunDirectory(tmp_path))
    with pytest.raises(ValueError, match="eval_interval"):
        LoopConfig(total_frames=1, frames_per_batch=1, eval_interval=0, eval_steps=1)


def test_evaluation_counts_first_episodes_only():
    """A game lasts one step: later steps of a rollout belong to other episodes."""
    env = MatrixGameEnv(torch.full((2, 2), 3.0), num_envs=5)
    result = evaluate(lambda td: env.rand_action(td), env, max_steps=4)
    assert result.returns.tolist() == [3.0] * 5
    assert result.lengths.tolist() == [1] * 5
    assert result.score == 3.0


def test_evaluation_against_a_loop_over_environments():
    env = make_env("grid/predator_prey", num_envs=16, penalty=-1.0, max_steps=20)
    policy = lambda td: td.set(  # noqa: E731
        ("agents", "action"), (td["agents", "observation"].sum(-1) * 7).long() % 5
    )
    result = evaluate(policy, env, max_steps=40, seed=7)
    env.set_seed(7)
    rollout = env.rollout(40, policy, break_when_any_done=False)
    for i in range(16):
        total, length = 0.0, 0
        for t in range(40):
            total += rollout["next", "reward"][i, t].item()
            length += 1
            if rollout["next", "done"][i, t].item():
                break
        assert result.returns[i].item() == pytest.approx(total, abs=1e-4)
        assert result.lengths[i].item() == length


def test_evaluation_by_modes_or_by_samples():
    """A policy whose mode earns 0 and whose samples often earn 1."""
    env = MatrixGameEnv(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), num_envs=400)
    policy = AgentMixerPolicy.from_env(env)
    for module in policy.actors:
        for parameter in module.parameters():
            parameter.data.zero_()
    individual = policy.decentralized(deterministic=False)
    assert evaluate(individual, env, max_steps=1).score == 0.0
    sampled = evaluate(individual, env, max_steps=1, deterministic=False).score
    assert sampled == pytest.approx(0.75, abs=0.1)


def test_evaluation_leaves_the_global_generator_alone():
    env = make_env("vmas/predator_prey", num_envs=2, seed=0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    evaluate(lambda td: env.rand_action(td), env, max_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_plots_table_and_animation(tmp_path):
    _, run, algorithm = small_run(tmp_path / "run")
    run.save_config(
        {"env": {"name": "grid/predator_prey"}, "algorithm": {"name": "agent_mixer"}, "seed": 0}
    )
    assert plot_learning_curve(run.path).stat().st_size > 1000
    table = results_table([run.path]).splitlines()
    assert "grid/predator_prey" in table[-1]
    assert "| 120 |" in table[-1]
    env = make_env("grid/predator_prey", num_envs=2)
    gif = record_gif(algorithm.execution_policy, env, tmp_path / "a.gif", max_steps=3)
    assert gif.read_bytes()[:3] == b"GIF"
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        read_metrics(tmp_path)


def test_log_rejects_other_columns(tmp_path):
    run = RunDirectory(tmp_path)
    run.log({"frames": 1, "a": 2.0})
    with pytest.raises(KeyError, match="differ"):
        run.log({"frames": 2, "b": 2.0})
    assert len(run.metrics_path.read_text().splitlines()) == 2


class Won(Transform):
    """Calls a game of climbing won where it pays 11."""

    def _call(self, next_tensordict):
        reward = next_tensordict.get("reward", None)
        flags = torch.zeros(*self.parent.batch_size, 1, dtype=torch.bool)
        return next_tensordict.set("battle_won", flags if reward is None else reward > 10)

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        shape = (*observation_spec.shape, 1)
        observation_spec["battle_won"] = Categorical(2, shape=shape, dtype=torch.bool)
        return observation_spec


def test_win_rates_are_logged_where_battles_are_won(tmp_path):
    torch.manual_seed(0)
    env, eval_env = (TransformedEnv(make_env("matrix/climbing", num_envs=20), Won()) for _ in "ab")
    algorithm = make_algorithm("mappo", env, 120, {"epochs": 1})
    config = LoopConfig(total_frames=120, frames_per_batch=40, eval_interval=80, eval_steps=1)
    train(algorithm, env, eval_env, config, RunDirectory(tmp_path))
    metrics = read_metrics(tmp_path)
    returns, rates = metrics["eval_return"], metrics["eval_win_rate"]
    assert rates[0] is None
    for total, rate in zip(returns[1:], rates[1:], strict=True):
        assert rate == (total == 11)  # the modes of one state: all episodes are alike
    assert all(0 <= rate < 0.5 for rate in metrics["win_rate"])
    assert any(rate > 0 for rate in metrics["win_rate"])
    with (tmp_path / "evaluation.csv").open() as file:
        assert {row["won"] for row in csv.DictReader(file)} <= {"0", "1"}
    (tmp_path / "config.json").write_text(
        json.dumps({"env": {"name": "x"}, "algorithm": {"name": "y"}, "seed": 0})
    )
    assert "win rate" in results_table([tmp_path])
