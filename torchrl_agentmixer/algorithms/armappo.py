"""Autoregressive MAPPO: every agent sees the actions of the agents before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.in_turn import InTurnPolicy
from torchrl_agentmixer.algorithms.mappo import GroupedLoss
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_gae,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.decentralized import (
    ContinuousDistribution,
    actor_module,
    product_policy,
)
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module


class ARMAPPO(PPOAlgorithm):
    r"""MAPPO with an autoregressive joint policy
    (`arXiv 2206.07505 <https://arxiv.org/abs/2206.07505>`_).

    .. math:: \pi(a \mid o) = \prod_{i=1}^n \pi_i(a_i \mid o_i, a_1, \ldots, a_{i-1})

    Agents act in the order of their groups and indices, see :class:`AutoregressivePolicy`; their
    actions can be correlated, which those of independent policies are not given the observations.
    **Execution is not decentralized**: every agent waits for the actions of those before it, and
    ``execution_policy`` takes each agent's mode in that order (which need not be the mode of the
    joint distribution). ``individual_policy`` is the same joint policy, sampled: there is no other.

    Actors (but for their wider input), critic, loss and loop are those of :class:`MAPPO`, with its
    ratio for each agent, here of the agent's conditional probability. The entropy bonus is the sum
    of the conditionals' entropies, each exact (squashed: by quadrature), at the batch's actions;
    by the chain rule its expectation over actions of the current policy is the joint entropy, and
    the batch is one sample of it for each state, from the policy that collected. How earlier agents
    could raise the entropies of later ones is not in its gradient.

    The paper gives the factorization. This package's choices: the order is fixed, earlier actions
    are further inputs of the actors' first layer (one-hot, or continuous ones as they are), a GRU
    remembers them too, and networks and optimizer are those of all its methods.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = ARMAPPO(env, total_frames=160, config=PPOConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    decentralized_execution = False

    def __init__(self, env: EnvBase, total_frames: int, config: PPOConfig | None = None) -> None:
        config = config or PPOConfig()
        groups = agent_groups(env)
        policies = [
            AutoregressivePolicy.build(
                group,
                groups[:index],
                distribution=cast(ContinuousDistribution, config.distribution),
                **config.actor_kwargs,
            ).to(env.device)
            for index, group in enumerate(groups)
        ]
        value_norm = make_value_norm().to(env.device)
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        # The critic's loss counts once, in the first group's.
        rest = replace(config, critic_coeff=0.0)
        losses = [
            make_ppo_loss(policy, critic, config if index == 0 else rest, value_norm)
            for index, policy in enumerate(policies)
        ]
        loss = losses[0] if len(groups) == 1 else GroupedLoss(losses, [g.n_agents for g in groups])
        policy = _in_order(policies)
        super().__init__(
            config,
            policy=policy,
            execution_policy=_in_order([policy.deterministic() for policy in policies]),
            individual_policy=policy,
            critic=critic,
            loss=loss,  # type: ignore[arg-type]
            advantage=make_gae(critic, config),
            param_groups=[
                {"params": [*policy.parameters(), *network.parameters()], "lr": config.lr}
            ],
            total_frames=total_frames,
        )


class AutoregressivePolicy(InTurnPolicy):
    r"""One group's factor of the joint policy: :math:`\prod_i \pi_i(a_i \mid o_i, a_{<i})`.

    Agent :math:`i` reads its observation and the actions of all agents before it, of its group and
    of the groups ``before``, ``[*B, o + D]`` with ``D`` the widths of all those actions (one-hot or
    continuous); what comes at or after it is zero.

    Args:
        individual (ProbabilisticTensorDictSequential): maps the wider observations to a
            distribution that is independent over agents, ``joint=False``.
        group (AgentGroup): the agents.
        before (sequence of AgentGroup): groups that act before this one; their actions are read.

    Keyword Args:
        greedy (bool): act by the conditionals' modes, whatever the exploration type is.

    Examples:
        >>> from tensordict import TensorDict
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> policy = AutoregressivePolicy.build(group)
        >>> data = policy(TensorDict({"agents": {"observation": torch.randn(5, 3, 4)}}, [5]))
        >>> data["agents", "action"].shape, data["agents", "action_log_prob"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
        >>> log_prob = policy.get_dist(data).log_prob(data["agents", "action"])
        >>> torch.allclose(log_prob, data["agents", "action_log_prob"])
        True
    """

    visible: torch.Tensor

    def __init__(
        self,
        individual: ProbabilisticTensorDictSequential,
        group: AgentGroup,
        before: Sequence[AgentGroup] = (),
        *,
        greedy: bool = False,
    ) -> None:
        super().__init__(individual, group, greedy=greedy)
        self.before = tuple(before)
        width, n = group.action_dim, group.n_agents
        earlier = torch.ones(n, _actions_dim(self.before))
        own = torch.ones(n, n).tril(-1).repeat_interleave(width, -1)
        visible = torch.cat([earlier, own], -1)  # [n, D], 1 where an agent sees the entry
        device = next(individual.parameters()).device
        self.register_buffer("visible", visible.to(device), persistent=False)
        self.in_keys = [*individual.in_keys, *[other.key("action") for other in self.before]]
        self.out_keys = list(individual.out_keys)

    @classmethod
    def build(
        cls,
        group: AgentGroup,
        before: Sequence[AgentGroup] = (),
        *,
        distribution: ContinuousDistribution = "normal",
        **actor_kwargs,
    ) -> AutoregressivePolicy:
        """With the default actor of a group, its input wider by the actions it reads.

        Args:
            group (AgentGroup): the agents.
            before (sequence of AgentGroup): groups that act before this one.

        Keyword Args:
            distribution (str): of continuous actions.
            **actor_kwargs: options of :class:`CategoricalActor` or :class:`GaussianActor`.
        """
        actions_dim = _actions_dim([*before, group])
        wider = replace(group, observation_dim=group.observation_dim + actions_dim)
        actor = actor_module(wider, **actor_kwargs)
        return cls(product_policy([wider], [actor], distribution, joint=False), group, before)

    def deterministic(self) -> AutoregressivePolicy:
        """The policy that takes each conditional's mode, in order; it shares the parameters."""
        return type(self)(self.individual, self.group, self.before, greedy=True)

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        """What the actor reads, each agent's observation followed by the actions before it."""
        taken = [(other, self._actions_in(context, other)) for other in self.before]
        row = torch.cat(
            [_as_entries(group, actions) for group, actions in [*taken, (self.group, action)]], -1
        )  # [*B, D]
        inputs = context.select(*self.individual.in_keys)
        key = self.group.key("observation")
        observation = inputs.get(key)
        seen = (row.unsqueeze(-2) * self.visible).to(observation)  # [*B, n, D]
        return inputs.set(key, torch.cat([observation, seen], -1))


def _actions_dim(groups: Sequence[AgentGroup]) -> int:
    return sum(group.n_agents * group.action_dim for group in groups)


def _as_entries(group: AgentGroup, action: torch.Tensor) -> torch.Tensor:
    """A group's actions as one row: one-hot or as they are, ``[*B, n * action_dim]``."""
    if group.discrete:
        action = F.one_hot(action, group.action_dim).to(torch.get_default_dtype())
    return action.flatten(-2)


def _in_order(policies: Sequence[AutoregressivePolicy]) -> TensorDictModuleBase:
    return policies[0] if len(policies) == 1 else TensorDictSequential(*policies)
