"""The base class of all methods: frames, schedules, gradient steps and checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import PopArtValueNorm

from torchrl_agentmixer import distributed
from torchrl_agentmixer.groups import AgentGroup, agent_groups

T = TypeVar("T")


class Algorithm(nn.Module):
    """A method: a policy to collect with, a policy to execute, and an update.

    A subclass builds its parts in ``__init__`` and implements :meth:`update`. The training loop
    uses ``policy``, ``evaluated_policies``, ``update`` and the checkpoint methods. Under
    ``torchrun`` each process has a copy; gradients and statistics are averaged over processes here.

    Args:
        config (dataclass): hyperparameters.
        total_frames (int): environment steps of the whole training, for schedules.

    Attributes:
        policy (TensorDictModuleBase): collects.
        execution_policy (TensorDictModuleBase): is deployed; shares the policy's parameters.
        evaluated_policies (dict of str to TensorDictModuleBase): what evaluation runs with
            deterministic exploration, by the prefix of its columns: ``"eval"``, the executed
            policy, and where there are such ``"eval_joint"``, the joint policy, and
            ``"eval_individual"``, the individual policies, sampled.
        optimizers (dict of str to Optimizer): their state is part of a checkpoint.
        frames (int): environment steps done, of all processes.
        discrete, continuous (bool): whether the method supports these actions.
        several_groups (bool): whether it supports several groups of agents.
        decentralized_execution (bool): whether each agent executes on its own observations alone.
    """

    discrete = True
    continuous = True
    several_groups = True
    decentralized_execution = True

    policy: TensorDictModuleBase
    execution_policy: TensorDictModuleBase
    evaluated_policies: dict[str, TensorDictModuleBase]

    def __init__(self, config: Any, total_frames: int) -> None:
        super().__init__()
        self.config = config
        self.total_frames = total_frames
        self.frames = 0
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Learn from one batch of trajectories ``[num_envs, steps]``; return metrics."""

    @classmethod
    def supported_groups(cls, env: EnvBase) -> list[AgentGroup]:
        """The groups of agents of an environment.

        Raises:
            ValueError: if the method does not support their number or their actions.
        """
        groups = agent_groups(env)
        for group in groups:
            if not (cls.discrete if group.discrete else cls.continuous):
                kinds = ("discrete", "continuous")
                expected, got = kinds if cls.discrete else kinds[::-1]
                raise ValueError(
                    f"{cls.__name__}: expected {expected} actions, got {got} ones of group "
                    f"{group.name!r}. `available_algorithms(env)` lists the methods for this "
                    "environment."
                )
        if len(groups) > 1 and not cls.several_groups:
            raise ValueError(
                f"{cls.__name__}: expected one group of agents, got "
                f"{[group.name for group in groups]}. `available_algorithms(env)` lists the "
                "methods for this environment."
            )
        return groups

    @classmethod
    def supports(cls, env: EnvBase) -> bool:
        """Whether the method supports the groups and actions of an environment."""
        try:
            cls.supported_groups(env)
        except ValueError:
            return False
        return True

    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1]."""
        return min(self.frames / self.total_frames, 1.0)

    def count_frames(self, batch: TensorDictBase) -> None:
        """Add the steps of a batch, of all processes, and advance the schedules."""
        self.frames += batch.numel() * self.num_processes()
        self.on_progress(self.progress)

    def on_progress(self, progress: float) -> None:
        """Set scheduled coefficients to their values at the fraction ``progress`` of training."""

    def checkpoint_state(self) -> dict[str, Any]:
        """Everything that decides how training continues: parameters, optimizers and frames."""
        return {
            "parameters": self.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "frames": self.frames,
        }

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, with the learning rates of this configuration.

        Raises:
            ValueError: for the state of another method, environment or network size.
        """
        try:
            self.load_state_dict(state["parameters"])
            for name, optimizer in self.optimizers.items():
                _load_optimizer(optimizer, state["optimizers"][name])
            self.load_extra_state(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(self).__name__}: expected the state of the same method with the same "
                f"sizes: {error}"
            ) from error
        self.frames = state["frames"]
        self.on_progress(self.progress)

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Load what a method adds to :meth:`checkpoint_state`."""

    def gradient_step(
        self,
        loss: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        max_norm: float = float("inf"),
    ) -> torch.Tensor:
        """One optimizer step on the gradient's mean over processes.

        Args:
            loss (torch.Tensor): a scalar, the mean over the samples of this process.
            optimizer (torch.optim.Optimizer): its parameters' gradients are clipped together.
            max_norm (float): bound on the norm of the mean gradient.

        Returns:
            torch.Tensor: the norm before clipping.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        return norm

    @staticmethod
    def standardize(value: torch.Tensor, exclude_dims: Sequence[int] = ()) -> torch.Tensor:
        """Entries of mean 0 and standard deviation 1, over the batches of all processes."""
        return distributed.standardized(value, exclude_dims=exclude_dims)

    @staticmethod
    def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor that each process has."""
        return distributed.mean(value)

    @staticmethod
    def num_processes() -> int:
        """How many processes train together."""
        return distributed.world_size()

    @staticmethod
    def share(total: int, name: str) -> int:
        """The part of ``total`` that falls to one process."""
        return distributed.share(total, name)

    @staticmethod
    def same_on_all(make: Callable[[], T]) -> T:
        """What the first process makes, on all of them."""
        return distributed.from_first(make)


class DistributedValueNorm(PopArtValueNorm):
    """TorchRL's ``PopArtValueNorm`` on the value targets of all processes.

    Moments are linear in the batch: their means over processes are those of the joined batch.

    Args:
        **kwargs: as ``PopArtValueNorm``.

    Examples:
        >>> norm = DistributedValueNorm(shape=1)
        >>> norm.update(torch.tensor([[1.0], [3.0]]))
        >>> round(norm.normalize(torch.tensor([3.0])).item(), 3)
        1.0
    """

    @torch.no_grad()
    def update(self, value_target: torch.Tensor) -> None:
        """Update the moments with value targets ``[*B, 1]``."""
        super().update(value_target)
        distributed.average_([self.running_mean, self.running_mean_sq])


def advantage_standardizer() -> Callable[..., torch.Tensor] | None:
    """Standardization over all processes; ``None`` in one process, where TorchRL's applies."""
    return distributed.standardized if distributed.world_size() > 1 else None


def check_at_least_one(config: Any, names: Iterable[str]) -> None:
    """Raise a ValueError for a field below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(
                f"{type(config).__name__}: expected `{name}` >= 1, got {getattr(config, name)}."
            )


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state and keep its present learning rates."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
