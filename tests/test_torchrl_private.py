"""TorchRL's private names that this package uses or overrides exist."""

from __future__ import annotations

import inspect
from functools import partial
from importlib.metadata import version

import pytest
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.envs import ParallelEnv
from torchrl.modules.models.multiagent import MultiAgentNetBase
from torchrl.objectives.multiagent import MAPPOLoss
from torchrl.record.loggers import TensorboardLogger

from torchrl_agentmixer._torchrl_private import (
    next_observation,
    parallel_env_processes,
    set_next_observation,
)
from torchrl_agentmixer.envs import make_env

FOUND = f"in torchrl {version('torchrl')}"


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Collector, "_carrier"),
        (ParallelEnv, "_workers"),
        (RayCollector, "_weight_sync_initialized"),
        (TensorboardLogger, "_create_experiment"),
        # What subclasses in this package override or call.
        (MAPPOLoss, "_clip_bounds"),
        (MAPPOLoss, "_critic_loss_inputs"),
        (MAPPOLoss, "_maybe_normalize_advantage"),
        (MAPPOLoss, "_standardize_advantage"),
        (MultiAgentNetBase, "_build_single_net"),
        (MultiAgentNetBase, "_pre_forward_check"),
    ],
)
def test_names_exist(cls, name):
    source = "".join(inspect.getsource(c) for c in cls.__mro__ if c.__module__[:7] == "torchrl")
    assert name in source, f"{cls.__name__}.{name} is missing {FOUND}"


def test_the_next_observation_is_read_and_written():
    env = make_env("grid/predator_prey", num_envs=2, seed=0)
    collector = Collector(env, env.rand_action, frames_per_batch=4, total_frames=-1)
    batches = iter(collector)
    last = next(batches)
    observed = next_observation(collector)
    assert (observed["state"] == last["next", "state"][:, -1]).all(), FOUND
    set_next_observation(collector, observed.clone().zero_())
    assert not next(batches)["state"][:, 0].any(), FOUND
    collector.shutdown()


def test_worker_processes_are_listed():
    env = ParallelEnv(2, partial(make_env, "matrix/climbing"), mp_start_method="fork")
    assert parallel_env_processes(env) == []
    env.reset()
    assert len(parallel_env_processes(env)) == 2, FOUND
    env.close()
    assert parallel_env_processes(env) == []
