"""Who collects: this process, processes of its own machine, or Ray's actors; by TorchRL."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from typing import Any, Literal, cast

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import EnvBase, RewardSum, Transform, TransformedEnv
from torchrl.modules.utils import get_primers_from_module

from torchrl_agentmixer.envs import observation_normalizer
from torchrl_agentmixer.envs.memory import with_primers
from torchrl_agentmixer.envs.normalization import merged_statistics
from torchrl_agentmixer.training.checkpointing import (
    State,
    collector_state,
    load_collector_state,
    load_random_state,
    random_state,
)
from torchrl_agentmixer.training.signals import end_processes, what_died, worker_processes

EnvFunction = Callable[[], EnvBase]
UNTOLD = "the environment cannot tell its state"
OTHER_WORKERS = "other workers than those of the checkpoint collect"


@dataclass(kw_only=True)
class Workers:
    """Processes that collect, each in environments of its own; all step at the same time.

    Args:
        env_functions: one for each worker, which builds its environments, all as many; picklable.
        seed: of the workers' random numbers, each its own.
        backend: ``"multiprocessing"``, TorchRL's ``MultiSyncCollector`` on this machine, or
            ``"ray"``, its ``RayCollector`` on the cluster that ``RAY_ADDRESS`` names, or on a local
            one that is started and ended with the run.

    Raises:
        ValueError: for another backend, or no function.
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


class RunCollector(Collector):
    """TorchRL's collector, that can tell where it stands, wherever it runs."""

    def standing(self) -> State:
        """Environments, the next observation, and random generators of the process."""
        return {"collector": collector_state(self), "random": random_state()}

    def go_on(self, state: Mapping[str, Any]) -> bool:
        """Go on from there; whether it does exactly."""
        exact = load_collector_state(self, state["collector"])
        load_random_state(state["random"])
        return exact

    def take_parameters(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Act by these parameters and buffers from now on."""
        cast(Any, self.policy).load_state_dict(parameters)

    def statistics(self) -> TensorDictBase:
        """Those that observations are normalized by."""
        return cast(Any, observation_normalizer(self.env)).statistics.clone()

    def take_statistics(self, statistics: TensorDictBase) -> None:
        """Normalize by these from now on."""
        cast(Any, observation_normalizer(self.env)).statistics.update_(statistics)


class Collection:
    """Batches ``[num_envs, steps]``, collected in this process.

    Args:
        env (EnvBase): ``[num_envs]``.
        policy (TensorDictModuleBase): acts.
        frames_per_batch (int): of one batch.
    """

    workers_of = "the parallel environment"

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, frames_per_batch: int) -> None:
        self.normalizer = observation_normalizer(env)
        env = _collected(env, get_primers_from_module(policy, warn=False))
        self.collector = RunCollector(
            env,
            policy,
            frames_per_batch=frames_per_batch,
            total_frames=-1,  # the loop counts, from where it was resumed
            device=env.device,
            auto_register_policy_transforms=False,  # with_memory adds what the policy needs
        )
        self.processes: list[BaseProcess] = worker_processes(env)

    def batches(self) -> Iterator[TensorDictBase]:
        """One after another, without end."""
        return iter(self.collector)

    def update_parameters(self) -> None:
        """Act by what the policy has learned."""
        self.collector.update_policy_weights_()

    def share_statistics(self) -> None:
        """Normalize observations by the statistics of all workers and ranks."""
        if self.normalizer is not None:
            self.normalizer.average_over_ranks()

    def state(self) -> State:
        """For a checkpoint."""
        state = self._standing()
        if self.normalizer is not None:
            state["statistics"] = self.normalizer.statistics.to_dict()
        return state

    def load_state(self, state: State) -> str | None:
        """Go on from there; why in new episodes, or ``None`` if exactly."""
        why = self._go_on(state)
        if self.normalizer is not None and "statistics" in state:  # older ones lack it
            self._take_statistics(TensorDict(state["statistics"]))
        return why

    def _standing(self) -> State:
        return collector_state(self.collector)

    def _go_on(self, state: State) -> str | None:
        if "env" not in state:
            return OTHER_WORKERS
        return None if load_collector_state(self.collector, state) else UNTOLD

    def _take_statistics(self, statistics: TensorDictBase) -> None:
        cast(Any, self.normalizer).statistics.update_(statistics)

    def what_died(self, error: Exception) -> str | None:
        """The worker whose end brought an error about, and how; ``None`` if none died."""
        return what_died(self.processes, of=self.workers_of)

    def close(self) -> None:
        """Leave no process behind."""
        threads = torch.get_num_threads()
        self.collector.shutdown(raise_on_error=False)
        end_processes(self.processes)
        torch.set_num_threads(threads)  # a collector of several processes changes it


class WorkerCollection(Collection):
    """The same, collected by several processes of this machine.

    Args:
        workers (Workers): who collects.
        env (EnvBase): ``[num_envs]`` of all workers together; it tells sizes, and has the
            statistics of all where observations are normalized.
        policy (TensorDictModuleBase): acts.
        frames_per_batch (int): of one batch, of all workers.
    """

    workers_of = "the collector"

    def __init__(
        self, workers: Workers, env: EnvBase, policy: TensorDictModuleBase, frames_per_batch: int
    ) -> None:
        self.normalizer = observation_normalizer(env)
        self.policy = policy
        self.num_envs, self.num_workers = env.batch_size.numel(), len(workers.env_functions)
        if self.num_envs % self.num_workers:
            raise ValueError(
                f"expected a multiple of the {self.num_workers} workers as the number of "
                f"environments, got {self.num_envs}."
            )
        seeds = np.random.SeedSequence(workers.seed).generate_state(self.num_workers).tolist()
        memory = get_primers_from_module(policy, warn=False)
        functions = [
            cast(EnvFunction, partial(_worker_env, function, memory, seed))
            for function, seed in zip(workers.env_functions, seeds, strict=True)
        ]
        before = random_state()  # TorchRL may call the functions here, too
        self.collector = self._start(functions, env.device, frames_per_batch)
        load_random_state(before)

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
            init_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),  # the run decides
            auto_register_policy_transforms=False,
        )
        self.processes = list(collector.procs)
        return collector

    def batches(self) -> Iterator[TensorDictBase]:
        for batch in self.collector:
            if batch.shape[0] != self.num_envs:
                raise ValueError(
                    f"expected functions of the workers that build {self.num_envs} environments "
                    f"together, as `env` has, got {batch.shape[0]}."
                )
            yield batch

    def share_statistics(self) -> None:
        if self.normalizer is not None:
            own = merged_statistics(self.collector.map_fn("statistics"))
            self.normalizer.statistics.update_(own)
            super().share_statistics()
            self._take_statistics(self.normalizer.statistics)

    def _standing(self) -> State:
        states = self.collector.map_fn("standing")
        return {f"worker_{index}": state for index, state in enumerate(states)}

    def _go_on(self, state: State) -> str | None:
        names = [f"worker_{index}" for index in range(self.num_workers)]
        if set(state) - {"statistics"} != set(names):
            return OTHER_WORKERS
        exact = self.collector.map_fn("go_on", [(state[name],) for name in names])
        return None if all(exact) else UNTOLD

    def _take_statistics(self, statistics: TensorDictBase) -> None:
        super()._take_statistics(statistics)
        self._tell("take_statistics", statistics)

    def _tell(self, method: str, value: Any) -> None:
        """Call a method of all workers."""
        self.collector.map_fn(method, [(value,)] * self.num_workers)


class RayCollection(WorkerCollection):
    """The same, collected by actors of a Ray cluster.

    Parameters go to the actors as a call of each: TorchRL's own scheme for Ray would make this
    process a rank of another process group.
    """

    workers_of = "the Ray collector"

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
        self.collector._weight_sync_initialized = True  # by update_parameters
        for batch in self.collector:  # [workers, environments of each, steps]
            yield batch.flatten(0, 1)

    def update_parameters(self) -> None:
        self._tell("take_parameters", self.policy.state_dict())

    def what_died(self, error: Exception) -> str | None:
        from ray.exceptions import RayActorError

        if not isinstance(error, RayActorError):
            return None
        return f"an actor of {self.workers_of} with {self.num_workers} of them died ({error})"

    def close(self) -> None:
        self.collector.shutdown()


def make_collection(
    env: EnvBase,
    policy: TensorDictModuleBase,
    frames_per_batch: int,
    workers: Workers | None = None,
) -> Collection:
    """What the loop collects by: this process, or workers.

    Args:
        env (EnvBase): ``[num_envs]``.
        policy (TensorDictModuleBase): acts.
        frames_per_batch (int): of one batch.
        workers (Workers, optional): who collects instead of this process.
    """
    if workers is None:
        return Collection(env, policy, frames_per_batch)
    kind = RayCollection if workers.backend == "ray" else WorkerCollection
    return kind(workers, env, policy, frames_per_batch)


def _collected(env: EnvBase, memory: Transform | None) -> EnvBase:
    env = with_primers(env, memory)
    return TransformedEnv(env, RewardSum(in_keys=["reward"], out_keys=["episode_reward"]))


def _worker_env(function: EnvFunction, memory: Transform | None, seed: int) -> EnvBase:
    """A worker's environments; called in its process, whose random numbers it seeds."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return _collected(function(), memory)
