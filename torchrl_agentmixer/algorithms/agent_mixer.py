"""AgentMixer: PPO on the joint policy, deployed as its individual policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.ppo import (
    ClipEpsilon,
    PPOAlgorithm,
    PPOConfig,
    make_gae,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.algorithms.schedules import Schedule, as_schedule
from torchrl_agentmixer.groups import agent_groups, state_dim
from torchrl_agentmixer.modules import AgentMixing, CentralCritic, value_module
from torchrl_agentmixer.policies import AgentMixerPolicy
from torchrl_agentmixer.policies.consistency import consistency_metrics, team_divergence

COEFFICIENTS = ("temperature", "strength", "consistency", "modified_share")
# Up to the middle of training the team correlates; from there on, what is deployed gets sharp.
_ANNEALED = Schedule(3.0, 0.0, until=0.5)
_CLIP_HIGH = Schedule(1.0, 0.2, since=0.5, until=0.5)
_SHARPENED = Schedule(1.0, 0.1, since=0.5, until=0.9)


@dataclass(kw_only=True)
class AgentMixerConfig(PPOConfig):
    """Hyperparameters of AgentMixer (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    The defaults are those of ``examples/conf/algorithm/agent_mixer.yaml``, measured on discrete
    actions (``docs/joint_policy.md``); the paper's and those for continuous actions lie beside it.
    ``form`` and the options from ``num_components`` to ``modified_share`` are of discrete actions.

    Args:
        lr_modifier: learning rate of the Policy Modifier.
        channels: width of the Modifier's tokens.
        num_blocks: mixer blocks.
        agent_mixing: ``"mlp"``, ``"attention"`` or ``"none"``, for ablations, as the next two.
        channel_mixing: whether the mixer blocks have channel-mixing.
        reads_state: whether the Modifier sees the state.
        head_gain: gain of the Modifier's last layer; the authors use 0.01.
        seed_dim: width of the correlation seed, 0 for none (the paper's code).
        seed_per: draw the seed for each ``"step"`` or each ``"episode"``.
        form: of the joint policy of discrete actions: ``"perturbation"`` (Eq. 12),
            ``"temperature"`` (the Modifier writes one) or ``"mixture"`` (of several Eq. 12, see
            :class:`~torchrl_agentmixer.distributions.IGCMixture`).
        num_components: of a mixture.
        temperature: tau of Eq. 12, a number or a :class:`Schedule`, as the next three.
        strength: of the noise of Eq. 12; 1 is the paper's.
        consistency: 0 is the paper's, 1 keeps the individual modes exactly.
        modified_share: beta of a mixture; the rest is the product of the individual policies.
        kl_to_individual: weight of :math:`KL(\pi_\theta \| \pi_\phi)` in the loss, to the
            individual policies as they are: pulls the joint policy back; a number or a schedule.
        kl_to_joint: weight of the same divergence from the joint policy as it is: the individual
            policies learn to imitate it (Eq. 7 without its mixture); a number or a schedule.
        noise_bound: c of Eq. 12.
        noise_gain: g of Eq. 12.
        margin: gap between the mode and what ``consistency`` clips, in nats.
        scale_bound: c of the continuous form, in the unit of the action.
        scale_gain: g of the continuous form.
        ratio: of new over old probability, which PPO clips: of the ``"team"`` (Eq. 13), or of each
            ``"agent"``, as MAPPO's, where the joint policy is a product given what the Modifier
            reads: continuous actions, ``form`` ``"perturbation"`` or ``"temperature"``; one group.
    """

    lr_modifier: float = 5e-3
    epochs: int = 5
    num_minibatches: int = 8
    clip_epsilon: ClipEpsilon = (0.2, _CLIP_HIGH)
    channels: int = 32
    num_blocks: int = 1
    agent_mixing: AgentMixing = "mlp"
    channel_mixing: bool = True
    reads_state: bool = True
    head_gain: float = 2.0
    seed_dim: int = 0
    seed_per: str = "episode"
    form: str = "mixture"
    num_components: int = 16
    temperature: float | Schedule | Mapping[str, Any] = _SHARPENED
    strength: float | Schedule | Mapping[str, Any] = _ANNEALED
    consistency: float | Schedule | Mapping[str, Any] = 0.0
    modified_share: float | Schedule | Mapping[str, Any] = 1.0
    kl_to_individual: float | Schedule | Mapping[str, Any] = 0.0
    kl_to_joint: float | Schedule | Mapping[str, Any] = 0.0
    noise_bound: float = 0.95
    noise_gain: float = 1.0
    margin: float = 1e-2
    scale_bound: float = 0.75
    scale_gain: float = 0.3
    ratio: str = "team"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed_per not in ("step", "episode"):
            raise ValueError(f"expected `seed_per` 'step' or 'episode', got {self.seed_per!r}.")
        if self.ratio not in ("team", "agent"):
            raise ValueError(f"expected `ratio` 'team' or 'agent', got {self.ratio!r}.")
        self.schedules: dict[str, Schedule] = {}
        for name in (*COEFFICIENTS, "kl_to_individual", "kl_to_joint"):
            value = getattr(self, name)
            self.schedules[name] = as_schedule(value)
            if isinstance(value, Mapping):
                setattr(self, name, self.schedules[name])


class AgentMixer(PPOAlgorithm):
    """AgentMixer with TorchRL's ``MAPPOLoss`` and ``GAE`` on the joint policy (Eq. 13).

    The team is one learner: one advantage and, with ``ratio="team"``, one log-probability and one
    ratio for each time step.
    One backward pass trains actors and Modifier, each with its learning rate. Execution is
    decentralized: the individual modes.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (AgentMixerConfig, optional): hyperparameters.

    Raises:
        ValueError: if a coefficient of discrete actions is changed where there are none.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> config = AgentMixerConfig(epochs=1, num_minibatches=1)
        >>> algorithm = AgentMixer(env, total_frames=160, config=config)
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    def __init__(
        self, env: EnvBase, total_frames: int, config: AgentMixerConfig | None = None
    ) -> None:
        config = config or AgentMixerConfig()
        discrete = any(group.discrete for group in agent_groups(env))
        if not discrete:
            _check_continuous(config)
        mixture = config.form == "mixture" and discrete
        policy = AgentMixerPolicy.from_env(
            env,
            actor_kwargs=config.actor_kwargs,
            modifier_kwargs={
                "seed_dim": config.seed_dim,
                "channels": config.channels,
                "num_blocks": config.num_blocks,
                "agent_mixing": config.agent_mixing,
                "channel_mixing": config.channel_mixing,
                "reads_state": config.reads_state,
                "num_components": config.num_components if mixture else 0,
                "head_gain": config.head_gain,
                "scale_bound": config.scale_bound,
                "scale_gain": config.scale_gain,
            },
            form=config.form,  # type: ignore[arg-type]
            distribution=config.distribution,
            joint=config.ratio == "team",
            noise_bound=config.noise_bound,
            noise_gain=config.noise_gain,
            margin=config.margin,
        ).to(env.device)
        value_norm = make_value_norm().to(env.device)
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        loss = make_ppo_loss(policy, critic, config, value_norm)
        loss.set_keys(action=policy.action_keys)
        modifier = list(policy.modifier.parameters())
        actors = [p for module in policy.actors for p in module.parameters()]
        super().__init__(
            config,
            policy=policy,
            execution_policy=policy.decentralized(),
            individual_policy=policy.decentralized(deterministic=False),
            critic=critic,
            loss=loss,
            advantage=make_gae(critic, config),
            param_groups=[
                {"params": [*actors, *network.parameters()], "lr": config.lr},
                {"params": modifier, "lr": config.lr_modifier},
            ],
            total_frames=total_frames,
        )
        self.schedules = config.schedules
        self.on_progress(0.0)

    @torch.no_grad()
    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Mode agreement and divergence between joint and product policy, and the coefficients."""
        metrics = consistency_metrics(self.policy, data)
        for name, schedule in self.schedules.items():
            if name not in COEFFICIENTS or name in self.policy.coefficient_names:
                metrics[name] = torch.tensor(schedule(self.progress))
        return metrics

    def auxiliary_loss(self, minibatch: TensorDictBase) -> torch.Tensor | float:
        """The two KL pulls between joint and individual policies, in nats."""
        loss: torch.Tensor | float = 0.0
        for name, joint_moves in (("kl_to_individual", True), ("kl_to_joint", False)):
            weight = self.schedules[name](self.progress)
            if weight:
                with torch.set_grad_enabled(joint_moves):
                    joint = self.policy.get_dist(minibatch.copy())
                with torch.set_grad_enabled(not joint_moves):
                    individual = self.individual_policy.get_dist(minibatch.copy())
                loss = loss + weight * team_divergence(joint, individual, minibatch.ndim).mean()
        return loss

    def on_progress(self, progress: float) -> None:
        super().on_progress(progress)
        available = self.policy.coefficient_names
        self.policy.set_coefficients(
            **{
                name: schedule(progress)
                for name, schedule in self.schedules.items()
                if name in available
            }
        )


def _check_continuous(config: AgentMixerConfig) -> None:
    """Refuse what would change nothing: continuous joint and individual modes are always equal."""
    default = AgentMixerConfig()
    given = [name for name in COEFFICIENTS if getattr(config, name) != getattr(default, name)]
    if given:
        raise ValueError(
            f"AgentMixer: got {given}, which change the joint policy of discrete actions, for an "
            "environment where all actions are continuous: leave them as they are by default. The "
            "continuous joint policy has `scale_bound` and `scale_gain`."
        )
