"""Example scripts."""

from __future__ import annotations

import difflib
import logging
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_agentmixer.algorithms import MAPPO, PPOConfig, registry
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.reporting import read_metrics

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "asymmetric_learning_failure.py",
    "compose_by_hand.py",
    "correlate_frozen_actors.py",
    "drop_in.py",
    "evaluate_decentralized.py",
    "export_actors.py",
    "own_joint_policy.py",
    "own_method.py",
    "ppo_trainer.py",
    "run_exported_team.py",
)


SHORT = (
    "env.total_frames=800",
    "env.frames_per_batch=400",
    "env.eval_interval=400",
    "env.eval_envs=2",
    "env.eval_steps=3",
    "env.num_envs=20",
    "num_threads=1",
)


@pytest.fixture
def train(run_script):
    """A short run in ``folder / "run"``."""

    def train(folder, *overrides, ok=True):
        run = f"hydra.run.dir={folder}/run"
        return run_script("examples/train.py", run, *SHORT, *overrides, ok=ok)

    return train


def test_from_a_shell(tmp_path):
    """Without warnings, also with the nested transforms of memory and normalization."""
    overrides = (*SHORT, f"hydra.run.dir={tmp_path}/run", "env=climbing", "algorithm=mappo")
    overrides += ("algorithm.memory_dim=4", "normalize_observations=true")
    command = [sys.executable, "-W", "error::UserWarning", "examples/train.py", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run")["frames"] == [400, 800]
    assert f"run directory: {tmp_path / 'run'}" in done.stdout


def test_a_script_in_this_process_closes_no_log_handler(tmp_path, train):
    """Hydra closes all that it finds."""
    closed = []
    handler = logging.StreamHandler()
    handler.close = lambda: closed.append(handler)
    train(tmp_path, "algorithm.name=mapo", ok=False)
    assert not closed


@pytest.mark.parametrize("name", SCRIPTS)
def test_user_scripts_are_short(name):
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 80


def test_compose_by_hand(run_script):
    assert "payoff of the decentralized modes" in run_script(
        "examples/compose_by_hand.py", "--frames", 800
    )


def test_asymmetric_learning_failure(tmp_path, run_script):
    output = run_script(
        "examples/asymmetric_learning_failure.py", "--frames", 5_000, "--out", tmp_path / "out"
    )
    printed = dict(line.rsplit(maxsplit=1) for line in output.splitlines())
    expected = {
        "full_information_optimum": -1.128,
        "decentralized_optimum": -1.2,
        "imitation_mode_return": -1.56,
    }
    for method in ("ail", "agent_mixer"):
        metrics = read_metrics(tmp_path / "out" / method)
        expected[f"{method}, joint"] = metrics["eval_joint_return"][-1]
        expected[f"{method}, decentralized"] = metrics["eval_return"][-1]
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(
        expected, abs=1e-3
    )
    assert (tmp_path / "out/picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_drop_in(actions, run_script):
    output = run_script("examples/drop_in.py", "--actions", actions, "--frames", 3200)
    assert "team reward per step" in output


@pytest.fixture
def own_registry(monkeypatch):
    """Scripts register algorithms for this test only."""
    monkeypatch.setattr(registry, "_ALGORITHMS", dict(registry._ALGORITHMS))


@pytest.mark.usefixtures("own_registry")
def test_own_method(run_script):
    output = run_script("examples/own_method.py", "--seeds", 0, "--frames", 2_500)
    assert re.findall(r"^\w+(?=: payoff of the modes)", output, re.M) == [
        "mappo",
        "lenient_mappo",
    ]


def test_own_method_without_leniency_is_mappo():
    script = runpy.run_path(str(ROOT / "examples/own_method.py"))
    env, configs = make_env("matrix/climbing", num_envs=20, seed=0), {}
    for leniency in (0.0, 1.0):
        config = script["LenientMAPPOConfig"](leniency=leniency, num_minibatches=1)
        configs[leniency] = script["LenientMAPPO"], config
    configs["mappo"] = MAPPO, PPOConfig(num_minibatches=1)
    found = {}
    for name, (cls, config) in configs.items():
        torch.manual_seed(0)
        algorithm = cls(env, 100, config)
        algorithm.update(env.rollout(1, algorithm.policy).detach())
        found[name] = torch.cat([p.flatten() for p in algorithm.policy.parameters()])
    assert torch.equal(found[0.0], found["mappo"])
    assert not torch.equal(found[1.0], found["mappo"])


@pytest.mark.usefixtures("own_registry")
def test_own_joint_policy(run_script):
    pytest.importorskip("vmas")
    output = run_script("examples/own_joint_policy.py", "--frames", 20_000)
    names = ["agent_mixer_continuous", "relative_scale"]
    assert re.findall(r"^\w+(?=: return of the modes)", output, re.M) == names


def test_ppo_trainer_trains_what_is_deployed(tmp_path):
    """In a process of its own: TorchRL's configs register a group `logger` with Hydra for good."""
    command = [sys.executable, "examples/ppo_trainer.py", "frames=120", "env.num_envs=10"]
    command += ["collector.frames_per_batch=60", "replay_buffer.batch_size=30"]
    command += [f"hydra.run.dir={tmp_path}"]
    output = subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.STDOUT)
    before, after = re.search(r"modes: (\S+) before, (\S+) after", output).groups()
    assert float(before) != float(after)


def test_correlation_leaves_the_frozen_actors_as_they_are():
    main = runpy.run_path(str(ROOT / "examples/correlate_frozen_actors.py"))["main"]
    policy, frozen, scores = main(seed=0, frames=5_000)
    (actors,) = policy.actors
    for before, after in zip(frozen.values(), actors.state_dict().values(), strict=True):
        assert before.equal(after)
    assert all(p.grad is not None and p.grad.any() for p in policy.modifier.heads.parameters())
    assert scores.keys() == {f"{a}, {b}" for a in ("frozen", "joint") for b in ("sampled", "modes")}


def test_pictures(tmp_path, run_script):
    run_script("examples/pictures.py", "--frames", 2_500, "--out", tmp_path)
    for name in ("climbing_policies.png", "modifier_along_an_episode.png"):
        assert 5_000 < (tmp_path / name).stat().st_size < 150_000


@pytest.mark.parametrize(
    ("script", "actions"),
    [
        ("plain_mappo", "continuous"),
        ("plain_mappo_agentmixer", "continuous"),
        ("plain_mappo_agentmixer", "discrete"),
    ],
)
def test_existing_script(script, actions):
    main = runpy.run_path(str(ROOT / f"examples/{script}.py"))["main"]
    assert math.isfinite(main(actions, frames=6_000, seed=0))


def test_existing_script_changes_by_as_many_lines_as_its_page_says():
    """Docstrings aside."""
    code = [
        (ROOT / f"examples/{name}.py").read_text().partition("from __future__")[2].splitlines()
        for name in ("plain_mappo", "plain_mappo_agentmixer")
    ]
    marks = [line[0] for line in difflib.ndiff(*code) if line.strip("+- ")]
    assert (marks.count("+"), marks.count("-")) == (13, 9)


@pytest.mark.parametrize(
    ("env", "algorithm"),
    [
        ("vmas_predator_prey", "agent_mixer_continuous"),
        ("grid_predator_prey", "agent_mixer_paper"),
        ("climbing", "mappo"),
        ("penalty", "ippo"),
        ("penalty", "mat"),
        ("bridge_crossing", "agent_mixer"),
    ],
)
def test_train_then_evaluate(tmp_path, train, run_script, env, algorithm):
    output = train(tmp_path, f"env={env}", f"algorithm={algorithm}", "algorithm.epochs=1")
    folder = tmp_path / "run"
    for name in ("learning_curve.png", "decentralized.gif", "algorithm.pt", "config.json"):
        assert (folder / name).stat().st_size > 0, name
    assert str(folder) in output
    assert read_metrics(folder)["frames"] == [400, 800]
    loaded = run_script("examples/evaluate_decentralized.py", folder, "--episodes", 3)
    assert "reads [('agents', 'observation')]" in loaded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.learning_rate=1", "learning_rate"),
        ("env=unknown_env", "unknown_env"),
        ("env.name=vmas/predator_pray", "did you mean 'vmas/predator_prey'"),
        ("+env.kwargs.penalti=-1", "did you mean 'penalty'"),
        ("algorithm.name=mapo", "did you mean 'mappo'"),
    ],
)
def test_bad_configuration_is_explained(tmp_path, train, override, words):
    assert words in train(tmp_path, override, ok=False)


def without_rates(folder):
    return {k: v for k, v in read_metrics(folder).items() if not k.startswith("fps")}


def test_resume_by_the_run_directory(tmp_path, train, run_script):
    options = (
        "env=grid_predator_prey",
        "algorithm=agent_mixer",
        "algorithm.epochs=1",
        "plots=false",
    )
    train(tmp_path / "whole", *options)
    output = train(tmp_path, *options, "max_time=1e-6")
    cut = tmp_path / "run"
    assert "1e-06 s at frame 400" in output
    assert not (cut / "algorithm.pt").exists()
    # With the saved config:
    output = run_script("examples/train.py", f"resume={cut}", f"hydra.run.dir={tmp_path / 'hydra'}")
    assert "resumed from the checkpoint at frame 400" in output
    assert without_rates(cut) == without_rates(tmp_path / "whole" / "run")
    # A complete run does not change.
    before = (cut / "metrics.csv").read_text()
    train(tmp_path, *options, "auto_resume=true")
    assert (cut / "metrics.csv").read_text() == before


def test_auto_resume_starts_and_resumes(tmp_path, train):
    options = ("env=climbing", "algorithm=mappo", "plots=false", "auto_resume=true")
    train(tmp_path, *options, "max_time=1e-6")
    output = train(tmp_path, *options)
    assert "resumed from the checkpoint at frame 400" in output
    assert read_metrics(tmp_path / "run")["frames"] == [400, 800]


def test_another_config_cannot_be_resumed(tmp_path, train):
    options = ("env=climbing", "algorithm=mappo", "plots=false", "auto_resume=true")
    train(tmp_path, *options, "max_time=1e-6")
    before = (tmp_path / "run" / "metrics.csv").read_text()
    output = train(tmp_path, *options, "algorithm.lr=0.25", ok=False)
    assert "algorithm.lr: 0.0005 then, 0.25 now" in output
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_resume_of_a_missing_directory_fails(tmp_path, train):
    output = train(tmp_path, f"resume={tmp_path / 'none'}", ok=False)
    assert f"{tmp_path / 'none'}: expected a run directory" in output
    assert not (tmp_path / "none").exists()
