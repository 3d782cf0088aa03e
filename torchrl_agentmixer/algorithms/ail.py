"""AIL: imitation of a centralized PPO expert by decentralized students."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm, central_critic, make_ppo_loss
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.groups import state_dim
from torchrl_agentmixer.modules import CentralActor
from torchrl_agentmixer.objectives import DistillationLoss, ExpertAdvantage
from torchrl_agentmixer.policies import BehaviorMixture, Sampled, mode_policy, product_policy
from torchrl_agentmixer.policies.behavior_mixture import EXPERT_LOG_PROB_KEY
from torchrl_agentmixer.schedules import Schedule, Scheduled, as_schedule

_ANNEALED = Schedule(1.0, 0.0)


@dataclass(kw_only=True)
class AILConfig(PPOConfig):
    """Hyperparameters of AIL (`arXiv 2012.15566 <https://arxiv.org/abs/2012.15566>`_).

    ``lr`` applies to expert, students and critic; ``actor_hidden``, ``share_params`` and
    ``memory_dim`` to the students. The expert reads the state and has no memory.

    Args:
        expert_hidden: widths of the expert's hidden layers.
        expert_share: beta of Eq. 6, the expert's share of the actions in collection: a number in
            [0, 1], or a :class:`Schedule` in it.

    Raises:
        ValueError: for ``expert_share`` outside of [0, 1].
    """

    expert_hidden: tuple[int, ...] = (64, 64)
    expert_share: Scheduled = _ANNEALED


class AIL(PPOAlgorithm):
    r"""Asymmetric imitation learning (`arXiv 2012.15566 <https://arxiv.org/abs/2012.15566>`_).

    The baseline of AgentMixer's Figure 4 (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).
    A centralized expert :math:`\pi_\theta(a|s)` reads the state and learns by PPO. Decentralized
    students :math:`\pi_\phi(a|b) = \prod_i \pi_{\phi_i}(a_i|h_i)`, actors as in :class:`MAPPO`,
    minimize

    .. math:: \mathbb E_{\rho^{\pi_\beta}(s, b)}
              \left[ KL(\pi_\theta(a|s) \,\|\, \pi_\phi(a|b)) \right], \qquad
              \pi_\beta = \beta\, \pi_\theta + (1 - \beta)\, \pi_\phi

    (Eq. 6; with :math:`\beta = 0` the iteration of Eq. 8 and 9), where :math:`\beta` is annealed
    from 1 to 0. Its gradient does not reach the expert. The students' optimum is the expert's
    average policy given their observations (Eq. 7), which can be a bad policy: the *asymmetric
    learning failure*. The expert is a product over agents given the state, so the divergence is
    exact; its mode can be any joint action.

    **PPO on data of the mixture.** Advantages and value targets are those of the expert, see
    :class:`~torchrl_agentmixer.objectives.ExpertAdvantage`. The clipped ratio is that of new to old
    *expert* (the decoupled objective of `arXiv 2110.00641 <https://arxiv.org/abs/2110.00641>`_). A
    ratio to the mixture would be clipped wherever students and expert differ, and only the entropy
    bonus would act there. At :math:`\beta = 1` this is plain PPO; near 0 the expert learns only
    from actions of the students that are probable under it.

    ``policy`` is the mixture (the expert's mode under deterministic exploration types);
    ``execution_policy`` takes the students' modes. Evaluation reports the expert as ``eval_joint_``
    and the students as ``eval_``.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        total_frames (int): environment steps of the whole training.
        config (AILConfig, optional): hyperparameters.

    Raises:
        KeyError: for an environment without a state.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=16)
        >>> algorithm = AIL(env, 160, AILConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3), metrics["expert_share"]
        (1.0, 1.0)
    """

    policy: BehaviorMixture

    def __init__(self, env: EnvBase, total_frames: int, config: AILConfig | None = None) -> None:
        config = config or AILConfig()
        groups = self.supported_groups(env)
        network = CentralActor(
            groups, state_dim(env), hidden=config.expert_hidden, input_norm=config.input_norm
        )
        keys = [key for group in groups for key in group.param_keys]
        expert_actor = TensorDictModule(network.to(env.device), in_keys=["state"], out_keys=keys)
        expert = product_policy(groups, [expert_actor], config.distribution)
        actors = config.actors(groups, env)
        students = product_policy(groups, actors, config.distribution)
        policy = BehaviorMixture(groups, expert, students).to(env.device)
        critic, value_norm = central_critic(env, config)
        loss = make_ppo_loss(expert, critic, config, value_norm, normalize_advantage=False)
        actions = policy.action_keys
        loss.set_keys(
            action=actions[0] if len(actions) == 1 else actions,
            sample_log_prob=EXPERT_LOG_PROB_KEY,
        )
        super().__init__(
            config,
            total_frames,
            policy=policy,
            execution_policy=mode_policy(groups, actors, config.distribution),
            critic=critic,
            loss=loss,
            advantage=ExpertAdvantage(critic, config.gamma, config.gae_lambda, self.standardize),
            evaluated={"eval_joint": policy, "eval_individual": Sampled(students)},
        )
        self.distillation = DistillationLoss(expert, students)
        self.schedule = as_schedule(config.expert_share)
        self.on_progress(0.0)

    def auxiliary_loss(self, minibatch: TensorDictBase) -> torch.Tensor:
        """The students' loss (Eq. 6), in nats."""
        return self.distillation(minibatch)["loss_distillation"]

    @torch.no_grad()
    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Metrics: divergence from expert to students, mean weight of a step, and beta."""
        return TensorDict(
            {
                "divergence": self.distillation(data)["loss_distillation"],
                "expert_weight": data["expert_weight"].mean(),
                "expert_share": torch.tensor(self.schedule(self.progress)),
            }
        )

    def on_progress(self, progress: float) -> None:
        super().on_progress(progress)
        self.policy.expert_share.fill_(self.schedule(progress))
