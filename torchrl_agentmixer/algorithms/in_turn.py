"""Joint policies whose agents act one after another."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_agentmixer.decentralized import LOG_PROB_KEY
from torchrl_agentmixer.groups import AgentGroup

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
