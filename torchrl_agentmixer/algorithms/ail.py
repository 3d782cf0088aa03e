"""AIL: a full-information expert by PPO, and decentralized students that imitate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    TensorDictModule,
)
from torch.distributions import kl_divergence
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.algorithms.schedules import Schedule, as_schedule
from torchrl_agentmixer.groups import agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.modules.central_actor import CentralActor
from torchrl_agentmixer.objectives.distillation import ExpertAdvantage
from torchrl_agentmixer.policies.behavior_mixture import (
    EXPERT_LOG_PROB_KEY,
    BehaviorMixture,
)
from torchrl_agentmixer.policies.product import (
    ContinuousDistribution,
    actor_module,
    mode_policy,
    product_policy,
)

_ANNEALED = Schedule(1.0, 0.0)


@dataclass(kw_only=True)
class AILConfig(PPOConfig):
    """Hyperparameters of AIL (`arXiv 2012.15566 <https://arxiv.org/abs/2012.15566>`_).

    ``lr`` is of expert, students and critic; ``actor_hidden``, ``share_params`` and ``memory_dim``
    are of the students; the expert has no memory, for it sees the state.

    Args:
        expert_hidden: widths of the expert's hidden layers.
        expert_share: beta of Eq. 6, the expert's share of the actions in collection: a number in
            [0, 1], or a :class:`Schedule` between two of them.

    Raises:
        ValueError: for a share outside of [0, 1].
    """

    expert_hidden: tuple[int, ...] = (64, 64)
    expert_share: float | Schedule | Mapping[str, Any] = _ANNEALED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expert_hidden = tuple(self.expert_hidden)
        schedule = as_schedule(self.expert_share)
        if isinstance(self.expert_share, Mapping):
            self.expert_share = schedule
        for value in (schedule.start, schedule.end):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{type(self).__name__}: expected `expert_share` in [0, 1], or a schedule "
                    f"between two such numbers, got {value}."
                )


class AIL(PPOAlgorithm):
    r"""Asymmetric imitation learning (`arXiv 2012.15566 <https://arxiv.org/abs/2012.15566>`_).

    The baseline of AgentMixer's Figure 4 (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).
    An expert :math:`\pi_\theta(a|s)` sees the state, acts for all agents and learns by PPO.
    Decentralized students :math:`\pi_\phi(a|b) = \prod_i \pi_{\phi_i}(a_i|h_i)`, actors as in
    :class:`MAPPO`, minimize

    .. math:: \mathbb E_{\rho^{\pi_\beta}(s, b)}
              \left[ KL(\pi_\theta(a|s) \,\|\, \pi_\phi(a|b)) \right], \qquad
              \pi_\beta = \beta\, \pi_\theta + (1 - \beta)\, \pi_\phi

    (Eq. 6; with :math:`\beta = 0` the iteration of Eq. 8 and 9), where
    :math:`\beta` goes from 1 to 0. No gradient of it reaches the expert. The students' optimum is
    what the expert does on average given what they see (Eq. 7), which need not be good: the
    *asymmetric learning failure*. The expert is a product over agents given the state, which loses
    nothing that a mode could do, and makes the divergence exact.

    **PPO on data of the mixture.** With :math:`\bar\pi_\theta` the expert that collected, every
    step has the weight :math:`\rho = \min(1, \bar\pi_\theta(a|s) / \pi_\beta(a|s))`, whose
    denominator is the mixture's exact joint probability. It weights the step's advantage, and it
    cuts the traces of GAE and of the value targets, which thus are of the expert and not of the
    mixture: V-trace (`arXiv 1802.01561 <https://arxiv.org/abs/1802.01561>`_), with lambda,

    .. math:: A_t = \delta_t + \gamma \lambda \rho_{t+1} A_{t+1}, \qquad
              v_t = V(s_t) + \rho_t A_t.

    The ratio that is clipped is new over old *expert* (the decoupled objective of `arXiv
    2110.00641 <https://arxiv.org/abs/2110.00641>`_): a ratio to the mixture would be out of its
    range wherever the students are apart from the expert, and leave the entropy bonus alone there.
    At :math:`\beta = 1` all this is plain PPO; near 0 the expert learns only where the students do
    what it might have done.

    ``policy`` is the mixture in collection, and the expert's mode where TorchRL's exploration type
    is deterministic; ``execution_policy`` takes the students' modes. Evaluation thus reports the
    expert as ``eval_joint_`` and the students as ``eval_``.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        total_frames (int): environment steps of the whole training.
        config (AILConfig, optional): hyperparameters.

    Raises:
        KeyError: for an environment without a state.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=16)
        >>> algorithm = AIL(env, total_frames=160, config=AILConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3), metrics["expert_share"]
        (1.0, 1.0)
    """

    policy: BehaviorMixture

    def __init__(self, env: EnvBase, total_frames: int, config: AILConfig | None = None) -> None:
        config = config or AILConfig()
        distribution = cast(ContinuousDistribution, config.distribution)
        groups = agent_groups(env)
        network = CentralActor(
            groups, state_dim(env), hidden=config.expert_hidden, input_norm=config.input_norm
        )
        expert_actor = TensorDictModule(
            network.to(env.device),
            in_keys=["state"],
            out_keys=[key for group in groups for key in group.param_keys],
        )
        expert = product_policy(groups, [expert_actor], distribution)
        actors = [actor_module(group, **config.actor_kwargs).to(env.device) for group in groups]
        students = product_policy(groups, actors, distribution)
        policy = BehaviorMixture(groups, expert, students).to(env.device)
        value_norm = make_value_norm().to(env.device)
        critic_network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(critic_network, value_norm=value_norm)
        loss = make_ppo_loss(expert, critic, config, value_norm, normalize_advantage=False)
        actions = policy.action_keys
        loss.set_keys(
            action=actions[0] if len(actions) == 1 else actions,
            sample_log_prob=EXPERT_LOG_PROB_KEY,
        )
        super().__init__(
            config,
            policy=policy,
            execution_policy=mode_policy(groups, actors, distribution),
            individual_policy=students,
            critic=critic,
            loss=loss,
            advantage=ExpertAdvantage(critic, config.gamma, config.gae_lambda),
            param_groups=[
                {"params": [*policy.parameters(), *critic_network.parameters()], "lr": config.lr}
            ],
            total_frames=total_frames,
        )
        self.schedule = as_schedule(config.expert_share)
        self.on_progress(0.0)

    def auxiliary_loss(self, minibatch: TensorDictBase) -> torch.Tensor:
        """The students' loss, Eq. 6: :math:`KL(expert || students)`, the batch's mean, in nats."""
        return self.divergence(minibatch).mean()

    def divergence(self, data: TensorDictBase) -> torch.Tensor:
        """Exact :math:`KL(expert || students)` of the whole team, ``[*B]``, in nats.

        The expert is a constant for the gradient.

        Args:
            data (TensorDictBase): states and observations ``[*B]``; of students with memory
                sequences ``[N, T]``, in TorchRL's recurrent mode.
        """
        with torch.no_grad():
            expert = self.policy.expert.get_dist(data.copy())
        return kl_divergence(expert, self.policy.students.get_dist(data.copy()))

    @torch.no_grad()
    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """KL(expert || students), the mean weight of a step, and beta, of the batch."""
        return TensorDict(
            {
                "divergence": self.divergence(data).mean(),
                "expert_weight": data["expert_weight"].mean(),
                "expert_share": torch.tensor(self.schedule(self.progress)),
            }
        )

    def on_progress(self, progress: float) -> None:
        super().on_progress(progress)
        self.policy.expert_share.fill_(self.schedule(progress))
