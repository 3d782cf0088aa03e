"""Base class of the PPO algorithms, and their critic, loss and advantage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss, LossModule
from torchrl.objectives.value import GAE

from torchrl_agentmixer.algorithms.base import (
    Algorithm,
    DistributedValueNorm,
    adam,
    advantage_standardizer,
)
from torchrl_agentmixer.algorithms.ppo_config import ClippedUpdateConfig, PPOConfig
from torchrl_agentmixer.groups import agent_groups, state_dim, state_image_shape
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.policies import Sampled
from torchrl_agentmixer.schedules import as_schedule

# Entries of a batch that gradient steps do not read; the advantage reads some.
_OF_COLLECTION = ("next", "collector", "done", "episode_reward", "terminated", "truncated")


class PPOAlgorithm(Algorithm):
    """Base class of algorithms with PPO's update; subclasses build the parts.

    Args:
        config (ClippedUpdateConfig): hyperparameters.
        total_frames (int): environment steps of the whole training, for schedules.

    Keyword Args:
        policy (TensorDictModuleBase): policy for collection.
        execution_policy (TensorDictModuleBase): policy for execution; shares parameters.
        critic (TensorDictModuleBase): writes the value.
        loss (nn.Module): loss of policy and critic, such as :class:`HuberPPOLoss`.
        advantage (TensorDictModuleBase): writes advantage and value target.
        param_groups (list of dict, optional): Adam's parameter groups; by default one with the
            parameters of policy and critic.
        evaluated (mapping, optional): more policies to evaluate; by default the sampled policy as
            ``"eval_individual"``.
    """

    config: Any

    def __init__(
        self,
        config: ClippedUpdateConfig,
        total_frames: int,
        *,
        policy: TensorDictModuleBase,
        execution_policy: TensorDictModuleBase,
        critic: TensorDictModuleBase,
        loss: nn.Module,
        advantage: TensorDictModuleBase,
        param_groups: list[dict[str, Any]] | None = None,
        evaluated: Mapping[str, TensorDictModuleBase] | None = None,
    ) -> None:
        super().__init__(config, total_frames)
        self.policy = policy
        self.execution_policy = execution_policy
        self.critic = critic
        self.loss = loss
        self.advantage = advantage
        if evaluated is None:
            evaluated = {"eval_individual": Sampled(policy)}
        self.evaluated_policies = {"eval": execution_policy, **evaluated}
        if param_groups is None:
            # Policy and critic may share parameters.
            parameters = dict.fromkeys([*policy.parameters(), *critic.parameters()])
            param_groups = [{"params": list(parameters), "lr": config.lr}]
        self.optimizer = adam(param_groups, eps=config.adam_eps)
        self.optimizers["optimizer"] = self.optimizer
        self.compile_policy = self._uncompiled = config.compile

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Train on one batch of trajectories ``[num_envs, steps]``.

        Returns:
            dict: means over gradient steps of losses, entropy, KL, clip fraction, ratio and
            gradient norm, and the metrics of :meth:`diagnose`.
        """
        if self._uncompiled:  # not in `__init__`: subclasses add losses
            self._compile_losses()
        batch = batch.detach()
        with torch.no_grad():
            self.advantage(batch)
        batch = batch.exclude(*_OF_COLLECTION)
        data = self._sequences(batch) if self.config.memory_dim else batch.reshape(-1)
        with set_recurrent_mode(True):
            metrics = self.learn(data).update(self.diagnose(data))
        self.count_frames(batch)
        return {name: float(value) for name, value in metrics.items()}

    def learn(self, data: TensorDictBase) -> TensorDict:
        """Take all gradient steps on a batch with advantages; return mean metrics.

        Args:
            data (TensorDictBase): samples ``[N]``, or sequences ``[N, T]`` for recurrent actors.
        """
        return self.mean_over_steps(data, self._ppo_step)

    def mean_over_steps(
        self, data: TensorDictBase, step: Callable[[TensorDictBase], TensorDict]
    ) -> TensorDict:
        """Call ``step`` on the minibatches of all epochs; return mean metrics."""
        logs = [
            step(minibatch)
            for _ in range(self.config.epochs)
            for minibatch in self._minibatches(data)
        ]
        return TensorDict.stack(logs).mean(0)

    def auxiliary_loss(self, minibatch: TensorDictBase) -> torch.Tensor | float:
        """A term that a subclass adds to the PPO loss of a minibatch."""
        return 0.0

    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Metrics of the policy on a batch, after the update."""
        return TensorDict()

    def on_progress(self, progress: float) -> None:
        clip_epsilon = self.config.clip_epsilon_at(progress)
        optimism = as_schedule(self.config.optimism)(progress)
        for module in self.modules():
            if isinstance(module, ClipPPOLoss) and isinstance(clip_epsilon, tuple):
                module.clip_epsilon_low.fill_(clip_epsilon[0])
                module.clip_epsilon_high.fill_(clip_epsilon[1])
            if isinstance(module, HuberPPOLoss):
                module.optimism.fill_(optimism)

    def _compile_losses(self) -> None:
        for module in self.modules():
            if isinstance(module, LossModule):
                module.compile()
        self._uncompiled = False

    def adam_step(self, loss: torch.Tensor) -> torch.Tensor:
        """Take one optimizer step with gradient clipping; return the gradient norm."""
        return self.gradient_step(loss, self.optimizer, self.config.max_grad_norm)

    def _ppo_step(self, minibatch: TensorDictBase) -> TensorDict:
        losses = self.loss(minibatch)
        total = losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]
        norm = self.adam_step(total + self.auxiliary_loss(minibatch))
        return ppo_metrics(losses, norm)

    def _sequences(self, batch: TensorDictBase) -> TensorDictBase:
        """``[num_envs, steps]`` as ``[sequences, sequence_length]``."""
        length = self.config.sequence_length
        if batch.shape[-1] % length:
            raise ValueError(
                f"{type(self).__name__}: expected steps per batch (`frames_per_batch` / "
                f"`num_envs`) that are a multiple of `sequence_length` {length}, got "
                f"{batch.shape[-1]}."
            )
        return batch.reshape(-1, length)

    def _minibatches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        if self.config.num_minibatches == 1:
            yield data
            return
        shuffled = data[torch.randperm(data.shape[0], device=data.device)]
        yield from shuffled.chunk(self.config.num_minibatches)


def ppo_metrics(losses: TensorDictBase, grad_norm: torch.Tensor) -> TensorDict:
    """Metrics of a step on a :class:`HuberPPOLoss`."""
    return TensorDict(
        {
            "loss_objective": losses["loss_objective"],
            "loss_critic": losses["loss_critic"],
            "entropy": losses["entropy"],
            "kl": losses["kl_approx"],
            "clip_fraction": losses["clip_fraction"],
            "ratio": losses["mean_ratio"],
            "explained_variance": losses["explained_variance"].mean(),
            "grad_norm": grad_norm,
        }
    ).detach()


def central_critic(
    env: EnvBase, config: PPOConfig
) -> tuple[TensorDictModuleBase, DistributedValueNorm]:
    """MAPPO's critic on the state, and the normalizer of its value targets.

    A state of the images of all agents is one image of all their channels.
    """
    value_norm = DistributedValueNorm(shape=1).to(env.device)
    size = state_dim(env)
    image_shape = state_image_shape(agent_groups(env), size)
    network = CentralCritic(
        size, image_shape=image_shape, device=env.device, **config.critic_kwargs
    )
    return value_module(network, value_norm=value_norm), value_norm


def make_ppo_loss(
    policy: TensorDictModuleBase,
    critic: TensorDictModuleBase,
    config: ClippedUpdateConfig,
    value_norm: DistributedValueNorm,
    *,
    trains_critic: bool = True,
    advantage_per_agent: bool = False,
    normalize_advantage: bool = True,
    loss_class: Callable[..., HuberPPOLoss] = HuberPPOLoss,
) -> HuberPPOLoss:
    """Build PPO's clipped objective with MAPPO's value loss.

    ``trains_critic=False`` omits the value loss. With ``advantage_per_agent``, advantages are
    ``[*B, n_agents, 1]`` and standardized per agent.
    """
    return loss_class(
        policy,
        critic,
        functional=False,  # parameters are not swapped, which would cost time at every step
        value_norm=value_norm,
        huber_delta=config.huber_delta,
        clip_value=config.clip_value,
        critic_coeff=config.critic_coeff if trains_critic else 0.0,
        clip_epsilon=config.clip_epsilon_at(0.0),
        optimism=as_schedule(config.optimism)(0.0),
        entropy_coeff=config.entropy_coeff,
        normalize_advantage=normalize_advantage,
        normalize_advantage_exclude_dims=(-2,) if advantage_per_agent else (),
        standardize=advantage_standardizer(),
    )


def make_gae(critic: TensorDictModuleBase, config: ClippedUpdateConfig) -> GAE:
    """Build GAE on the team reward, ``[*B, 1]``."""
    return GAE(gamma=config.gamma, lmbda=config.gae_lambda, value_network=critic)


def in_sequence(modules: Sequence[TensorDictModuleBase]) -> TensorDictModuleBase:
    """Combine modules in sequence; a single module is returned unchanged."""
    return modules[0] if len(modules) == 1 else TensorDictSequential(*modules)
