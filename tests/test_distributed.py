"""Several ranks train one policy, equal to one process with all their batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import (
    make_env,
    normalize_observations,
    observation_normalizer,
    with_memory,
)
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunCheckpoints, RunDirectory, train

ROOT = Path(__file__).parents[1]


def on_two_ranks(folder, work, *args):
    """Results of ``work(*args)`` on two ranks, or the errors it raises there."""
    folder.mkdir(parents=True, exist_ok=True)
    fork = get_context("fork")
    started = [fork.Process(target=_rank, args=(r, folder, work, args)) for r in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode is not None, "a rank hangs"
    found = [folder / f"result_{r}" for r in range(2)]
    return [torch.load(f, weights_only=False) if f.exists() else None for f in found]


def _rank(number, folder, work, args):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=2)
    try:
        result = work(*args)
    except Exception as error:
        result = error
    torch.save(result, folder / f"result_{number}")
    os._exit(0)


METHODS = {
    "mappo": ("grid/predator_prey", {}),
    "mappo with memory": ("grid/predator_prey", {"memory_dim": 4, "sequence_length": 5}),
    "ippo": ("grid/predator_prey", {}),
    "happo": ("grid/predator_prey", {}),
    "armappo": ("matrix/climbing", {}),
    "mat": ("matrix/climbing", {}),
    "mat_dec": ("matrix/climbing", {}),
    "magpo": ("matrix/climbing", {}),
    "ail": ("grid/bridge_crossing", {"expert_share": 0.5}),
    "agent_mixer": ("grid/predator_prey", {"num_minibatches": 1, "strength": 1.0}),
    "maven": ("matrix/climbing", {"num_minibatches": 1}),
    "agent_mixer_sac": ("vmas/predator_prey", {"gradient_steps": 2, "batch_size": 8}),
    "hasac": ("vmas/predator_prey", {"gradient_steps": 2, "batch_size": 8}),
}
SAC = ("agent_mixer_sac", "hasac")
BY_SAMPLING = {"maven": "policy.latent_logits", **dict.fromkeys(SAC)}  # without replay


def build(case):
    name, options = METHODS[case]
    torch.manual_seed(0)
    env = make_env(name, num_envs=4, seed=0)
    if case not in SAC:  # Adam amplifies noise of gradients near zero
        options = {"epochs": 3, "num_minibatches": 1, "adam_eps": 1e-2, **options}
    algorithm = make_algorithm(case.partition(" ")[0], env, 1000, options)
    return algorithm, with_memory(env, algorithm.policy)


def updated(case, batch):
    """Parameters and metrics after an update on this rank's half of a batch."""
    algorithm, _ = build(case)
    half = batch.shape[0] // distributed.world_size()
    torch.manual_seed(0)
    metrics = algorithm.update(batch[half * distributed.rank() :][:half].clone())
    return algorithm.state_dict(), distributed.mean_row(metrics), algorithm.frames


def updates(batches):
    return {case: updated(case, batch) for case, batch in batches.items()}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Each method's update by one process, and by two ranks."""
    batches = {}
    for case in METHODS:
        algorithm, env = build(case)
        batches[case] = env.rollout(5, algorithm.policy, break_when_any_done=False).detach()
    batches["maven"]["next", "done"][3, 1:] = False  # ranks end different numbers of episodes
    one = updates(batches)
    return one, *on_two_ranks(tmp_path_factory.mktemp("ranks"), updates, batches)


@pytest.mark.parametrize("case", METHODS)
def test_two_ranks_learn_what_one_process_learns_from_all(learned, case):
    (one, metrics, frames), (first, shared, first_frames), (second, _, _) = (
        results[case] for results in learned
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first_frames == frames == 20
    prefix = BY_SAMPLING.get(case, "")
    if prefix is None:
        return
    start = build(case)[0].state_dict()
    learned_keys = [key for key in one if key.startswith(prefix)]
    assert any(not torch.equal(one[key], start[key]) for key in learned_keys)
    for key in learned_keys:
        torch.testing.assert_close(first[key], one[key], atol=2e-6, rtol=1e-4, msg=key)
    for name in ("loss_objective", "grad_norm", "divergence", "loss_latent", "factor"):
        if name in metrics and prefix == "":
            assert shared[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-5), name


def statistics():
    """Statistics of ranks with different numbers of resets, before and after averaging."""
    env = make_env("grid/predator_prey", num_envs=3, seed=distributed.rank())
    env = normalize_observations(env)
    seen = [env.reset() for _ in range(1 + distributed.rank())]
    del seen
    own = observation_normalizer(env).statistics.clone()
    observation_normalizer(env).average(distributed.average_)
    return own, observation_normalizer(env).statistics


def test_normalization_statistics_are_averaged_over_ranks(tmp_path):
    (first, shared), (second, also) = on_two_ranks(tmp_path, statistics)
    assert (shared == also).all()
    a, b = first["count", "state"], second["count", "state"]
    assert b == 2 * a
    for moment in ("loc", "var"):
        joined = (first[moment, "state"] * a + second[moment, "state"] * b) / (a + b)
        torch.testing.assert_close(shared[moment, "state"], joined)


def test_averaging_the_statistics_of_one_process_changes_nothing():
    """Bit for bit, also where squares are large."""
    env = normalize_observations(make_env("vmas/predator_prey", num_envs=7, seed=0))
    env.rollout(23, break_when_any_done=False)
    normalizer = observation_normalizer(env)
    before = normalizer.statistics.clone()
    normalizer.average(distributed.average_)
    assert (normalizer.statistics == before).all()


LOOP = {"total_frames": 160, "frames_per_batch": 40, "eval_interval": 80, "eval_steps": 3}


def run(path, *, resume=False, hook=None, name="mappo", loop=LOOP, checkpoints=80):
    """4 batches of 10 steps in 2 environments a rank."""
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=2, seed=distributed.own_seed(0))
    eval_env = make_env("grid/predator_prey", num_envs=2, seed=0)
    torch.manual_seed(distributed.rank())  # parameters differ until the loop begins
    algorithm = make_algorithm(name, env, 160, {"epochs": 2, "num_minibatches": 2})
    config = LoopConfig(**loop, checkpoint_interval=checkpoints, video_interval=None)
    said = []
    row = train(
        algorithm,
        env,
        eval_env,
        config,
        RunDirectory(path, resume=resume, writes=distributed.rank() == 0),
        on_metrics=hook,
        on_message=said.append,
    )
    return algorithm.state_dict(), row, said


def interrupt_the_second(row):
    if row["frames"] == 80 and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def kill_the_second(row):
    if row["frames"] == 120 and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def table(path):
    return {k: v for k, v in read_metrics(path).items() if not k.startswith("fps")}


@pytest.mark.parametrize("name", ["mappo", "maven"])
def test_a_run_of_two_ranks_and_its_continuation(tmp_path, name):
    """SIGTERM of one rank ends both after the same batch; the resumed run is equal."""

    def whole():
        return run(tmp_path / "whole", name=name)

    def begun():
        return run(tmp_path / "cut", name=name, hook=interrupt_the_second)

    def resumed():
        return run(tmp_path / "cut", name=name, resume=True)

    first, second = on_two_ranks(tmp_path / "a", whole)
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])
    assert {**first[1], "fps": 0}.keys() == second[1].keys()
    assert second[2] == []
    assert table(tmp_path / "whole")["frames"] == [40, 80, 120, 160]
    _, state = RunCheckpoints(tmp_path / "whole" / "checkpoints").load_newest()
    assert not torch.equal(
        *(rank["collector"]["collectors"][0]["data"]["state"] for rank in state["ranks"])
    )
    ended = on_two_ranks(tmp_path / "b", begun)
    assert [error.exit_code for error in ended] == [143, 143]
    assert table(tmp_path / "cut")["frames"] == [40, 80]
    again = on_two_ranks(tmp_path / "c", resumed)
    assert all(torch.equal(again[1][0][key], first[0][key]) for key in first[0])
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    with pytest.raises(ValueError, match="ranks 2, got 1"):
        resumed()


def test_a_rank_that_is_killed(tmp_path):
    error, killed = on_two_ranks(
        tmp_path / "a", lambda: run(tmp_path / "run", hook=kill_the_second)
    )
    assert killed is None
    assert isinstance(error, OSError)  # a ConnectionError, as pickle hands it over
    assert "rank 0 of 2" in str(error)
    assert RunCheckpoints(tmp_path / "run" / "checkpoints").load_newest()[0] == 80


def test_numbers_that_ranks_cannot_share(tmp_path):
    (error, _) = on_two_ranks(tmp_path / "a", lambda: distributed.share(5, "env.num_envs"))
    assert isinstance(error, ValueError)
    assert "`env.num_envs` to be a multiple of the 2 ranks" in str(error)
    assert "got 5" in str(error)
    odd = {**LOOP, "frames_per_batch": 42}
    (error, _) = on_two_ranks(tmp_path / "b", lambda: run(tmp_path / "run", loop=odd))
    assert "a multiple of 4 environments, got 42" in str(error)


def fails_on_first():
    def make():
        raise FileNotFoundError("no checkpoint")

    distributed.from_first(make)


def test_an_error_of_the_first_rank_is_raised_on_all(tmp_path):
    errors = on_two_ranks(tmp_path, fails_on_first)
    assert [str(error) for error in errors] == ["no checkpoint"] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_torchrun(tmp_path, workers):
    """``examples/train.py``: one run directory, written by the first rank."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    tiny = ["env.num_envs=20", "env.total_frames=80", "env.frames_per_batch=40"]
    tiny += ["env.eval_interval=40", "algorithm.epochs=1", "num_threads=1", "plots=false"]
    done = subprocess.run(
        [
            *command,
            "examples/train.py",
            "env=climbing",
            "algorithm=mappo",
            f"runs={tmp_path}",
            f"collector.num_workers={workers}",
            *tiny,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "climbing" / "mappo").iterdir()
    assert done.stdout.count(f"run directory: {path}") == 1
    assert read_metrics(path)["frames"] == [40, 80]
    _, state = RunCheckpoints(path / "checkpoints").load_newest()
    first, second = (rank["algorithm"]["parameters"] for rank in state["ranks"])
    assert all(torch.equal(first[key], second[key]) for key in first)
