"""Base class of all algorithms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import PopArtValueNorm

from torchrl_agentmixer import distributed
from torchrl_agentmixer.groups import AgentGroup, agent_groups, check_team


class Algorithm(nn.Module):
    """Base class of algorithms: policies, update and checkpoints.

    A subclass builds its networks in ``__init__`` and implements :meth:`update`. The training loop
    uses ``policy``, ``evaluated_policies``, ``update`` and the checkpoint methods. Under
    ``torchrun`` each process has a copy; methods of this class average gradients and statistics
    over processes.

    Args:
        config (dataclass): hyperparameters.
        total_frames (int): environment steps of the whole training, for schedules.

    Attributes:
        policy (TensorDictModuleBase): policy for collection.
        execution_policy (TensorDictModuleBase): policy for execution; shares parameters.
        evaluated_policies (dict of str to TensorDictModuleBase): policies that are evaluated with
            deterministic exploration, by prefix of their metrics: ``"eval"``, the executed policy;
            optionally ``"eval_joint"``, the joint policy, and ``"eval_individual"``, the sampled
            individual policies.
        optimizers (dict of str to Optimizer): optimizers whose state is checkpointed.
        frames (int): environment steps so far, of all processes.
        compile_policy (bool): whether collection in the training process compiles ``policy``.
        discrete, continuous (bool): whether these actions are supported.
        several_groups (bool): whether several groups of agents are supported.
        images (bool): whether observations may be images.
        decentralized_execution (bool): whether each agent acts on its own observations only.
    """

    discrete = True
    continuous = True
    several_groups = True
    images = False
    decentralized_execution = True
    compile_policy = False

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
        """Train on one batch of trajectories ``[num_envs, steps]``; return metrics."""

    @classmethod
    def supported_groups(cls, env: EnvBase) -> list[AgentGroup]:
        """The groups of agents of an environment.

        Raises:
            ValueError: if their number, actions or observations are not supported, or the
                environment has no team reward.
        """
        groups = agent_groups(env)
        check_team(env)
        for group in groups:
            if not (cls.discrete if group.discrete else cls.continuous):
                kinds = ("discrete", "continuous")
                expected, got = kinds if cls.discrete else kinds[::-1]
                raise ValueError(
                    f"{cls.__name__}: expected {expected} actions, got {got} ones of group "
                    f"{group.name!r}. `available_algorithms(env)` lists the methods for this "
                    "environment."
                )
            if group.image_shape and not cls.images:
                raise ValueError(
                    f"{cls.__name__}: expected observations [*B, n_agents, o], got images "
                    f"{list(group.image_shape)} of group {group.name!r}: flatten them by TorchRL's "
                    "`FlattenObservation`, before `team_env`, or see `available_algorithms(env)`."
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
        """Whether the groups and actions of an environment are supported."""
        try:
            cls.supported_groups(env)
        except ValueError:
            return False
        return True

    @property
    def progress(self) -> float:
        """Completed fraction of training, in [0, 1]."""
        return min(self.frames / self.total_frames, 1.0)

    def count_frames(self, batch: TensorDictBase) -> None:
        """Count the steps of a batch in all processes, and advance the schedules."""
        self.frames += batch.numel() * self.num_processes()
        self.on_progress(self.progress)

    def on_progress(self, progress: float) -> None:
        """Set scheduled coefficients to their values at the fraction ``progress`` of training."""

    def checkpoint_state(self) -> dict[str, Any]:
        """State for resuming: parameters, optimizers and frames."""
        return {
            "parameters": self.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "frames": self.frames,
        }

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Load a checkpoint, and keep the learning rates of this configuration.

        Raises:
            ValueError: for the state of another algorithm or of other sizes.
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
        """Load entries that a subclass adds to :meth:`checkpoint_state`."""

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
        return self.gradient_steps(loss, [optimizer], max_norm)[0]

    def gradient_steps(
        self,
        loss: torch.Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        max_norm: float = float("inf"),
    ) -> list[torch.Tensor]:
        """One step of several optimizers on one loss, as :meth:`gradient_step` of each.

        A compiled loss has one backward pass, also where its terms train different networks.

        Args:
            loss (torch.Tensor): a scalar, the mean over the samples of this process.
            optimizers (sequence of torch.optim.Optimizer): of different parameters; the gradients
                of each are clipped together, apart from the others'.
            max_norm (float): bound on the norm of the mean gradient of each.

        Returns:
            list of torch.Tensor: the norms before clipping, one per optimizer.
        """
        parameters = [
            [p for group in optimizer.param_groups for p in group["params"]]
            for optimizer in optimizers
        ]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients([p for trained in parameters for p in trained])
        norms = [nn.utils.clip_grad_norm_(trained, max_norm) for trained in parameters]
        for optimizer in optimizers:
            optimizer.step()
        return norms

    # Functions over the processes of ``torchrun``, for subclasses.
    standardize = staticmethod(distributed.standardized)
    mean_over_processes = staticmethod(distributed.mean)
    num_processes = staticmethod(distributed.world_size)
    share = staticmethod(distributed.share)
    same_on_all = staticmethod(distributed.from_first)


class DistributedValueNorm(PopArtValueNorm):
    """TorchRL's ``PopArtValueNorm`` on the value targets of all processes.

    The means of the moments over processes are the moments of the joined batch.

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
        # New tensors: under `torch.compile`, gradients of what read the old ones would read the
        # values that are changed in place.
        for name in ("running_mean", "running_mean_sq", "debiasing_term"):
            setattr(self, name, getattr(self, name).clone())
        super().update(value_target)
        distributed.average_([self.running_mean, self.running_mean_sq])


def advantage_standardizer() -> Callable[..., torch.Tensor] | None:
    """Advantage standardization over all processes; ``None`` (TorchRL's) in one process."""
    return distributed.standardized if distributed.world_size() > 1 else None


def adam(parameters: Iterable[Any], **options: Any) -> torch.optim.Adam:
    """PyTorch's Adam in its fused form: a tenth of the time for small networks on a CPU.

    Args:
        parameters (iterable): parameters or parameter groups.

    Keyword Args:
        **options: of ``torch.optim.Adam``.

    Examples:
        >>> adam([nn.Parameter(torch.zeros(2))], lr=1e-3).defaults["fused"]
        True
    """
    return torch.optim.Adam(parameters, fused=True, **options)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, and keep its learning rates."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
