"""AIL: a full-information expert by PPO, and decentralized students that imitate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from torch import nn
from torch.distributions import Distribution, kl_divergence
from torchrl.envs import EnvBase
from torchrl.envs.utils import exploration_type
from torchrl.objectives.value.functional import generalized_advantage_estimate

from torchrl_agentmixer.algorithms.happo import standardized
from torchrl_agentmixer.algorithms.in_turn import DETERMINISTIC
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.algorithms.schedules import Schedule, as_schedule
from torchrl_agentmixer.decentralized import (
    LOG_PROB_KEY,
    ContinuousDistribution,
    actor_module,
    mode_policy,
    product_policy,
)
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mlp import layer_norm_mlp

EXPERT_LOG_PROB_KEY = "expert_log_prob"
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


class BehaviorMixture(TensorDictModuleBase):
    r"""The team acts by the expert with probability :math:`\beta`, else by the students (Eq. 6).

    Drawn anew at every step, for the whole team. Writes the groups' actions, the exact
    log-probability of the joint action under the mixture,
    :math:`\log(\beta \pi_\theta(a|s) + (1 - \beta) \pi_\phi(a|b))`, as ``"action_log_prob"``
    ``[*B]``, the expert's as ``"expert_log_prob"`` ``[*B]``, and the students' memory if they have
    one. Where TorchRL's exploration type is deterministic, the actions are the expert's modes.

    Args:
        groups (sequence of AgentGroup): the agents.
        expert (ProbabilisticTensorDictSequential): joint policy on the state.
        students (ProbabilisticTensorDictSequential): joint policy, decentralized.

    Keyword Args:
        expert_share (float): first value of :math:`\beta`, a buffer of that name.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> policy = AIL(env, total_frames=100).policy
        >>> data = policy(env.reset())
        >>> data["agents", "action"].shape, data["action_log_prob"].shape
        (torch.Size([4, 2]), torch.Size([4]))
        >>> torch.equal(data["action_log_prob"], data["expert_log_prob"])  # beta is 1
        True
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        expert: ProbabilisticTensorDictSequential,
        students: ProbabilisticTensorDictSequential,
        *,
        expert_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.expert, self.students = expert, students
        self.action_keys = [group.key("action") for group in groups]
        self._memory_keys = [key for key in students.out_keys if key[0] == "next"]
        self.in_keys = list(dict.fromkeys([*expert.in_keys, *students.in_keys]))
        self.out_keys = [
            *self.action_keys,
            LOG_PROB_KEY,
            EXPERT_LOG_PROB_KEY,
            *self._memory_keys,
        ]
        self.expert_share: torch.Tensor
        self.register_buffer("expert_share", torch.tensor(float(expert_share)))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = tensordict.select(*self.in_keys)
        drawn = [policy(inputs.copy()) for policy in (self.expert, self.students)]
        by_expert = torch.rand(inputs.batch_size, device=inputs.device) < self.expert_share
        if exploration_type() in DETERMINISTIC:
            by_expert = torch.ones_like(by_expert)
        actions = []
        for key in self.action_keys:
            expert, student = (output.get(key) for output in drawn)
            chosen = by_expert.reshape(*by_expert.shape, *[1] * (expert.ndim - by_expert.ndim))
            actions.append(torch.where(chosen, expert, student))
            tensordict.set(key, actions[-1])
        expert, student = (
            _written_dist(policy, output).log_prob(*actions)
            for policy, output in zip((self.expert, self.students), drawn, strict=True)
        )  # [*B]
        share = self.expert_share
        mixture = torch.logaddexp(expert + share.log(), student + (-share).log1p())
        tensordict.set(LOG_PROB_KEY, mixture)
        tensordict.set(EXPERT_LOG_PROB_KEY, expert)
        return tensordict.update(drawn[1].select(*self._memory_keys))


class ExpertAdvantage(TensorDictModuleBase):
    r"""The expert's advantages and value targets from steps of the mixture, see :class:`AIL`.

    Reads rewards, ends, states, ``"action_log_prob"`` and ``"expert_log_prob"`` of trajectories
    ``[*B, T]``; writes ``"expert_weight"`` :math:`\rho`, ``"state_value"``, ``"value_target"`` and
    ``"advantage"``, standardized over the batch and times :math:`\rho`, all ``[*B, T, 1]``.

    Args:
        critic (TensorDictModuleBase): maps the state to ``"state_value"``.
        gamma (float): discount factor.
        lmbda (float): lambda of GAE.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> algorithm = AIL(env, total_frames=100)
        >>> data = env.rollout(5, algorithm.policy).detach()
        >>> algorithm.advantage(data)["advantage"].shape
        torch.Size([4, 5, 1])
    """

    def __init__(self, critic: TensorDictModuleBase, gamma: float, lmbda: float) -> None:
        super().__init__()
        self.critic, self.gamma, self.lmbda = critic, gamma, lmbda
        self.in_keys = [*critic.in_keys, LOG_PROB_KEY, EXPERT_LOG_PROB_KEY]
        self.out_keys = ["expert_weight", "state_value", "value_target", "advantage"]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        after = tensordict["next"]
        value, next_value = (
            self.critic(data.select(*self.critic.in_keys))["state_value"]
            for data in (tensordict, after)
        )
        log_weight = tensordict[EXPERT_LOG_PROB_KEY] - tensordict[LOG_PROB_KEY]
        weight = log_weight.exp().clamp(max=1.0).unsqueeze(-1)  # [*B, T, 1]
        # Of the step after; the last one's is read nowhere, for no step follows it.
        next_weight = torch.cat([weight[..., 1:, :], weight[..., -1:, :]], -2)
        advantage, _ = generalized_advantage_estimate(
            self.gamma,
            self.lmbda * next_weight,  # type: ignore[arg-type]
            value,
            next_value,
            after["reward"],
            after["done"],
            after["terminated"],
        )
        tensordict["expert_weight"] = weight
        tensordict["state_value"] = value
        tensordict["value_target"] = value + weight * advantage
        tensordict["advantage"] = weight * standardized(advantage)
        return tensordict


class CentralActor(nn.Module):
    r"""The expert: the state in, the parameters of every agent's policy out.

    Linear -> ReLU -> LayerNorm blocks and a linear head for each group. Scales of continuous
    actions do not depend on the state, as in :class:`GaussianActor`: :math:`b\,\sigma(p)`, with a
    free parameter :math:`p`, 1 at first, and :math:`b` = ``scale_bound``.

    Args:
        groups (sequence of AgentGroup): the agents.
        state_dim (int): entries of the state.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        input_norm (bool): LayerNorm on the state.
        head_gain (float): gain of the heads' orthogonal initialization.
        scale_bound (float): in the unit of the action.

    Raises:
        ValueError: for a state of the wrong size.

    Examples:
        >>> group = AgentGroup("all", n_agents=3, observation_dim=8, action_dim=2, discrete=False)
        >>> loc, scale = CentralActor([group], state_dim=5)(torch.randn(4, 5))
        >>> loc.shape, scale.shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3, 2]))
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        state_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        input_norm: bool = False,
        head_gain: float = 0.01,
        scale_bound: float = 0.5,
    ) -> None:
        super().__init__()
        self.state_dim = state_dim
        self.scale_bound = scale_bound
        self.groups = tuple(groups)
        self.net = layer_norm_mlp(state_dim, hidden, input_norm=input_norm)
        width = [state_dim, *hidden][-1]
        self.heads = nn.ModuleList(
            orthogonal_(nn.Linear(width, group.n_agents * group.action_dim), gain=head_gain)
            for group in groups
        )
        self.scale_params = nn.ParameterDict(
            {
                group.name: nn.Parameter(torch.ones(group.n_agents, group.action_dim))
                for group in groups
                if not group.discrete
            }
        )

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``[*B, s]`` to logits ``[*B, n, K]``, or loc and scale ``[*B, n, A]``, by group."""
        if state.shape[-1] != self.state_dim:
            raise ValueError(
                f"CentralActor: expected a state of shape [*B, {self.state_dim}], "
                f"got {tuple(state.shape)}."
            )
        features = self.net(state)
        outputs: list[torch.Tensor] = []
        for group, head in zip(self.groups, self.heads, strict=True):
            params = head(features).unflatten(-1, (group.n_agents, group.action_dim))
            outputs.append(params)
            if not group.discrete:
                scale = self.scale_bound * self.scale_params[group.name].sigmoid()
                outputs.append(scale.expand_as(params))
        return tuple(outputs)


def _written_dist(
    policy: ProbabilisticTensorDictSequential, output: TensorDictBase
) -> Distribution:
    """The distribution whose parameters ``policy`` has just written, without another pass."""
    return policy.module[-1].get_dist(output)
