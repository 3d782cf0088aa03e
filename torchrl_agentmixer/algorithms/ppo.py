"""What the PPO methods share: advantages, epochs of clipped updates, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.modules import PopArtValueNorm, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.multiagent import MAPPOLoss
from torchrl.objectives.value import GAE
from torchrl.objectives.value.advantages import ValueEstimatorBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms.descent import descend, load_optimizer
from torchrl_agentmixer.algorithms.schedules import Schedule, as_schedule
from torchrl_agentmixer.objectives import DistributedValueNorm, HuberPPOLoss
from torchrl_agentmixer.policies.product import Sampled

Scheduled = float | Schedule | Mapping[str, Any]
ClipEpsilon = float | tuple[Scheduled, Scheduled]


@dataclass(kw_only=True)
class PPOConfig:
    """Hyperparameters that all PPO methods have in common (AgentMixer's appendix; MAPPO).

    Args:
        lr: learning rate of actors and critic.
        epochs: passes over each batch.
        num_minibatches: minibatches of one pass.
        clip_epsilon: clipping range of the ratio: a number, or one below 1 and one above. A wider
            range above ("clip-higher" of DAPO, `arXiv 2503.14476
            <https://arxiv.org/abs/2503.14476>`_) keeps rare large advantages from being cut off
            after one step, as they are by symmetric clipping. Both may be a :class:`Schedule`.
        clip_value: clipping range of the value, in normalized units.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        huber_delta: threshold of the Huber value loss, in normalized units.
        gamma: discount factor.
        gae_lambda: lambda of GAE.
        max_grad_norm: bound on the norm of the gradient of all parameters.
        adam_eps: epsilon of Adam.
        share_params: one actor network for all agents, or one each.
        actor_hidden: widths of the actors' hidden layers.
        critic_hidden: widths of the critic's hidden layers.
        input_norm: LayerNorm on the inputs of actors and critic, as the authors have it.
        memory_dim: width of the actors' GRU; 0 for none.
        sequence_length: steps that an actor with memory is unrolled over in training, from the
            memory it had when they were collected.
        distribution: of continuous actions, ``"normal"`` or ``"tanh_normal"``.
    """

    lr: float = 5e-4
    epochs: int = 15
    num_minibatches: int = 1
    clip_epsilon: ClipEpsilon = 0.2
    clip_value: float = 0.2
    entropy_coeff: float = 0.01
    critic_coeff: float = 1.0
    huber_delta: float = 10.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    max_grad_norm: float = 10.0
    adam_eps: float = 1e-5
    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    critic_hidden: tuple[int, ...] = (64, 64)
    input_norm: bool = False
    memory_dim: int = 0
    sequence_length: int = 10
    distribution: str = "normal"

    @property
    def actor_kwargs(self) -> dict[str, Any]:
        """Options of the actors' networks."""
        return {
            "hidden": self.actor_hidden,
            "share_params": self.share_params,
            "input_norm": self.input_norm,
            "memory_dim": self.memory_dim,
        }

    @property
    def critic_kwargs(self) -> dict[str, Any]:
        """Options of the critic's network."""
        return {"hidden": self.critic_hidden, "input_norm": self.input_norm}

    def clip_epsilon_at(self, progress: float) -> float | tuple[float, float]:
        """The clipping range at ``progress`` in [0, 1] of training."""
        if isinstance(self.clip_epsilon, float | int):
            return self.clip_epsilon
        low, high = self.clip_epsilon
        return as_schedule(low)(progress), as_schedule(high)(progress)

    def __post_init__(self) -> None:
        self.actor_hidden = tuple(self.actor_hidden)
        self.critic_hidden = tuple(self.critic_hidden)
        if not isinstance(self.clip_epsilon, float | int):
            low, high = self.clip_epsilon
            self.clip_epsilon = (_schedule_or_number(low), _schedule_or_number(high))
        for name in ("epochs", "num_minibatches", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{type(self).__name__}: expected `{name}` >= 1, got {getattr(self, name)}."
                )


class PPOAlgorithm(nn.Module):
    """One on-policy method: a policy to collect with, one to execute, and an update.

    Subclasses build the parts; the training loop sees ``policy``, ``execution_policy``,
    ``individual_policy``, ``update(batch) -> metrics`` and the state dict, and nothing else.

    Args:
        config (PPOConfig): hyperparameters.
        policy (TensorDictModuleBase): collects.
        execution_policy (TensorDictModuleBase): deployed; shares the policy's parameters.
        individual_policy (TensorDictModuleBase): the same before its mode is taken: every agent
            samples on its own.
        critic (TensorDictModuleBase): writes the value.
        loss (MAPPOLoss): on policy and critic.
        advantage (ValueEstimatorBase): writes advantage and value target.
        param_groups (list of dict): of Adam: parameters and their learning rates.
        total_frames (int): environment steps of the whole training, for schedules.

    Attributes:
        decentralized_execution (bool): whether each agent executes on its own observations alone,
            without another's observation or action.
    """

    decentralized_execution = True

    def __init__(
        self,
        config: PPOConfig,
        *,
        policy: TensorDictModuleBase,
        execution_policy: TensorDictModuleBase,
        individual_policy: TensorDictModuleBase,
        critic: TensorDictModuleBase,
        loss: MAPPOLoss,
        advantage: ValueEstimatorBase,
        param_groups: list[dict[str, Any]],
        total_frames: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.policy = policy
        self.execution_policy = execution_policy
        self.individual_policy = individual_policy
        self.critic = critic
        self.loss = loss
        self.advantage = advantage
        self.total_frames = total_frames
        self.frames = 0
        self.optimizer = torch.optim.Adam(param_groups, eps=config.adam_eps)
        self._parameters_in_use = [p for group in param_groups for p in group["params"]]

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return min(self.frames / self.total_frames, 1.0)

    @property
    def evaluated_policies(self) -> dict[str, TensorDictModuleBase]:
        """Policies to evaluate by the prefix of their metrics."""
        joint = {} if self.policy is self.individual_policy else {"eval_joint": self.policy}
        return {
            "eval": self.execution_policy,
            **joint,
            "eval_individual": Sampled(self.individual_policy),
        }

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Improve the policy on one batch of trajectories ``[num_envs, steps]``.

        Returns:
            dict: means over all gradient steps of the losses, entropy, KL, clip fraction, ratio
            and gradient norm, and what :meth:`diagnose` adds.
        """
        batch = batch.detach()
        with torch.no_grad():
            self.advantage(batch)
        batch = batch.exclude("next")  # the advantage has read it; minibatches need not carry it
        data = self._sequences(batch) if self.config.memory_dim else batch.reshape(-1)
        with set_recurrent_mode(True):
            metrics = self.learn(data).update(self.diagnose(data))
        self.frames += batch.numel() * distributed.world_size()
        self.on_progress(self.progress)
        return {name: float(value) for name, value in metrics.items()}

    def checkpoint_state(self) -> dict[str, Any]:
        """All that decides how training goes on: parameters, optimizer and progress."""
        return {
            "parameters": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "frames": self.frames,
        }

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the learning rates of this configuration.

        Raises:
            ValueError: for the state of another method, environment or network size.
        """
        try:
            self.load_state_dict(state["parameters"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(self).__name__}: expected the state of the same method with the same "
                f"sizes: {error}"
            ) from error
        self.frames = state["frames"]
        self.on_progress(self.progress)

    def learn(self, data: TensorDictBase) -> TensorDict:
        """All gradient steps on a batch with advantages, and the means of their metrics.

        Args:
            data (TensorDictBase): samples ``[N]``, or sequences ``[N, T]`` of actors with memory.
        """
        return self._mean_over_steps(data, self._gradient_step)

    def _mean_over_steps(
        self, data: TensorDictBase, step: Callable[[TensorDictBase], TensorDict]
    ) -> TensorDict:
        """Epochs of minibatches of ``data``, a ``step`` on each; means of what it returns."""
        logs = [
            step(minibatch)
            for _ in range(self.config.epochs)
            for minibatch in self._minibatches(data)
        ]
        return TensorDict.stack(logs).mean(0)

    def _sequences(self, batch: TensorDictBase) -> TensorDictBase:
        """``[num_envs, steps]`` as ``[sequences, sequence_length]``."""
        length = self.config.sequence_length
        if batch.shape[-1] % length:
            raise ValueError(
                f"{type(self).__name__}: expected steps of a batch (`frames_per_batch` / "
                f"`num_envs`) that are a multiple of `sequence_length` {length}, got "
                f"{batch.shape[-1]}."
            )
        return batch.reshape(-1, length)

    def _minibatches(self, data: TensorDictBase) -> Iterator[TensorDictBase]:
        if self.config.num_minibatches == 1:
            yield data
            return
        order = torch.randperm(data.shape[0], device=data.device)
        for index in order.chunk(self.config.num_minibatches):
            yield data[index]

    def _gradient_step(self, minibatch: TensorDictBase) -> TensorDict:
        losses = self.loss(minibatch)
        total = losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]
        total = total + self.auxiliary_loss(minibatch)
        norm = self._descend(total)
        return TensorDict(
            {
                "loss_objective": losses["loss_objective"],
                "loss_critic": losses["loss_critic"],
                "entropy": losses["entropy"],
                "kl": losses["kl_approx"],
                "clip_fraction": losses["clip_fraction"],
                "ratio": losses["mean_ratio"],
                "explained_variance": losses["explained_variance"].mean(),
                "grad_norm": norm,
            }
        ).detach()

    def _descend(self, loss: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer; the norm of the gradient before it was clipped."""
        return descend(loss, self.optimizer, self._parameters_in_use, self.config.max_grad_norm)

    def auxiliary_loss(self, minibatch: TensorDictBase) -> torch.Tensor | float:
        """What a method adds to the PPO losses of a minibatch; nothing by default."""
        return 0.0

    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Metrics of the policy on a batch, after the update; none by default."""
        return TensorDict()

    def on_progress(self, progress: float) -> None:
        """Called after each update with the share of training done; schedules go here."""
        clip_epsilon = self.config.clip_epsilon_at(progress)
        if isinstance(clip_epsilon, tuple):
            for module in self.modules():
                if isinstance(module, ClipPPOLoss):
                    module.clip_epsilon_low.fill_(clip_epsilon[0])
                    module.clip_epsilon_high.fill_(clip_epsilon[1])


def _schedule_or_number(value: Scheduled) -> float | Schedule:
    return as_schedule(value) if isinstance(value, Mapping) else value


def make_value_norm() -> PopArtValueNorm:
    """The normalizer of MAPPO's value targets."""
    return DistributedValueNorm(shape=1)


def make_ppo_loss(
    policy: TensorDictModuleBase,
    critic: TensorDictModuleBase,
    config: PPOConfig,
    value_norm: PopArtValueNorm,
    *,
    advantage_per_agent: bool = False,
    normalize_advantage: bool = True,
) -> HuberPPOLoss:
    """The clipped objective with MAPPO's value loss, and advantages standardized over the batch.

    Args:
        policy: the policy to improve.
        critic: writes the value.
        config: hyperparameters.
        value_norm: shared with the critic.

    Keyword Args:
        advantage_per_agent: advantages are ``[*B, n_agents, 1]``, each agent's standardized apart.
        normalize_advantage: standardize advantages; else they come as they are to be used.
    """
    return HuberPPOLoss(
        policy,
        critic,
        functional=False,  # nothing swaps parameters, and swapping them costs at every step
        value_norm=value_norm,
        huber_delta=config.huber_delta,
        clip_value=config.clip_value,
        critic_coeff=config.critic_coeff,
        clip_epsilon=config.clip_epsilon_at(0.0),
        entropy_coeff=config.entropy_coeff,
        normalize_advantage=normalize_advantage,
        normalize_advantage_exclude_dims=(-2,) if advantage_per_agent else (),
    )


def make_gae(critic: TensorDictModuleBase, config: PPOConfig) -> GAE:
    """GAE on the team reward, ``[*B, 1]``."""
    return GAE(gamma=config.gamma, lmbda=config.gae_lambda, value_network=critic)
