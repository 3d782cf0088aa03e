"""Joint policies whose agents act one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
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


class InTurnPolicy(TensorDictModuleBase):
    r"""One group's joint policy by the chain rule, :math:`\prod_i \pi_i(a_i \mid o, a_{<i})`.

    Called, it lets the agents act one after another, as many calls of the batched network as the
    group has agents, and writes ``(group, "action")`` and each agent's conditional log-probability,
    ``(group, "action_log_prob")`` ``[*B, n]``, whose sum is the group's joint one. It samples, or
    takes each conditional's mode where TorchRL's exploration type is deterministic.

    :meth:`get_dist` is for losses: all conditionals at the actions that the tensordict holds, in
    one call. TorchRL's ``ClipPPOLoss`` and ``MAPPOLoss`` take it unchanged.

    Subclasses say what the network reads (:meth:`_inputs`), such that an agent's parameters depend
    on no action at or after its own; and set ``in_keys`` and ``out_keys``. Of this class are
    :class:`AutoregressivePolicy` and :class:`TransformerPolicy`.

    Args:
        individual (ProbabilisticTensorDictSequential): maps what :meth:`_inputs` puts together to
            a distribution that is independent over agents, ``joint=False``.
        group (AgentGroup): the agents.

    Keyword Args:
        greedy (bool): act by the conditionals' modes, whatever the exploration type is.
    """

    def __init__(
        self,
        individual: ProbabilisticTensorDictSequential,
        group: AgentGroup,
        *,
        greedy: bool = False,
    ) -> None:
        super().__init__()
        self.individual = individual
        self.group = group
        self.greedy = greedy

    @property
    def log_prob_keys(self) -> list:
        """Where :meth:`forward` writes log-probabilities."""
        return [self.group.key(LOG_PROB_KEY)]

    @property
    def dist_sample_keys(self) -> list:
        """Where :meth:`forward` writes actions."""
        return [self.group.key("action")]

    def get_dist(self, tensordict: TensorDictBase) -> torch.distributions.Distribution:
        """Conditionals of all agents, given the actions in ``tensordict``; batch ``[*B, n]``.

        ``log_prob`` of these same actions is the chain rule's terms; of others it is not.
        """
        action = self._actions_in(tensordict, self.group)
        return self.individual.get_dist(self._inputs(self._context(tensordict), action))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act one after another: writes actions and their conditional log-probabilities."""
        greedy = self.greedy or exploration_type() in DETERMINISTIC
        agent_dim = -1 if self.group.discrete else -2
        context, action = self._context(tensordict), self._blank(tensordict)
        for index in range(self.group.n_agents):
            inputs = self._inputs(context, action)
            dist = self.individual.get_dist(inputs)
            draw = dist.deterministic_sample if greedy else dist.sample()
            action.select(agent_dim, index).copy_(draw.detach().select(agent_dim, index))
        # The last call saw all that any agent may see: it wrote everyone's parameters and memory.
        inputs.set(self.group.key("action"), action)
        inputs.set(self.group.key(LOG_PROB_KEY), dist.log_prob(action))
        return tensordict.update(inputs.select(*self.out_keys))

    def _context(self, tensordict: TensorDictBase) -> TensorDictBase:
        """What :meth:`_inputs` starts from: all that the group's actions do not change."""
        return tensordict

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        """What the network reads where the group acts by ``action``, as a new tensordict."""
        raise NotImplementedError

    def _blank(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Nobody has acted: zeros, which nobody sees; ``[*B, n]`` or ``[*B, n, A]``."""
        observation = tensordict.get(self.group.key("observation"))
        if self.group.discrete:
            return observation.new_zeros(observation.shape[:-1], dtype=torch.int64)
        return observation.new_zeros(*observation.shape[:-1], self.group.action_dim)

    def _actions_in(self, tensordict: TensorDictBase, group: AgentGroup) -> torch.Tensor:
        action = tensordict.get(group.key("action"), None)
        if action is None:
            raise KeyError(
                f"{type(self).__name__} of group {self.group.name!r}: expected the actions that it "
                f"conditions on under {group.key('action')!r}, got entries "
                f"{list(tensordict.keys(True, True))}."
            )
        return action


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
