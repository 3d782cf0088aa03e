"""Autoregressive joint policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies.product import (
    LOG_PROB_KEY,
    ContinuousDistribution,
    actor_module,
    product_policy,
)

DETERMINISTIC = (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN)


class AutoregressivePolicyBase(TensorDictModuleBase):
    r"""Base class of autoregressive policies, :math:`\prod_i \pi_i(a_i \mid o, a_{<i})`.

    ``forward`` decodes the actions of one group agent by agent, with one call of the batched
    network per agent. It writes ``(group, "action")`` and each agent's conditional log-probability,
    ``(group, "action_log_prob")`` ``[*B, n]``, whose sum is that of the joint action. It samples,
    or takes each conditional's mode under TorchRL's deterministic exploration types.

    :meth:`get_dist` returns all conditionals at the actions of the tensordict in one call, for
    TorchRL's ``ClipPPOLoss`` and ``MAPPOLoss``.

    Subclasses set ``in_keys`` and ``out_keys`` and implement :meth:`_inputs`, such that an agent's
    parameters depend only on the actions of agents before it.

    Args:
        individual (ProbabilisticTensorDictSequential): maps the result of :meth:`_inputs` to a
            distribution that is independent over agents (``joint=False``).
        group (AgentGroup): the agents.
    """

    def __init__(self, individual: ProbabilisticTensorDictSequential, group: AgentGroup) -> None:
        super().__init__()
        self.individual = individual
        self.group = group

    @property
    def log_prob_keys(self) -> list[NestedKey]:
        """Keys of the log-probabilities."""
        return [self.group.key(LOG_PROB_KEY)]

    @property
    def dist_sample_keys(self) -> list[NestedKey]:
        """Keys of the actions."""
        return [self.group.key("action")]

    def get_dist(self, tensordict: TensorDictBase) -> torch.distributions.Distribution:
        """Conditionals of all agents, given the actions in ``tensordict``; batch ``[*B, n]``.

        Only ``log_prob`` of these same actions gives the conditional log-probabilities.
        """
        return self.build_dist_from_params(self.get_dist_params(tensordict))

    def get_dist_params(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Parameters of all conditionals, given the actions in ``tensordict``."""
        action = self._actions_in(tensordict, self.group)
        return self.individual.get_dist_params(self._inputs(self._context(tensordict), action))

    def build_dist_from_params(
        self, tensordict: TensorDictBase
    ) -> torch.distributions.Distribution:
        """Conditionals with the parameters in ``tensordict``."""
        return self.individual.build_dist_from_params(tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decode actions agent by agent; write them and their conditional log-probabilities."""
        greedy = exploration_type() in DETERMINISTIC
        agent_dim = -1 if self.group.discrete else -2
        context, action = self._context(tensordict), self._zero_actions(tensordict)
        for index in range(self.group.n_agents):
            inputs = self._inputs(context, action)
            dist = self.individual.get_dist(inputs)
            draw = dist.deterministic_sample if greedy else dist.sample()
            action.select(agent_dim, index).copy_(draw.detach().select(agent_dim, index))
        # The last call read all earlier actions: its parameters and memory are those of all agents.
        inputs.set(self.group.key("action"), action)
        inputs.set(self.group.key(LOG_PROB_KEY), dist.log_prob(action))
        return tensordict.update(inputs.select(*self.out_keys))

    def _context(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Entries that do not depend on the group's actions, for :meth:`_inputs`."""
        return tensordict

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        """A new tensordict with the network's inputs for the group's actions ``action``."""
        raise NotImplementedError

    def _zero_actions(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Zeros of the actions' shape, ``[*B, n]`` or ``[*B, n, A]``."""
        observation = tensordict.get(self.group.key("observation"))
        if self.group.discrete:
            return observation.new_zeros(observation.shape[:-1], dtype=torch.int64)
        return observation.new_zeros(*observation.shape[:-1], self.group.action_dim)

    def _actions_in(self, tensordict: TensorDictBase, group: AgentGroup) -> torch.Tensor:
        action = tensordict.get(group.key("action"), None)
        if action is None:
            raise KeyError(
                f"{type(self).__name__} of group {self.group.name!r}: expected earlier actions "
                f"under {group.key('action')!r}, got entries {list(tensordict.keys(True, True))}."
            )
        return action


class AutoregressivePolicy(AutoregressivePolicyBase):
    r"""Autoregressive policy of one group, :math:`\prod_i \pi_i(a_i \mid o_i, a_{<i})`.

    Agent :math:`i` reads its observation and the actions (one-hot or continuous) of all agents
    before it, of its group and of the groups ``before``: ``[*B, o + D]``, where ``D`` is the width
    of all actions. Later actions are masked with zeros.

    Args:
        individual (ProbabilisticTensorDictSequential): maps these observations to a distribution
            that is independent over agents (``joint=False``).
        group (AgentGroup): the agents.
        before (sequence of AgentGroup): groups that act before this one.

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
    ) -> None:
        super().__init__(individual, group)
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
        """Build the policy with the default actor of a group.

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

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        taken = [(other, self._actions_in(context, other)) for other in self.before]
        row = torch.cat(
            [_as_entries(group, actions) for group, actions in [*taken, (self.group, action)]], -1
        )  # [*B, D]
        inputs = context.select(*self.individual.in_keys, strict=False)
        key = self.group.key("observation")
        observation = inputs.get(key)
        seen = (row.unsqueeze(-2) * self.visible).to(observation)  # [*B, n, D]
        return inputs.set(key, torch.cat([observation, seen], -1))


def _actions_dim(groups: Sequence[AgentGroup]) -> int:
    return sum(group.n_agents * group.action_dim for group in groups)


def _as_entries(group: AgentGroup, action: torch.Tensor) -> torch.Tensor:
    """Flatten a group's actions, one-hot if discrete, to ``[*B, n * action_dim]``."""
    if group.discrete:
        action = F.one_hot(action, group.action_dim).to(torch.get_default_dtype())
    return action.flatten(-2)
