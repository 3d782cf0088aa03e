"""AgentMixer's joint policy trained by SAC."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.agent_mixer import option_values
from torchrl_agentmixer.algorithms.sac_base import SACAlgorithm, SACConfig
from torchrl_agentmixer.modules import JointScaleOptions
from torchrl_agentmixer.policies import AgentMixerPolicy, consistency_metrics


@dataclass(kw_only=True)
class AgentMixerSACConfig(SACConfig, JointScaleOptions):
    """Hyperparameters of AgentMixer with SAC.

    Options of the Policy Modifier are described in
    :class:`~torchrl_agentmixer.modules.JointScaleOptions`; its scale is before squashing.

    Args:
        lr_modifier: learning rate of the Policy Modifier.
    """

    lr_modifier: float = 3e-4
    scale_gain: float = 1.0


class AgentMixerSAC(SACAlgorithm):
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

    config: AgentMixerSACConfig
    policy: AgentMixerPolicy

    def __init__(
        self, env: EnvBase, total_frames: int, config: AgentMixerSACConfig | None = None
    ) -> None:
        config = config or AgentMixerSACConfig()
        self.supported_groups(env)
        policy = AgentMixerPolicy.from_env(
            env,
            actor_kwargs=config.actor_kwargs,
            modifier_kwargs={"num_components": 0, **option_values(config, JointScaleOptions)},
            distribution="tanh_normal",
        ).to(env.device)
        modifier = list(policy.modifier.parameters())
        super().__init__(
            env,
            config,
            total_frames,
            policy=policy,
            execution_policy=policy.decentralized(),
            actor_parameters=[p for m in policy.actors for p in m.parameters() if p.requires_grad],
            param_groups=[{"params": modifier, "lr": config.lr_modifier}],
            evaluated={},  # the individual scales are not trained
        )

    def diagnose(self, transitions: TensorDictBase) -> TensorDict:
        """Consistency of joint and individual policies."""
        return consistency_metrics(self.policy, transitions)
