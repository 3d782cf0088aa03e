"""Base class of the SAC algorithms, and their critics and loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from torchrl_agentmixer.algorithms.base import Algorithm, adam
from torchrl_agentmixer.algorithms.off_policy_config import OffPolicyConfig
from torchrl_agentmixer.algorithms.replay import TransitionReplay, transition_keys
from torchrl_agentmixer.groups import AgentGroup, state_dim
from torchrl_agentmixer.modules import JointActionCritic
from torchrl_agentmixer.policies import Sampled


@dataclass(kw_only=True)
class SACConfig(OffPolicyConfig):
    """Hyperparameters of SAC with a learned alpha.

    The method is that of `arXiv 1812.05905 <https://arxiv.org/abs/1812.05905>`_. ``lr`` is the
    learning rate of actors, critics and alpha.

    Args:
        gradient_steps: gradient steps per batch of frames.
        batch_size: transitions per gradient step.
        target_entropy: target entropy in nats per action dimension, for actions in [-1, 1].
        alpha_init: initial weight of the entropy, which is learned.
        critic_hidden: widths of both critics' hidden layers.
        scale_bound: upper bound of the standard deviations, before squashing.
    """

    gradient_steps: int = 50
    batch_size: int = 256
    target_entropy: float = -1.0
    alpha_init: float = 1.0
    critic_hidden: tuple[int, ...] = (256, 256)
    scale_bound: float = 2.0

    @property
    def squashed_actor_kwargs(self) -> dict[str, Any]:
        """Options of actors whose scales depend on the observations."""
        return self.actor_kwargs | {"scale_head": True, "scale_bound": self.scale_bound}


class SACAlgorithm(Algorithm):
    """Base class of algorithms with SAC's update; subclasses build the policy.

    The team has one log-probability of the joint action, one alpha, and two critics
    :math:`Q(s, a)` of state and joint action.

    **Discrete actions are not supported.** TorchRL's ``DiscreteSACLoss`` needs probabilities and Q
    values of all :math:`K^n` joint actions. Sums over each agent's actions would assume independent
    agents.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        config (SACConfig): hyperparameters.
        total_frames (int): environment steps of the whole training.

    Keyword Args:
        policy (TensorDictModuleBase): policy for collection, with a squashed joint action.
        execution_policy (TensorDictModuleBase): policy for execution; shares parameters.
        actor_parameters (iterable of Parameter): trained with the critics' learning rate.
        param_groups (iterable of dict): more parameter groups of Adam.
        evaluated (mapping, optional): more policies to evaluate; by default the sampled policy as
            ``"eval_individual"``.

    Raises:
        ValueError: for discrete actions, or several groups of agents.
        KeyError: for an environment without a state.
    """

    discrete = False
    several_groups = False
    loss_class: type[SACLoss] = SACLoss

    config: Any
    loss: Any

    def __init__(
        self,
        env: EnvBase,
        config: SACConfig,
        total_frames: int,
        *,
        policy: TensorDictModuleBase,
        execution_policy: TensorDictModuleBase,
        actor_parameters: Iterable[nn.Parameter],
        param_groups: Iterable[dict[str, Any]] = (),
        evaluated: Mapping[str, TensorDictModuleBase] | None = None,
    ) -> None:
        super().__init__(config, total_frames)
        (group,) = self.supported_groups(env)
        self.policy = policy
        self.execution_policy = execution_policy
        if evaluated is None:
            evaluated = {"eval_individual": Sampled(policy)}
        self.evaluated_policies = {"eval": execution_policy, **evaluated}
        self.loss = self._make_loss(group, state_dim(env), env.device)
        self._targets = SoftUpdate(self.loss, tau=config.target_rate)
        critics = self.loss.qvalue_network_params.parameters()
        trained = [*actor_parameters, *critics, self.loss.log_alpha]
        self.optimizer = adam([{"params": trained, "lr": config.lr}, *param_groups])
        self.optimizers["optimizer"] = self.optimizer
        size = self.share(config.replay_size, "replay_size")
        self.replay = TransitionReplay(size, device=env.device)
        self._batch_size = self.share(config.batch_size, "batch_size")
        seen = dict.fromkeys([*policy.in_keys, "state"])  # the critics read the state
        self._transition_keys = transition_keys(list(seen), group.key("action"))

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Train on one batch of trajectories ``[num_envs, steps]`` and on replay.

        Returns:
            dict: means over gradient steps of the losses of policy, critics and alpha, of alpha and
            of the team's entropy (nats); the metrics of :meth:`diagnose`.
        """
        transitions = batch.detach().select(*self._transition_keys).reshape(-1)
        self.replay.extend(transitions)
        logs = [
            self._sac_step(self.replay.sample(self._batch_size))
            for _ in range(self.config.gradient_steps)
        ]
        with torch.no_grad():
            diagnosed = self.diagnose(transitions)
        self.count_frames(batch)
        metrics = TensorDict.stack(logs).mean(0).update(diagnosed)
        return {name: float(value) for name, value in metrics.items()}

    def diagnose(self, transitions: TensorDictBase) -> TensorDict:
        """Metrics of the policy on a batch ``[N]``, after the update."""
        return TensorDict()

    def checkpoint_state(self) -> dict[str, Any]:
        """State for resuming, with the replay buffer."""
        return super().checkpoint_state() | {"replay": self.replay.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])

    def _sac_step(self, minibatch: TensorDictBase) -> TensorDict:
        """Take one step on the sum of the losses, which have separate parameters."""
        losses = self.loss(minibatch)
        total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
        self.gradient_step(total, self.optimizer)
        self._targets.step()
        return TensorDict(
            {
                "loss_actor": losses["loss_actor"],
                "loss_critic": losses["loss_qvalue"],
                "loss_alpha": losses["loss_alpha"],
                "alpha": losses["alpha"],
                "entropy": losses["entropy"],
            }
        ).detach()

    def _make_loss(
        self, group: AgentGroup, state_size: int, device: torch.device | None
    ) -> SACLoss:
        config, critics = self.config, []
        for _ in range(2):
            network = JointActionCritic(
                state_size,
                group.n_agents * group.action_dim,
                hidden=config.critic_hidden,
                input_norm=config.input_norm,
                device=device,
            )
            keys: list[NestedKey] = ["state", group.key("action"), *group.mask_keys.values()]
            critics.append(TensorDictModule(network, keys, ["state_action_value"]))
        loss = self.loss_class(
            self.policy,
            critics,
            num_qvalue_nets=len(critics),
            loss_function="l2",
            alpha_init=config.alpha_init,
            target_entropy=_target_entropy(group, config.target_entropy),
        )
        loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        _ = loss.target_entropy  # the first access creates the buffer
        return loss


def _target_entropy(group: AgentGroup, per_dim: float) -> float:
    """Target entropy of the team's action in the unit of the action, in nats."""
    total = per_dim * group.n_agents * group.action_dim
    if group.low is None or group.high is None:
        return total
    return total + float(((group.high - group.low) / 2).log().sum())
