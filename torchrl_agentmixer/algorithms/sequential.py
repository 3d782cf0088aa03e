"""Sequential updates of agents: networks of single agents, and their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies import actor_module


@dataclass(kw_only=True)
class SequentialConfig:
    """Hyperparameters of sequential updates.

    Args:
        fixed_order: update agents in the order of their indices instead of a random order, which
            convergence to an equilibrium needs in theory.
    """

    fixed_order: bool = False


def check_separate_parameters(config: Any) -> None:
    """Raise a ValueError for a config with ``share_params=True``."""
    if config.share_params:
        raise ValueError(
            f"{type(config).__name__}: expected `share_params` False, got True: the update of one "
            "agent must not change the other agents' actors."
        )


def update_order(agents: Iterable[Any], fixed: bool) -> list[Any]:
    """Agents in the order of their updates, which all processes share.

    Args:
        agents (iterable): the agents.
        fixed (bool): the given order, or a random one.

    Examples:
        >>> update_order(["a", "b"], fixed=True)
        ['a', 'b']
    """
    agents = list(agents)
    if fixed:
        return agents
    order = Algorithm.same_on_all(torch.randperm(len(agents)).tolist)
    return [agents[index] for index in order]


class AgentActor(nn.Module):
    """One agent's network.

    Its parameters are views into those of its group's batched actor: a gradient step changes only
    that agent's rows of the batched parameters.

    Args:
        group (AgentGroup): the agent's group.
        actor (TensorDictModule): actor of the whole group, with separate parameters.
        index (int): index of the agent in its group.

    Keyword Args:
        **kwargs: options of :func:`actor_module` with which the group's actor was built.

    Attributes:
        alone (AgentGroup): a group of this agent only.
        leaves (tuple of str): entries that :meth:`select` takes with the inputs of the policy.

    Examples:
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> actor = actor_module(group)
        >>> agent = AgentActor(group, actor, index=1)
        >>> for parameter in agent.actor.parameters():
        ...     _ = parameter.data.zero_()
        >>> logits = actor(TensorDict({"agents": {"observation": torch.randn(5, 3, 4)}}, [5]))
        >>> (logits["agents", "logits"] == 0).all(-1).all(0).tolist()
        [False, True, False]
    """

    leaves: tuple[str, ...] = ()

    def __init__(
        self, group: AgentGroup, actor: TensorDictModule, index: int, **kwargs: Any
    ) -> None:
        super().__init__()
        self.group = group
        self.index = index
        self._group_actor = (actor,)  # a tuple, so that it is not a submodule
        own = slice(index, index + 1)
        self.alone = replace(
            group,
            n_agents=1,
            low=None if group.low is None else group.low[own],
            high=None if group.high is None else group.high[own],
        )
        device = next(actor.parameters()).device
        self.actor = actor_module(self.alone, **kwargs).to(device)
        self.tie()

    def tie(self) -> None:
        """Make this network's parameters views into the batched actor's.

        Moving the batched actor to another device breaks the views; this restores them.
        """
        batched = dict(self._group_actor[0].named_parameters())
        for name, parameter in self.actor.named_parameters():
            parameter.data = batched[name].data[self.index : self.index + 1]

    def select(self, data: TensorDictBase) -> TensorDict:
        """The agent's entries of a batch ``[*B]``, with an agent axis: ``[*B, 1, ...]``."""
        names = ["observation", *self.leaves]
        names += [key[-1] for key in self.group.mask_keys.values()]
        recurrent = "is_init" in self.actor.in_keys
        names += ["memory"] if recurrent else []
        own = {
            name: data.get(self.group.key(name)).narrow(data.ndim, self.index, 1) for name in names
        }
        selected = TensorDict({self.group.name: own}, data.batch_size, device=data.device)
        return selected.set("is_init", data["is_init"]) if recurrent else selected
