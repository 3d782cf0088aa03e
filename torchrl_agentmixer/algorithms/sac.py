"""AgentMixer's joint policy trained by SAC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms.agent_mixer import option_values
from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.algorithms.ranges import RANGES
from torchrl_agentmixer.algorithms.replay import TransitionReplay, transition_keys
from torchrl_agentmixer.groups import AgentGroup, state_dim
from torchrl_agentmixer.modules import JointActionCritic, JointScaleOptions
from torchrl_agentmixer.policies import AgentMixerPolicy, consistency_metrics


@dataclass(kw_only=True)
class AgentMixerSACConfig(JointScaleOptions):
    """Hyperparameters of AgentMixer with SAC.

    SAC with a learned alpha (`arXiv 1812.05905 <https://arxiv.org/abs/1812.05905>`_).

    Options of the Policy Modifier are described in
    :class:`~torchrl_agentmixer.modules.JointScaleOptions`; its scale is before squashing.

    Args:
        lr: learning rate of actors, critics and alpha.
        lr_modifier: learning rate of the Policy Modifier.
        gradient_steps: gradient steps per batch of frames.
        batch_size: transitions per gradient step.
        replay_size: transitions in the replay buffer (on the environment's device).
        target_rate: tau of the soft target update, in (0, 1].
        gamma: discount factor.
        target_entropy: target entropy in nats per action dimension, for actions in [-1, 1].
        alpha_init: initial weight of the entropy, which is learned.
        share_params: one actor network for all agents, or one per agent.
        actor_hidden: widths of the actors' hidden layers.
        critic_hidden: widths of both critics' hidden layers.
        input_norm: LayerNorm on the inputs of actors and critics.

    Raises:
        ValueError: for a value out of its range.
    """

    lr: float = 3e-4
    lr_modifier: float = 3e-4
    gradient_steps: int = 50
    batch_size: int = 256
    replay_size: int = 200_000
    target_rate: float = 0.005
    gamma: float = 0.99
    target_entropy: float = -1.0
    alpha_init: float = 1.0
    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    critic_hidden: tuple[int, ...] = (256, 256)
    input_norm: bool = False
    scale_bound: float = 2.0
    scale_gain: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, RANGES)


class AgentMixerSAC(Algorithm):
    r"""AgentMixer's continuous joint policy trained by TorchRL's ``SACLoss``.

    The team has one log-probability of the joint action, one alpha, and two critics
    :math:`Q(s, a)` of state and joint action. The objective uses a reparameterized sample
    :math:`a_\theta \sim \pi_\theta(\cdot|s)`:

    .. math:: \min_\theta E\left[ \alpha \log \pi_\theta(a_\theta|s)
              - \min_{k} Q_k(s, a_\theta) \right],

    The gradient of Q trains the actors through the means and the Policy Modifier through the scale.
    The policy is :class:`~torchrl_agentmixer.distributions.IGCTanhNormal`: the executed action, the
    squashed individual means, is the joint policy's deterministic action. The scales of the
    individual policies are not trained: the joint scale replaces them.

    **Discrete actions are not supported.** TorchRL's ``DiscreteSACLoss`` needs probabilities and Q
    values of all :math:`K^n` joint actions. Sums over each agent's actions would assume independent
    agents.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        total_frames (int): environment steps of the whole training.
        config (AgentMixerSACConfig, optional): hyperparameters.

    Raises:
        ValueError: for discrete actions, or several groups of agents.
        KeyError: for an environment without a state.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=16)
        >>> algorithm = AgentMixerSAC(env, 1000, AgentMixerSACConfig(gradient_steps=2))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> len(algorithm.replay), metrics["mode_agreement"]
        (160, 1.0)
    """

    discrete = False
    several_groups = False

    config: AgentMixerSACConfig
    policy: AgentMixerPolicy

    def __init__(
        self, env: EnvBase, total_frames: int, config: AgentMixerSACConfig | None = None
    ) -> None:
        config = config or AgentMixerSACConfig()
        super().__init__(config, total_frames)
        (group,) = self.supported_groups(env)
        self.policy = AgentMixerPolicy.from_env(
            env,
            actor_kwargs={
                "hidden": config.actor_hidden,
                "share_params": config.share_params,
                "input_norm": config.input_norm,
            },
            modifier_kwargs=option_values(config, JointScaleOptions),
            distribution="tanh_normal",
        ).to(env.device)
        self.execution_policy = self.policy.decentralized()
        self.evaluated_policies = {"eval": self.execution_policy}
        self.loss = self._make_loss(group, state_dim(env), env.device)
        self._targets = SoftUpdate(self.loss, tau=config.target_rate)
        actors = [p for m in self.policy.actors for p in m.parameters() if p.requires_grad]
        critics = list(self.loss.qvalue_network_params.parameters())
        self.optimizer = torch.optim.Adam(
            [
                {"params": [*actors, *critics, self.loss.log_alpha], "lr": config.lr},
                {"params": list(self.policy.modifier.parameters()), "lr": config.lr_modifier},
            ]
        )
        self.optimizers["optimizer"] = self.optimizer
        size = self.share(config.replay_size, "replay_size")
        self.replay = TransitionReplay(size, device=env.device)
        self._batch_size = self.share(config.batch_size, "batch_size")
        self._transition_keys = transition_keys(self.policy.in_keys, group.key("action"))

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Train on one batch of trajectories ``[num_envs, steps]`` and on replay.

        Returns:
            dict: means over gradient steps of the losses of policy, critics and alpha, of alpha and
            of the team's entropy (nats); consistency metrics on the batch.
        """
        transitions = batch.detach().select(*self._transition_keys).reshape(-1)
        self.replay.extend(transitions)
        logs = [
            self._sac_step(self.replay.sample(self._batch_size))
            for _ in range(self.config.gradient_steps)
        ]
        with torch.no_grad():
            consistency = consistency_metrics(self.policy, transitions)
        self.count_frames(batch)
        metrics = TensorDict.stack(logs).mean(0).update(consistency)
        return {name: float(value) for name, value in metrics.items()}

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
            keys: list[NestedKey] = ["state", group.key("action")]
            critics.append(TensorDictModule(network, keys, ["state_action_value"]))
        loss = SACLoss(
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
