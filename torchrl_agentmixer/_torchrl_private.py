"""TorchRL's private names that this package needs, all of them in one module.

``tests/test_torchrl_private.py`` checks that the installed TorchRL has them.
"""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv


def next_observation(collector: Collector) -> TensorDictBase:
    """What the policy reads at the next step of a collector.

    TorchRL 0.14.1: ``Collector._carrier``; ``Collector.state_dict()`` lacks it.
    """
    return collector._carrier


def set_next_observation(collector: Collector, data: TensorDictBase) -> None:
    """Continue collection from ``data``; TorchRL 0.14.1: ``Collector._carrier``."""
    collector._carrier = data


def skip_first_weight_sync(collector: Any) -> None:
    """Keep a ``RayCollector`` from setting up weight synchronization of its own.

    TorchRL 0.14.1: ``RayCollector._weight_sync_initialized``.
    """
    collector._weight_sync_initialized = True


def parallel_env_processes(env: ParallelEnv) -> list[BaseProcess]:
    """Worker processes of a started environment.

    TorchRL 0.14.1: ``ParallelEnv._workers``, missing before the start, ``None`` after the end.
    """
    return list(vars(env).get("_workers") or [])
