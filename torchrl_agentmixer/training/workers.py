"""Collection by worker processes, on TorchRL's ``MultiSyncCollector`` and ``RayCollector``."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import EnvBase, Transform
from torchrl.modules.utils import get_primers_from_module

from torchrl_agentmixer._torchrl_private import skip_first_weight_sync
from torchrl_agentmixer.envs import observation_normalizer
from torchrl_agentmixer.envs.normalization import merged_statistics
from torchrl_agentmixer.training.collection import (
    Average,
    Collection,
    RunCollector,
    collected_env,
)
from torchrl_agentmixer.training.randomness import load_random_state, random_state
from torchrl_agentmixer.training.signals import dead_worker

EnvFunction = Callable[[], EnvBase]


@dataclass(kw_only=True)
class Workers:
    """Configuration of worker processes that collect at the same time.

    Args:
        env_functions: one per worker, each builds the same number of environments; picklable.
        seed: seed of the workers' random numbers, which differ between workers.
        backend: ``"multiprocessing"`` for TorchRL's ``MultiSyncCollector`` on this machine, or
            ``"ray"`` for its ``RayCollector``, on the cluster of ``RAY_ADDRESS`` or a local one.

    Raises:
        ValueError: for another backend, or without functions.
        ImportError: for ``"ray"`` without Ray, with the command that installs it.

    Examples:
        >>> from functools import partial
        >>> from torchrl_agentmixer.envs import make_env
        >>> functions = [partial(make_env, "matrix/climbing", num_envs=8, seed=s) for s in (1, 2)]
        >>> len(Workers(env_functions=functions).env_functions)
        2
    """

    env_functions: Sequence[EnvFunction]
    seed: int = 0
    backend: Literal["multiprocessing", "ray"] = "multiprocessing"

    def __post_init__(self) -> None:
        if self.backend not in ("multiprocessing", "ray"):
            raise ValueError(
                f"Workers: expected `backend` multiprocessing or ray, got {self.backend!r}."
            )
        if not self.env_functions:
            raise ValueError("Workers: expected at least one of `env_functions`, got none.")
        if self.backend == "ray" and find_spec("ray") is None:
            raise ImportError('Collection by Ray needs: pip install "torchrl_agentmixer[ray]"')


class WorkerCollection(Collection):
    """Source of batches, collected by processes of this machine.

    ``env`` has the size of all workers' environments together, and the statistics of all workers
    where observations are normalized.
    """

    def __init__(
        self, workers: Workers, env: EnvBase, policy: TensorDictModuleBase, frames_per_batch: int
    ) -> None:
        self.normalizer = observation_normalizer(env)
        self.policy = policy
        self.num_envs, self.num_workers = env.batch_size.numel(), len(workers.env_functions)
        if self.num_envs % self.num_workers:
            raise ValueError(
                f"expected the number of environments to be a multiple of the {self.num_workers} "
                f"workers, got {self.num_envs}."
            )
        seeds = np.random.SeedSequence(workers.seed).generate_state(self.num_workers).tolist()
        memory = get_primers_from_module(policy, warn=False)
        functions: list[EnvFunction] = [
            partial(_worker_env, function, memory, seed)
            for function, seed in zip(workers.env_functions, seeds, strict=True)
        ]
        state = random_state()  # TorchRL may call the functions in this process as well
        self.collector = self._start(functions, env.device, frames_per_batch)
        load_random_state(state)

    def _start(self, functions: list[EnvFunction], device: Any, frames_per_batch: int) -> Any:
        collector = MultiSyncCollector(
            functions,
            self.policy,
            frames_per_batch=frames_per_batch,
            total_frames=-1,
            device=device,
            cat_results=0,
            use_buffers=True,
            collector_class=RunCollector,
            num_threads=torch.get_num_threads(),
            # Ctrl-C reaches the workers too; the training process decides.
            init_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
            auto_register_policy_transforms=False,
        )
        self.processes = list(collector.procs)
        return collector

    def batches(self) -> Iterator[TensorDictBase]:
        for batch in self.collector:
            if batch.shape[0] != self.num_envs:
                raise ValueError(
                    f"expected `env_functions` that build {self.num_envs} environments together, "
                    f"as many as `env` has, got {batch.shape[0]}."
                )
            yield batch

    def share_statistics(self, average_: Average) -> None:
        if self.normalizer is not None:
            merged = merged_statistics(self._call_all("normalization_statistics"))
            self.normalizer.statistics.update_(merged)
            super().share_statistics(average_)
            self._load_normalization_statistics(self.normalizer.statistics)

    def _load_normalization_statistics(self, statistics: TensorDictBase) -> None:
        super()._load_normalization_statistics(statistics)
        self._call_all("load_normalization_statistics", [(statistics,)] * self.num_workers)

    def _call_all(self, method: str, arguments: list[tuple] | None = None) -> list[Any]:
        return self.collector.map_fn(method, arguments)

    def dead_worker(self, error: Exception) -> str | None:
        return dead_worker(self.processes, owner="the collector")


class RayCollection(WorkerCollection):
    """Source of batches, collected by actors of a Ray cluster.

    Parameters are sent by calls of the actors: TorchRL's weight synchronization for Ray would
    start another process group.
    """

    def _start(self, functions: list[EnvFunction], device: Any, frames_per_batch: int) -> Any:
        from torchrl.collectors.distributed import RayCollector

        self.processes = []
        cluster: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if "RAY_ADDRESS" not in os.environ:
            count = max(os.cpu_count() or 1, self.num_workers)
            cluster |= {"num_cpus": count, "include_dashboard": False}
        return RayCollector(
            functions,
            self.policy,
            frames_per_batch=frames_per_batch,
            total_frames=2**62,
            device=device,
            collector_class=RunCollector,
            collector_kwargs={"auto_register_policy_transforms": False},
            sync=True,
            ray_init_config=cluster,
            remote_configs={"num_cpus": 1},
            weight_sync_schemes={},
        )

    def batches(self) -> Iterator[TensorDictBase]:
        skip_first_weight_sync(self.collector)  # by `update_parameters`
        for batch in self.collector:  # [workers, environments per worker, steps]
            yield batch.flatten(0, 1)

    def update_parameters(self) -> None:
        self._call_all("load_parameters", [(self.policy.state_dict(),)] * self.num_workers)

    def dead_worker(self, error: Exception) -> str | None:
        from ray.exceptions import RayActorError

        if not isinstance(error, RayActorError):
            return None
        return f"one of {self.num_workers} actors of the Ray collector died ({error})"

    def close(self) -> None:
        self.collector.shutdown()


def make_collection(
    env: EnvBase,
    policy: TensorDictModuleBase,
    frames_per_batch: int,
    workers: Workers | None = None,
    *,
    compile_policy: bool = False,
) -> Collection:
    """The training loop's source of batches: ``workers``, or this process without them.

    ``compile_policy`` is for this process.
    """
    if workers is None:
        return Collection(env, policy, frames_per_batch, compile_policy=compile_policy)
    cls = RayCollection if workers.backend == "ray" else WorkerCollection
    return cls(workers, env, policy, frames_per_batch)


def _worker_env(function: EnvFunction, memory: Transform | None, seed: int) -> EnvBase:
    """Environments of a worker; called in its process, whose random generators it seeds."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return collected_env(function(), memory)
