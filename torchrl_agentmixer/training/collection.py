"""Collection in the training process, on TorchRL's ``Collector``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, Transform, TransformedEnv
from torchrl.modules.utils import get_primers_from_module

from torchrl_agentmixer._torchrl_private import next_observation, set_next_observation
from torchrl_agentmixer.envs import (
    load_simulation_state,
    observation_normalizer,
    simulation_state,
)
from torchrl_agentmixer.envs.memory import with_primers
from torchrl_agentmixer.training.randomness import State, load_random_state, random_state
from torchrl_agentmixer.training.signals import dead_worker, end_processes, worker_processes

Average = Callable[[list[torch.Tensor]], None]
STATE_UNAVAILABLE = "the environment cannot save its state"
OTHER_WORKERS = "the workers are not those of the checkpoint"


class RunCollector(Collector):
    """TorchRL's collector with a state that resumes collection exactly, in any process."""

    def state_dict(self) -> State:  # type: ignore[override]
        """Environments, next observation, and random generators of the process."""
        data = next_observation(self).flatten_keys("/")
        return {
            "env": simulation_state(self.env),
            "data": {key: value.clone() for key, value in data.items()},
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:  # type: ignore[override]
        """Restore a state; ``False`` if the environment could not, and begins new episodes."""
        exact = load_simulation_state(self.env, state["env"])
        if exact:
            set_next_observation(self, _nested(state["data"], next_observation(self)))
        load_random_state(state["random"])
        return exact

    def load_parameters(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Load parameters and buffers of the policy."""
        cast(Any, self.policy).load_state_dict(parameters)

    def normalization_statistics(self) -> TensorDictBase:
        """Statistics of the observation normalization."""
        return cast(Any, observation_normalizer(self.env)).statistics.clone()

    def load_normalization_statistics(self, statistics: TensorDictBase) -> None:
        """Load :meth:`normalization_statistics`."""
        cast(Any, observation_normalizer(self.env)).statistics.update_(statistics)


class Collection:
    """Source of batches ``[num_envs, steps]``, collected in this process."""

    num_workers = 0

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        frames_per_batch: int,
        *,
        compile_policy: bool = False,
    ) -> None:
        self.normalizer = observation_normalizer(env)
        env = collected_env(env, get_primers_from_module(policy, warn=False))
        self.collector: Any = RunCollector(
            env,
            policy,
            frames_per_batch=frames_per_batch,
            total_frames=-1,  # the training loop counts
            device=env.device,
            auto_register_policy_transforms=False,  # `collected_env` adds them
            compile_policy=compile_policy,
        )
        self.processes: list[BaseProcess] = worker_processes(env)

    def batches(self) -> Iterator[TensorDictBase]:
        """An endless iterator over batches."""
        return iter(self.collector)

    def update_parameters(self) -> None:
        """Collect with the current parameters of the policy."""
        self.collector.update_policy_weights_()

    def share_statistics(self, average_: Average) -> None:
        """Normalize by the statistics of all workers and ranks; ``average_`` is over ranks."""
        if self.normalizer is not None:
            self.normalizer.average(average_)

    def state_dict(self) -> State:
        """State for a checkpoint."""
        state = {"num_workers": self.num_workers, "collectors": self._call_all("state_dict")}
        if self.normalizer is not None:
            state["statistics"] = self.normalizer.statistics.to_dict()
        return state

    def load_state_dict(self, state: State) -> str | None:
        """Restore a state; why new episodes begin, or ``None`` if the state is restored exactly."""
        reason: str | None = OTHER_WORKERS
        if state["num_workers"] == self.num_workers:
            exact = self._call_all("load_state_dict", [(one,) for one in state["collectors"]])
            reason = None if all(exact) else STATE_UNAVAILABLE
        if self.normalizer is not None:
            self._load_normalization_statistics(TensorDict(state["statistics"]))
        return reason

    def _load_normalization_statistics(self, statistics: TensorDictBase) -> None:
        cast(Any, self.normalizer).statistics.update_(statistics)

    def _call_all(self, method: str, arguments: list[tuple] | None = None) -> list[Any]:
        """Call a method of every collector, each with its own arguments."""
        return [getattr(self.collector, method)(*one) for one in arguments or [()]]

    def dead_worker(self, error: Exception) -> str | None:
        """Description of the worker whose crash raised an error; ``None`` if none crashed."""
        return dead_worker(self.processes)

    def close(self) -> None:
        """End all processes."""
        threads = torch.get_num_threads()
        self.collector.shutdown(raise_on_error=False)
        end_processes(self.processes)
        torch.set_num_threads(threads)  # `MultiSyncCollector.shutdown` changes it


def collected_env(env: EnvBase, memory: Transform | None) -> EnvBase:
    """An environment with what collection adds: memory of the policy, and episode returns."""
    reward_sum = RewardSum(in_keys=["reward"], out_keys=["episode_reward"])
    wrapped = with_primers(env, memory)
    if wrapped is env:
        return TransformedEnv(env, reward_sum, auto_unwrap=False)
    return cast(TransformedEnv, wrapped).append_transform(reward_sum)  # one layer costs less


def _nested(flat: Mapping[str, torch.Tensor], like: TensorDictBase) -> TensorDictBase:
    """Entries by keys such as ``"agents/memory"``, with batch sizes and device of ``like``."""
    data = TensorDict({}, batch_size=like.batch_size, device=like.device)
    for key in like.keys(include_nested=True):
        nested = like.get(key)
        if isinstance(nested, TensorDictBase):  # a group has a batch size of its own
            data.set(key, nested.empty())
    for key, value in flat.items():
        data.set(tuple(key.split("/")), value.to(like.device or value.device))
    return data
