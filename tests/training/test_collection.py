"""Collection by worker processes and Ray: batches, checkpoints and errors."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import Transform

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunCheckpoints, RunDirectory, Workers, train
from torchrl_agentmixer.training.collection import OTHER_WORKERS
from torchrl_agentmixer.training.workers import make_collection

TASK = "grid/predator_prey"
PLAIN = partial(make_env, TASK)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def fork():
    """Start workers by fork, which is faster."""
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("fork", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


def normalized(**options):
    return normalize_observations(make_env(TASK, **options))


def go(path, *, make=normalized, method="mappo", resume=False, workers=2, options=None, **hooks):
    """Train by batches of 10 steps in 4 environments of two workers."""
    env = make(num_envs=4, seed=0)
    like = {"like": env} if make is normalized else {}
    eval_env = make_env(TASK, num_envs=2, seed=0)
    if like:
        eval_env = normalize_observations(eval_env, like=env)
    torch.manual_seed(0)
    algorithm = make_algorithm(
        method, env, 160, {"epochs": 1, "num_minibatches": 1, **(options or {})}
    )
    backend = hooks.pop("backend", "multiprocessing")
    if isinstance(workers, int):
        workers = [partial(make, num_envs=4 // workers, seed=7 + i) for i in range(workers)]
    config = LoopConfig(
        total_frames=hooks.pop("total_frames", 160),
        frames_per_batch=40,
        eval_interval=80,
        eval_steps=2,
        checkpoint_interval=80,
    )
    seen, update = [], algorithm.update
    algorithm.update = lambda batch: (seen.append(batch.clone()), update(batch))[1]
    hooks.setdefault("on_message", lambda message: None)
    train(
        algorithm,
        env,
        eval_env,
        config,
        RunDirectory(path, resume=resume),
        workers=Workers(env_functions=workers, backend=backend),
        **hooks,
    )
    return algorithm, env, seen


def check_batches(seen):
    """Rows are environments, columns consecutive steps; workers differ."""
    for batch in seen:
        assert batch.shape == (4, 10)
        unfinished = ~batch["next", "done"][:, :-1]
        after, before = batch["next", "state"][:, :-1], batch["state"][:, 1:]
        assert (after == before)[unfinished.expand_as(after)].all()
    states = seen[0]["state"]
    assert not torch.equal(states[:2], states[2:])
    first, second = seen[0]["agents", "action"].chunk(2)
    assert not torch.equal(first, second)
    following = seen[1]["state"][:, 0], seen[0]["next", "state"][:, -1]
    ended = seen[0]["next", "done"][:, -1].expand_as(following[0])
    assert (following[0] == following[1])[~ended].all()


@pytest.mark.usefixtures("fork")
@pytest.mark.parametrize(
    ("method", "options"),
    [("agent_mixer", {}), ("mappo", {"memory_dim": 4, "sequence_length": 5})],
)
def test_workers_act_by_the_updated_policy(tmp_path, method, options):
    """With its buffers, such as annealed coefficients: all ratios are 1 before a gradient step."""
    options = {"lr": 0.1, **options}
    _, _, seen = go(tmp_path, make=PLAIN, method=method, options=options)
    check_batches(seen)
    metrics = read_metrics(tmp_path)
    assert metrics["frames"] == [40, 80, 120, 160]
    assert metrics["ratio"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert len(set(metrics["entropy"])) == 4


@pytest.mark.usefixtures("fork")
def test_workers_have_parameters_and_buffers():
    env = PLAIN(num_envs=4)
    policy = make_algorithm("maven", env, 160).policy
    functions = [partial(PLAIN, num_envs=2, seed=s) for s in (1, 2)]
    collection = make_collection(env, policy, 40, Workers(env_functions=functions))
    try:
        with torch.no_grad():
            for number, value in enumerate(policy.state_dict().values()):
                value.fill_(number / 8)
        collection.update_parameters()
        next(collection.batches())
        for state in collection.collector.map_fn("policy.state_dict"):
            assert all((state[key] == value).all() for key, value in policy.state_dict().items())
    finally:
        threads = torch.get_num_threads()
        collection.close()
    assert torch.get_num_threads() == threads


class Cut(Exception):
    pass


def cut(row):
    if row["frames"] == 120:
        raise Cut


@pytest.mark.usefixtures("fork")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """A checkpoint contains every worker's environments, random numbers and statistics."""
    whole, env, seen = go(tmp_path / "whole")
    with pytest.raises(Cut):
        go(tmp_path / "cut", on_metrics=cut)
    resumed, other, _ = go(tmp_path / "cut", resume=True)
    tables = [
        {k: v for k, v in read_metrics(tmp_path / name).items() if not k.startswith("fps")}
        for name in ("whole", "cut")
    ]
    assert tables[0] == tables[1]
    state = whole.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in resumed.state_dict().items())
    statistics = [observation_normalizer(e).statistics for e in (env, other)]
    assert (statistics[0] == statistics[1]).all()
    assert statistics[0]["count", "state"] >= 40
    messages = []
    hooks = {"on_message": messages.append, "total_frames": 200}
    _, other, _ = go(tmp_path / "whole", resume=True, workers=4, **hooks)
    assert OTHER_WORKERS in messages[-1]
    assert observation_normalizer(other).statistics["count", "state"] > 160 / 4
    assert float(seen[-1]["state"].std()) == pytest.approx(1, abs=0.3)


def children():
    """Process ids of this process's children."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}


class Mortal(Transform):
    """Kills its process at the given step, during a batch."""

    def __init__(self, step):
        super().__init__()
        self.step, self.count = step, 0

    def _step(self, tensordict, next_tensordict):
        self.count += 1
        if self.count == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


def mortal(step, **options):
    return TransformedEnv(make_env(TASK, num_envs=2, **options), Mortal(step))


@pytest.mark.usefixtures("fork")
def test_a_worker_that_is_killed(tmp_path):
    before, workers = children(), set()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"SIGKILL.* at frame 80") as raised:
        go(
            tmp_path,
            make=PLAIN,
            workers=[partial(mortal, step) for step in (999, 25)],
            on_start=lambda frames: workers.update(children() - before),
        )
    assert time.monotonic() - began < 60  # before the error
    assert "worker 1 of 2 of the collector (process " in str(raised.value)
    checkpoints = RunCheckpoints(tmp_path / "checkpoints")
    assert str(checkpoints.newest) in str(raised.value)
    assert checkpoints.load_newest()[0] == 80
    assert len(workers) >= 2
    assert not workers & children()
    go(tmp_path, make=PLAIN, workers=[partial(mortal, 999)] * 2, resume=True)
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


def raises(**options):
    raise ArithmeticError("no prey")


@pytest.mark.usefixtures("fork")
def test_invalid_workers(tmp_path):
    before = children()
    with pytest.raises(ValueError, match="3 workers, got 4"):
        go(tmp_path / "a", workers=[normalized] * 3)
    with pytest.raises(ValueError, match=r"build 4 environments .*, got 2"):
        go(tmp_path / "b", workers=[partial(normalized, num_envs=1, seed=i) for i in range(2)])
    with pytest.raises(ArithmeticError, match="no prey"):
        go(tmp_path / "c", workers=[partial(raises), partial(normalized, num_envs=2)])
    with pytest.raises(ValueError, match="multiprocessing or ray, got 'slurm'"):
        Workers(env_functions=[normalized], backend="slurm")
    with pytest.raises(ValueError, match="at least one"):
        Workers(env_functions=[])
    assert children() == before


def test_without_ray(monkeypatch):
    name = "torchrl_agentmixer.training.workers.find_spec"
    monkeypatch.setattr(name, lambda module: None)
    with pytest.raises(ImportError, match=r'pip install "torchrl_agentmixer\[ray\]"'):
        Workers(env_functions=[normalized], backend="ray")


def ray_processes():
    """Process ids of local clusters, by their command lines."""
    names = (b"raylet", b"gcs_server", b"ray::")
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if any(name in path.read_bytes() for name in names):
                found.add(int(path.parent.name))
    return found


@needs_ray
def test_ray(tmp_path):
    """Actors act by the updated policy; an actor that dies ends the run."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import tests
    before = ray_processes()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        _, _, seen = go(tmp_path / "a", backend="ray", make=PLAIN, method="agent_mixer")
        check_batches(seen)
        metrics = read_metrics(tmp_path / "a")
        assert metrics["ratio"] == pytest.approx([1.0] * 4, abs=1e-5)
        assert len(set(metrics["entropy"])) == 4
        with pytest.raises(RuntimeError, match="2 actors of the Ray collector") as raised:
            go(
                tmp_path / "b",
                backend="ray",
                make=PLAIN,
                workers=[partial(mortal, 999), partial(mortal, 25)],
            )
    finally:
        ray.shutdown()
    assert "at frame 80" in str(raised.value)
    assert "checkpoint-000000000080.torchrl" in str(raised.value)
    deadline = time.monotonic() + 30
    while ray_processes() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ray_processes() - before
