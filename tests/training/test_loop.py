"""The training loop: its files, its columns and its errors."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch._dynamo.utils import counters
from torchrl.data import Categorical
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import Transform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env, with_memory
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


def small_run(path, seed=0, loop=LOOP, name="agent_mixer", **options):
    torch.manual_seed(seed)
    env = make_env("grid/predator_prey", num_envs=4, seed=seed)
    eval_env = make_env("grid/predator_prey", num_envs=3, seed=seed)
    options = {"epochs": 2, "num_minibatches": 1, **options}
    algorithm = make_algorithm(name, env, loop.total_frames, options)
    run = RunDirectory(path)
    row = train(algorithm, env, eval_env, loop, run)
    return row, run, algorithm


NOISE = {"strength": {"start": 3.0, "end": 0.0, "until": 0.5}}  # until after two of three batches


@pytest.mark.parametrize(
    ("name", "options"), [("agent_mixer", NOISE), ("mappo", {}), ("mappo", {"share_params": True})]
)
def test_a_compiled_run_is_the_same(tmp_path, compiled, name, options):
    """With the operations of eager mode: policy and loss read what training changes."""
    _, _, expected = small_run(tmp_path / "eager", name=name, **options)
    assert not compiled
    _, _, got = small_run(tmp_path / "compiled", name=name, **options, compile=True)
    assert len(compiled) == 2
    assert got.state_dict().keys() == expected.state_dict().keys()
    for after, wanted in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(after, wanted, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("compiled")
def test_a_compiled_run_begins_without_code_of_earlier_runs(tmp_path):
    counters.clear()
    earlier, env = torch.compile(torch.sin), make_env("grid/predator_prey", num_envs=4)

    def stop(frames):
        raise InterruptedError

    for compiled, expected in ((False, 1), (True, 2)):
        algorithm = make_algorithm("mappo", env, 40, {"compile": compiled})
        run = RunDirectory(tmp_path / str(compiled))
        with pytest.raises(InterruptedError):  # before the first batch
            train(algorithm, env, env, LOOP, run, on_start=stop)
        earlier(torch.ones(2))
        assert counters["stats"]["unique_graphs"] == expected


@pytest.mark.soak
@pytest.mark.usefixtures("compiled")
def test_every_run_of_a_process_is_compiled(tmp_path):
    counters.clear()
    counts = []
    for seed in range(4):
        small_run(tmp_path / str(seed), seed, name="mappo", compile=True)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [counts[0] * (seed + 1) for seed in range(4)]


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


def test_every_evaluated_policy_has_columns(tmp_path, monkeypatch):
    evaluated = []

    def numbered(policy, env, **kwargs):
        evaluated.append(policy)
        return Evaluation(torch.full((3,), float(len(evaluated))), torch.ones(3))

    monkeypatch.setattr("torchrl_agentmixer.training.metrics.evaluate", numbered)
    once = LoopConfig(total_frames=40, frames_per_batch=40, eval_interval=40, eval_steps=5)
    row, _, algorithm = small_run(tmp_path, loop=once)
    prefixes = list(algorithm.evaluated_policies)
    assert prefixes == ["eval", "eval_joint", "eval_individual"]
    assert evaluated[:2] == [algorithm.execution_policy, algorithm.policy]
    assert [row[f"{prefix}_return"] for prefix in prefixes] == [1, 2, 3]


def test_without_a_joint_policy_there_are_no_joint_columns(tmp_path):
    row, _, _ = small_run(tmp_path, name="mappo")
    assert {name.rpartition("_")[0] for name in row if name.startswith("eval")} == {
        "eval",
        "eval_individual",
    }


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


def test_a_used_run_directory_is_an_error_and_stays(tmp_path):
    _, run, _ = small_run(tmp_path / "run")
    before = run.metrics_path.read_bytes()
    with pytest.raises(FileExistsError, match=r"metrics\.csv"):
        RunDirectory(run.path)
    assert run.metrics_path.read_bytes() == before


def test_a_folder_is_reserved_at_once(tmp_path):
    """Of two runs that start together, the second one writes nothing."""
    first = RunDirectory(tmp_path)
    with pytest.raises(FileExistsError, match=r"metrics\.csv"):
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
    algorithm = make_algorithm("agent_mixer", env, 120, {"epochs": 1, "num_minibatches": 1})
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


def first_episodes(policy, env, max_steps, seed):
    """Returns and lengths of the first episodes of a full rollout, by a loop."""
    env = with_memory(env, policy) if isinstance(policy, torch.nn.Module) else env
    env.set_seed(seed)
    torch.manual_seed(seed)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(max_steps, policy, break_when_any_done=False)
    returns, lengths = torch.zeros(env.batch_size), []
    for i, (rewards, done) in enumerate(
        zip(rollout["next", "reward"], rollout["next", "done"], strict=True)
    ):
        ends = done.squeeze(-1).nonzero().flatten().tolist()
        lengths.append(ends[0] + 1 if ends else max_steps)
        padded = torch.where(torch.arange(max_steps) < lengths[-1], rewards.squeeze(-1), 0)
        returns[i] = padded.sum()
    return returns, lengths


@pytest.mark.parametrize(
    ("name", "options", "memory"),
    [
        ("grid/predator_prey", {"max_steps": 20}, 0),
        ("grid/predator_prey", {"max_steps": 20}, 4),
        ("grid/bridge_crossing", {}, 0),
        ("memory/recall", {}, 4),
        ("vmas/predator_prey", {"max_steps": 20}, 0),
        ("vmas/predator_prey", {"max_steps": 60}, 0),
        ("vmas/simple_tag", {"max_steps": 10, "reward": "mean"}, 0),
    ],
)
def test_evaluation_equals_the_first_episodes_of_a_full_rollout(name, options, memory):
    """Bit for bit: environments that end early restart, and draw the same random numbers."""
    env = make_env(name, num_envs=16, seed=0, **options)
    torch.manual_seed(0)
    policy = make_algorithm("mappo", env, 100, {"memory_dim": memory}).policy
    result = evaluate(policy, env, max_steps=40, seed=7)
    returns, lengths = first_episodes(policy, env, 40, 7)
    assert torch.equal(result.returns, returns)
    assert result.lengths.tolist() == lengths


class CountedSteps(Transform):
    def __init__(self):
        super().__init__()
        self.count = 0

    def _step(self, tensordict, next_tensordict):
        self.count += 1
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


def test_evaluation_stops_when_all_first_episodes_have_ended():
    env = TransformedEnv(
        MatrixGameEnv(torch.full((2, 2), 3.0), num_envs=5), counted := CountedSteps()
    )
    result = evaluate(env.rand_action, env, max_steps=20)
    assert counted.count == 1
    assert result.returns.tolist() == [3.0] * 5
    assert result.lengths.tolist() == [1] * 5
    assert result.score == 3.0


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
    """Marks a game of climbing as won where the reward is 11."""

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


def test_win_rates_are_logged(tmp_path):
    torch.manual_seed(0)
    env, eval_env = (TransformedEnv(make_env("matrix/climbing", num_envs=20), Won()) for _ in "ab")
    algorithm = make_algorithm("mappo", env, 120, {"epochs": 1, "num_minibatches": 1})
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
