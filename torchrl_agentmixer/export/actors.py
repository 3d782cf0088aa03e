"""Actors of single agents and of teams: plain modules, own observations in, actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.export.networks import holds, own_network
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies.action_spaces import bounds_of
from torchrl_agentmixer.policies.product import Mode

Statistics = tuple[torch.Tensor | float, ...]
Normalization = Mapping[str, Statistics]
_READ = ("observation", "action_mask", "memory")


class AgentActor(nn.Module):
    """Actor of one agent of a decentralized policy.

    A copy of the agent's parameters in plain ``torch.nn`` layers, without tensordicts and without
    other agents. ``forward`` takes batches ``[B, ...]`` (observations ``[B, o]``, or images
    ``[B, C, H, W]``) and returns a dict:

    - ``"action"``: ``[B]``, int64, the first maximum of ``"logits"``; or ``[B, A]``, within the
      action bounds if there are any;
    - ``"logits"`` (discrete): ``[B, K]``, the lowest finite number for masked actions;
    - ``"next_memory"`` (recurrent): ``[B, m]``, the ``memory`` of the next step.

    Args:
        group (AgentGroup): the agent's group.
        index (int): the agent's index in the group.
        network (nn.Module): maps observations ``[B, o]`` and a memory ``[B, m]`` or ``None`` to
            ``logits`` or ``loc`` and the next memory.

    Keyword Args:
        distribution (str): distribution of continuous actions.
        normalization (tuple, optional): ``(loc, scale)`` or ``(loc, scale, bound)`` of
            observations, loc and scale broadcastable to ``[n_agents, o]``; the network reads
            ``(observation - loc) / scale``, clamped to ``[-bound, bound]``.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> policy = AgentMixerPolicy.from_env(make_env("matrix/climbing")).decentralized()
        >>> first, second = agent_actors(policy)
        >>> second(torch.ones(5, first.group.observation_dim))["action"].shape
        torch.Size([5])
    """

    loc: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self,
        group: AgentGroup,
        index: int,
        network: nn.Module,
        *,
        distribution: str = "normal",
        normalization: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.group, self.index, self.network = group, index, network
        self.memory_dim: int = getattr(network, "memory_dim", 0)
        self.squashed = not group.discrete and distribution == "tanh_normal"
        self.bounds = self._own_bounds()
        if self.bounds is not None:
            for name, value in zip(("low", "high"), self.bounds, strict=True):
                self.register_buffer(name, value)
        self.normalized = normalization is not None
        self.normalization_bound: float | None = None
        if normalization is not None:
            loc, scale, *bound = normalization
            for name, given in (("loc", loc), ("scale", scale)):
                self.register_buffer(name, _row(given, group, group.observation_shape, index))
            self.normalization_bound = float(bound[0]) if bound else None

    def _own_bounds(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The agent's action bounds, each ``[A]``, if there are any."""
        group = self.group
        if group.discrete or (group.low is None and not self.squashed):
            return None
        bounds = bounds_of(group) or {"low": -1.0, "high": 1.0}
        low, high = (
            _row(bounds[k], group, (group.action_dim,), self.index) for k in ("low", "high")
        )
        return low, high

    @property
    def name(self) -> str:
        """Group and index, such as ``agents_0``."""
        return f"{self.group.name}_{self.index}"

    @property
    def agents(self) -> list[AgentActor]:
        """This actor; as :attr:`TeamActor.agents`."""
        return [self]

    def prefix(self, actor: AgentActor) -> str:
        """Prefix of the names of inputs and outputs: none."""
        return ""

    def forward(
        self,
        observation: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        params, next_memory = self.network(self.normalize(observation), memory)
        outputs = self._discrete(params, action_mask) if self.group.discrete else self._mode(params)
        return outputs if next_memory is None else {**outputs, "next_memory": next_memory}

    def normalize(self, observation: torch.Tensor) -> torch.Tensor:
        """Input of the network for an observation of the environment."""
        if not self.normalized:
            return observation
        normal, bound = (observation - self.loc) / self.scale, self.normalization_bound
        return normal if bound is None else normal.clamp(-bound, bound)

    def _discrete(
        self, logits: torch.Tensor, action_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        if action_mask is not None:
            logits = torch.where(action_mask, logits, torch.finfo(logits.dtype).min)
        return {"action": logits.argmax(-1), "logits": logits}

    def _mode(self, loc: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.squashed:  # `IGCTanhNormal.deterministic_sample`, with TorchRL's bound on tanh
            limit = 1.0 - torch.finfo(loc.dtype).resolution
            share = loc.tanh().clamp(-limit, limit)
            center, half_width = (self.low + self.high) / 2, (self.high - self.low) / 2
            return {"action": center + half_width * share}
        if self.bounds is not None:
            loc = torch.minimum(torch.maximum(loc, self.low), self.high)
        return {"action": loc}


class TeamActor(nn.Module):
    """Actors of all agents in one module; each reads its own inputs only.

    Inputs and outputs are those of every :class:`AgentActor`, with the agent's name as prefix:
    ``agents_0_observation`` ``[B, o]``, ``agents_0_action`` ``[B]`` or ``[B, A]``.

    Args:
        actors (sequence of AgentActor): the agents' actors.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> policy = AgentMixerPolicy.from_env(make_env("matrix/climbing")).decentralized()
        >>> x = torch.ones(5, 1)
        >>> sorted(TeamActor(agent_actors(policy))(agents_0_observation=x, agents_1_observation=x))
        ['agents_0_action', 'agents_0_logits', 'agents_1_action', 'agents_1_logits']
    """

    name = "team"

    def __init__(self, actors: Sequence[AgentActor]) -> None:
        super().__init__()
        self.actors = nn.ModuleList(actors)

    @property
    def agents(self) -> list[AgentActor]:
        """The agents' actors, in order."""
        return list(self.actors)  # type: ignore[arg-type]

    def prefix(self, actor: AgentActor) -> str:
        """Prefix of the names of an agent's inputs and outputs."""
        return f"{actor.name}_"

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for actor in self.agents:
            prefix = self.prefix(actor)
            own = {leaf: inputs[prefix + leaf] for leaf in _READ if prefix + leaf in inputs}
            outputs.update({prefix + leaf: value for leaf, value in actor(**own).items()})
        return outputs


def agent_actors(
    policy: TensorDictModuleBase, normalization: Normalization | None = None
) -> list[AgentActor]:
    """Extract the actors of all agents of a decentralized, deterministic policy.

    Args:
        policy (TensorDictModuleBase): from :meth:`AgentMixerPolicy.decentralized` or
            :func:`~torchrl_agentmixer.policies.product.mode_policy`.
        normalization (mapping, optional): ``(loc, scale)`` or ``(loc, scale, bound)`` of a group's
            observations.

    Raises:
        ValueError: for a policy that is not decentralized, or that samples its actions.
    """
    modules = list(policy.module) if isinstance(policy, TensorDictSequential) else [policy]
    modes = [module.module for module in modules if holds(module, Mode)]
    _check_decentralized(policy, [mode.group for mode in modes])
    writers = [module for module in modules if not holds(module, Mode)]
    check_known("group of `normalization`", normalization or {}, [m.group.name for m in modes])
    return [
        AgentActor(
            mode.group,
            index,
            own_network(mode.group, index, writers),
            distribution=mode.distribution,
            normalization=(normalization or {}).get(mode.group.name),
        )
        for mode in modes
        for index in range(mode.group.n_agents)
    ]


def _check_decentralized(policy: TensorDictModuleBase, groups: Sequence[AgentGroup]) -> None:
    """Only decentralized and deterministic policies consist of actors and their modes."""
    own = {"is_init", *(group.key(leaf) for group in groups for leaf in _READ)}
    foreign = [key for key in policy.in_keys if key not in own]
    if foreign or not groups:
        raise ValueError(
            "export: expected a decentralized, deterministic policy (`AgentMixerPolicy`, its "
            "`.decentralized()`, or the `execution_policy` of a method with decentralized "
            f"execution), got {type(policy).__name__}, which reads {policy.in_keys} and writes "
            f"{policy.out_keys}. Agents can only read {sorted(map(str, own))}."
        )


def _row(
    value: torch.Tensor | float, group: AgentGroup, shape: tuple[int, ...], index: int
) -> torch.Tensor:
    """The agent's row of a value that broadcasts to ``[n_agents, *shape]``."""
    value = torch.as_tensor(value, dtype=torch.get_default_dtype(), device="cpu")
    return value.expand(group.n_agents, *shape)[index].clone()
