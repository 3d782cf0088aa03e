"""Conformance matrix: methods train, evaluate, resume and export on foreign environments."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
from torchrl.data import Bounded, Categorical, MultiCategorical, Unbounded
from torchrl.envs import ParallelEnv, PettingZooWrapper, SerialEnv, VmasEnv

from tests.envs.any_env import AnyEnv
from torchrl_agentmixer import export_decentralized
from torchrl_agentmixer.algorithms import algorithm_class, make_algorithm
from torchrl_agentmixer.envs import make_env, team_env
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunDirectory, evaluate, train

pytest.importorskip("mpe2")
pytest.importorskip("vmas")

LIMIT, STEPS = 3, 8


def vmas(num_envs=2, **options):
    return VmasEnv("balance", num_envs=num_envs, max_steps=LIMIT, seed=0, **options)


def petting_zoo(task, **options):
    module = import_module(f"mpe2.{task}")
    parallel = module.parallel_env(max_cycles=LIMIT, **options)
    return PettingZooWrapper(parallel, use_mask=True, done_on_any=False, seed=0)


def simple_spread():
    return petting_zoo("simple_spread_v3")


def speaker_listener():
    return petting_zoo("simple_speaker_listener_v4", continuous_actions=True)


def any_env(batch, action=None, observation=None):
    action = Categorical(3, shape=(2,)) if action is None else action
    observation = Unbounded((2, 4)) if observation is None else observation
    return AnyEnv(action, observation, batch=batch, dones="both", masked=True)


ENVS = {
    "VmasEnv": (vmas, {}),
    "VmasEnv, discrete": (partial(vmas, continuous_actions=False), {}),
    "PettingZoo, one group": (simple_spread, {}),
    "PettingZoo, two groups": (speaker_listener, {"reward": "mean"}),
    "SerialEnv of VmasEnv": (lambda: SerialEnv(2, vmas), {}),
    "SerialEnv of PettingZoo": (lambda: SerialEnv(2, simple_spread), {}),
    # Spawned workers would import torch again in every test.
    "ParallelEnv of PettingZoo": (
        lambda: ParallelEnv(2, simple_spread, mp_start_method="fork"),
        {},
    ),
    "batch []": (partial(any_env, ()), {"reward": "sum"}),
    "batch [3]": (partial(any_env, (3,)), {}),
    "batch [2, 2]": (partial(any_env, (2, 2)), {}),
    "batch [2, 2], continuous": (partial(any_env, (2, 2), Bounded(-1.0, 1.0, (2, 3))), {}),
    "images": (partial(any_env, (2,), observation=Unbounded((2, 1, 5, 5))), {}),
    "several choices": (partial(any_env, (2,), MultiCategorical([3, 2], shape=(2, 2))), {}),
}
METHODS = {
    "MAPPO": ("mappo", {}),
    "MAPPO with memory": ("mappo", {"memory_dim": 4, "sequence_length": 4}),
    "AgentMixer": ("agent_mixer", {"strength": 1.0}),
    "AgentMixer, continuous": ("agent_mixer_continuous", {"strength": 1.0}),
    "AgentMixer with memory": (
        "agent_mixer",
        {"strength": 1.0, "memory_dim": 4, "sequence_length": 4},
    ),
    "HAPPO": ("happo", {}),
    "MAT": ("mat", {}),
    "MAVEN": ("maven", {"replay_size": 100}),
}
# Cells that are refused, and the reason in the error.
CONTINUOUS = (
    "VmasEnv",
    "PettingZoo, two groups",
    "SerialEnv of VmasEnv",
    "batch [2, 2], continuous",
)


def refusal(env, method):
    name = METHODS[method][0]
    cls = algorithm_class(name)
    if env in CONTINUOUS and not cls.continuous:
        return "expected discrete actions, got continuous"
    if env not in CONTINUOUS and not cls.discrete:
        return "expected continuous actions, got discrete"
    if env == "images" and not cls.images:
        return "got images"
    if env == "PettingZoo, two groups" and not cls.several_groups:
        return "expected one group of agents, got"
    return None


@pytest.fixture(scope="module")
def envs():
    """Each environment twice, for training and evaluation; workers start once."""
    built = {}

    def get(name):
        if name not in built:
            build, options = ENVS[name]
            built[name] = [team_env(build(), **options) for _ in range(2)]
        return built[name]

    yield get
    for pair in built.values():
        for env in pair:
            env.close(raise_if_closed=False)


# In `make test`: these methods everywhere, and every method on these environments. `make soak` has
# all cells.
EVERYWHERE = ("AgentMixer", "AgentMixer, continuous")
ALL_METHODS = ("VmasEnv", "VmasEnv, discrete", "batch [2, 2]")
CELLS = [
    pytest.param(
        env,
        method,
        marks=() if method in EVERYWHERE or env in ALL_METHODS else pytest.mark.soak,
    )
    for env in ENVS
    for method in METHODS
]


@pytest.mark.parametrize(("env_name", "method"), CELLS)
def test_trains_evaluates_resumes_and_exports(env_name, method, envs, tmp_path):
    env, eval_env = envs(env_name)
    name, options = METHODS[method]
    reason = refusal(env_name, method)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            make_algorithm(name, env, 100, options)
        return
    frames = env.batch_size.numel() * STEPS
    loop = LoopConfig(
        total_frames=2 * frames,
        frames_per_batch=frames,
        eval_interval=frames,
        eval_steps=LIMIT + 1,
        checkpoint_interval=frames,
    )
    options = {"epochs": 1, "num_minibatches": 1, **options}
    build = partial(make_algorithm, name, env, loop.total_frames, options)
    algorithm = build()
    row = train(algorithm, env, eval_env, loop, RunDirectory(tmp_path / "run"))
    assert row["frames"] == loop.total_frames
    with (tmp_path / "run" / "evaluation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * eval_env.batch_size.numel()
    longer = replace(loop, total_frames=3 * frames)
    resumed = RunDirectory(tmp_path / "run", resume=True)
    train(build(), env, eval_env, longer, resumed, on_message=lambda message: None)
    assert read_metrics(tmp_path / "run")["frames"] == [frames, 2 * frames, 3 * frames]
    if method not in ("MAPPO", "AgentMixer, continuous", "MAVEN"):
        return  # the others execute the same kind of actors
    if algorithm.decentralized_execution:
        files = export_decentralized(
            algorithm.execution_policy, tmp_path / "actors", formats=["torch"]
        )
        assert files
    else:
        with pytest.raises(ValueError, match="expected a decentralized"):
            export_decentralized(algorithm.execution_policy, tmp_path / "actors")


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_other_batch_sizes_are_refused_before_training(batch, tmp_path):
    env = AnyEnv(batch=batch, state=Unbounded((7,)), rewards="team")
    algorithm = make_algorithm("mappo", env, 100)
    loop = LoopConfig(total_frames=80, frames_per_batch=40, eval_interval=40, eval_steps=3)
    good = make_env("matrix/climbing", num_envs=2)
    for pair, name in (((env, good), "env"), ((good, env), "eval_env")):
        run = RunDirectory(tmp_path / name)
        with pytest.raises(ValueError, match=rf"`{name}`.*\[num_envs\], got.*team_env\({name}\)"):
            train(algorithm, *pair, loop, run)
    with pytest.raises(ValueError, match=r"`env`.*\[num_envs\], got"):
        evaluate(algorithm.execution_policy, env, max_steps=3)
