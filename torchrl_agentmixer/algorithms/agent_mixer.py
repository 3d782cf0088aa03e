"""AgentMixer: PPO on the joint policy, decentralized execution of the individual policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    central_critic,
    make_gae,
    make_ppo_loss,
)
from torchrl_agentmixer.algorithms.ppo_config import ClipEpsilon, PPOConfig
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import (
    ContinuousModifierOptions,
    DiscreteModifierOptions,
    IGCSchedules,
    PlanSchedules,
)
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.policies import AgentMixerPolicy, Sampled, consistency_metrics
from torchrl_agentmixer.schedules import Schedule, Scheduled, as_schedule

_DIAGNOSED = 1000
_CLIP_HIGH = Schedule(1.0, 0.2, since=0.5, until=0.5)
_OPTIMISTIC = Schedule(1.0, 0.0, since=0.4, until=0.5)
_HALF_OPTIMISTIC = Schedule(0.5, 0.0, since=0.4, until=0.5)


@dataclass(kw_only=True)
class AgentMixerConfig(DiscreteModifierOptions, IGCSchedules, PPOConfig):
    """Hyperparameters of AgentMixer for discrete actions.

    The method is that of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_. The
    defaults are those of the published results for sequential tasks (``docs/joint_policy.md``):
    without perturbation, because the Policy Modifier helped in one-shot games only. For these, use
    ``agent_mixer_one_shot`` of ``examples/conf``. Options of the Policy Modifier and schedules of
    the joint policy are described in :class:`~torchrl_agentmixer.modules.DiscreteModifierOptions`
    and :class:`~torchrl_agentmixer.modules.IGCSchedules`.

    Args:
        lr_modifier: learning rate of the Policy Modifier.

    Raises:
        ValueError: for a value of an option that has no effect.
    """

    lr_modifier: float = 5e-3
    clip_epsilon: ClipEpsilon = (0.2, _CLIP_HIGH)
    strength: Scheduled = 0.0
    optimism: Scheduled = _OPTIMISTIC

    ratio = "team"  # a field of ContinuousAgentMixerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_perturbation(self, DiscreteModifierOptions, "consistency")
        if not self.num_components:
            _require_defaults(self, "num_components", "modified_share")

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Options of :class:`~torchrl_agentmixer.policies.AgentMixerPolicy`."""
        return {
            "modifier_kwargs": option_values(self, DiscreteModifierOptions),
            **option_values(self, IGCSchedules),
        }


@dataclass(kw_only=True)
class ContinuousAgentMixerConfig(ContinuousModifierOptions, PlanSchedules, PPOConfig):
    """Hyperparameters of AgentMixer for continuous actions.

    The method is that of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_. The defaults are
    those of the published results for sequential tasks (``docs/joint_policy.md``): without joint
    plans, which helped in one-shot games only. For these, use ``agent_mixer_continuous_one_shot``
    of ``examples/conf``; ``num_components=0`` is the paper's joint scale. Options of the Policy
    Modifier and schedules of the joint policy are described in
    :class:`~torchrl_agentmixer.modules.ContinuousModifierOptions` and
    :class:`~torchrl_agentmixer.modules.PlanSchedules`.

    Args:
        lr_modifier: learning rate of the Policy Modifier.
        ratio: ratio of new to old probability in PPO's objective: one per ``"agent"`` as in MAPPO,
            for one group of agents, or one per ``"team"`` (Eq. 13). ``None`` is the first if there
            is one group, and else the second.

    Raises:
        ValueError: for an unknown ``ratio``, or a value of an option that has no effect.
    """

    lr: float = 1e-3
    lr_modifier: float = 1e-3
    epochs: int = 4
    clip_epsilon: ClipEpsilon = (0.2, _CLIP_HIGH)
    entropy_coeff: float = 0.0
    strength: Scheduled = 0.0
    optimism: Scheduled = _HALF_OPTIMISTIC
    ratio: Literal["team", "agent"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_components:
            _require_defaults(self, "num_components", "scale_bound", "scale_gain")
            _require_perturbation(self, ContinuousModifierOptions)
        else:
            _require_defaults(self, "num_components", "strength", "modified_share")

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Options of :class:`~torchrl_agentmixer.policies.AgentMixerPolicy`."""
        options = option_values(self, ContinuousModifierOptions)
        if not self.num_components:
            return {"modifier_kwargs": options, "distribution": self.distribution}
        del options["scale_bound"], options["scale_gain"]
        schedules = option_values(self, PlanSchedules)
        return {"modifier_kwargs": options, "distribution": self.distribution, **schedules}


class AgentMixer(PPOAlgorithm):
    """AgentMixer with TorchRL's ``MAPPOLoss`` and ``GAE`` on the joint policy (Eq. 13).

    The team has one advantage, one log-probability and one ratio per time step. One backward pass
    trains actors and Modifier, with one learning rate each. Execution is decentralized: the
    individual modes.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (AgentMixerConfig, optional): hyperparameters.

    Raises:
        ValueError: for continuous actions: use :class:`ContinuousAgentMixer`.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = AgentMixer(env, 160, AgentMixerConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    images = True
    continuous = False
    config_class: type[AgentMixerConfig | ContinuousAgentMixerConfig] = AgentMixerConfig
    policy_class = AgentMixerPolicy
    loss_class = HuberPPOLoss
    policy: AgentMixerPolicy

    def __init__(
        self,
        env: EnvBase,
        total_frames: int,
        config: AgentMixerConfig | ContinuousAgentMixerConfig | None = None,
    ) -> None:
        config = config or self.config_class()
        joint = self._one_ratio_per_team(self.supported_groups(env), config)
        policy = self.policy_class.from_env(
            env, actor_kwargs=config.actor_kwargs, joint=joint, **config.policy_kwargs
        ).to(env.device)
        critic, value_norm = central_critic(env, config)
        loss = make_ppo_loss(policy, critic, config, value_norm, loss_class=self.loss_class)
        loss.set_keys(action=policy.action_keys)
        actors = [p for module in policy.actors for p in module.parameters() if p.requires_grad]
        modifier = list(policy.modifier.parameters())
        individual = Sampled(policy.decentralized(deterministic=False))
        evaluated = {"eval_joint": policy, "eval_individual": individual}
        super().__init__(
            config,
            total_frames,
            policy=policy,
            execution_policy=policy.decentralized(),
            critic=critic,
            loss=loss,
            advantage=make_gae(critic, config),
            param_groups=[
                {"params": [*actors, *critic.parameters()], "lr": config.lr},
                {"params": modifier, "lr": config.lr_modifier},
            ],
            # The joint mode of a joint scale is always the individual mode.
            evaluated=evaluated if policy.coefficients is not None else {},
        )
        self.on_progress(0.0)

    @classmethod
    def _one_ratio_per_team(
        cls, groups: Sequence[AgentGroup], config: AgentMixerConfig | ContinuousAgentMixerConfig
    ) -> bool:
        """Whether PPO's objective has one ratio per team, or one per agent."""
        if len(groups) > 1 and config.ratio == "agent":
            raise ValueError(
                f"{cls.__name__}: expected `ratio` 'team' for several groups of agents "
                f"{[group.name for group in groups]}, got 'agent'."
            )
        return len(groups) > 1 or config.ratio == "team"

    @torch.no_grad()
    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Consistency of joint and individual policies, and the coefficients.

        Consistency is that of about 1,000 steps: the mode of a mixture costs much.
        """
        metrics = consistency_metrics(self.policy, data[:: max(1, data.numel() // _DIAGNOSED)])
        coefficients = self.policy.coefficients
        for name, schedule in (coefficients.schedules if coefficients else {}).items():
            metrics[name] = torch.tensor(schedule(self.progress))
        return metrics

    def on_progress(self, progress: float) -> None:
        super().on_progress(progress)
        self.policy.anneal(progress)


class ContinuousAgentMixer(AgentMixer):
    """:class:`AgentMixer` for continuous actions.

    With ``strength`` above 0 the joint policy is a mixture of joint plans, each a shift of all
    agents' means. At 0 (the default, and where ``strength`` is annealed to) it is the product of
    the individual policies, and the loss is MAPPO's. With ``num_components=0`` the Modifier writes
    the joint scale (the paper): the joint mode is always the individual mode, and the individual
    scales are not trained.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (ContinuousAgentMixerConfig, optional): hyperparameters.

    Raises:
        ValueError: for discrete actions.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=16)
        >>> config = ContinuousAgentMixerConfig(epochs=1, num_minibatches=1, strength=1.0)
        >>> algorithm = ContinuousAgentMixer(env, total_frames=160, config=config)
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3), metrics["strength"]
        (1.0, 1.0)
    """

    discrete = False
    continuous = True
    config_class = ContinuousAgentMixerConfig


def _require_perturbation(config: Any, options: type, *names: str) -> None:
    """Raise a ``ValueError`` for options of the perturbation where its strength is 0."""
    schedule = as_schedule(config.strength)
    if schedule.start == schedule.end == 0:
        of_modifier = [field.name for field in fields(options)]
        _require_defaults(config, "strength", *of_modifier, "modified_share", *names)


def _require_defaults(config: Any, cause: str, *names: str) -> None:
    """Raise a ``ValueError`` for options that have no effect with this value of ``cause``."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            raise ValueError(
                f"{type(config).__name__}: `{field.name}` has no effect with `{cause}` "
                f"{getattr(config, cause)}: expected its default {field.default}, got {value}: "
                f"remove it, or change `{cause}`."
            )


def option_values(config: Any, options: type) -> dict[str, Any]:
    """The values of the fields of ``options`` in a config."""
    return {field.name: getattr(config, field.name) for field in fields(options)}
