"""One agent's actor out of a team's: plain layers, one step, own observation in, action out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.modules.models.multiagent import MultiAgentNetBase

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import CategoricalActor, GaussianActor
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU
from torchrl_agentmixer.policies.product import Mode, action_bounds

Normalization = Mapping[str, tuple[torch.Tensor | float, torch.Tensor | float]]
_READ = ("observation", "action_mask", "memory")


class AgentActor(nn.Module):
    """One agent of a decentralized policy: its own observation in, its action out.

    A copy: parameters are the agent's own, in plain ``torch.nn`` layers, without tensordicts and
    without the other agents. ``forward`` takes batches ``[B, ...]`` and returns a dict:

    - ``"action"``: ``[B]``, int64, the first action with the highest of ``"logits"``; or ``[B, A]``
      within the action's bounds, if it has any;
    - ``"logits"`` (discrete): ``[B, K]``, the lowest finite number where an action is forbidden;
    - ``"next_memory"`` (recurrent): ``[B, m]``, the ``memory`` of the next step.

    Args:
        group (AgentGroup): the agent's group.
        index (int): which of the group's agents.
        network (nn.Module): maps observations ``[B, o]`` and a memory ``[B, m]`` or ``None`` to
            ``logits`` or ``loc`` and the next memory.

    Keyword Args:
        distribution (str): of continuous actions.
        normalization (tuple, optional): ``(loc, scale)`` of observations, each broadcastable to
            ``[n_agents, o]``; the network reads ``(observation - loc) / scale``.

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
    center: torch.Tensor
    half_width: torch.Tensor

    def __init__(
        self,
        group: AgentGroup,
        index: int,
        network: nn.Module,
        *,
        distribution: str = "normal",
        normalization: tuple[torch.Tensor | float, torch.Tensor | float] | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.index = index
        self.network = network
        self.memory_dim: int = getattr(network, "memory_dim", 0)
        self.squashed = not group.discrete and distribution == "tanh_normal"
        self.bounds = self._own_bounds()
        if self.bounds is not None:
            low, high = self.bounds
            centered = {"center": (low + high) / 2, "half_width": (high - low) / 2}
            for name, value in (centered if self.squashed else {"low": low, "high": high}).items():
                self.register_buffer(name, value)
        self.normalized = normalization is not None
        if normalization is not None:
            for name, given in zip(("loc", "scale"), normalization, strict=True):
                self.register_buffer(name, _row(given, group, "observation_dim", index))

    def _own_bounds(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The agent's lowest and highest actions, each ``[A]``, if there are any."""
        group = self.group
        if group.discrete or (group.low is None and not self.squashed):
            return None
        bounds = action_bounds(group, "tanh_normal") or {"low": -1.0, "high": 1.0}
        low, high = (_row(bounds[k], group, "action_dim", self.index) for k in ("low", "high"))
        return low, high

    @property
    def name(self) -> str:
        """Group and index, such as ``agents_0``."""
        return f"{self.group.name}_{self.index}"

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
        """What the network reads where the environment writes ``observation``."""
        return (observation - self.loc) / self.scale if self.normalized else observation

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
            return {"action": self.center + self.half_width * share}
        if self.bounds is not None:
            loc = torch.minimum(torch.maximum(loc, self.low), self.high)
        return {"action": loc}


class TeamActor(nn.Module):
    """All agents in one module; each still reads its own inputs alone.

    ``forward`` takes every agent's inputs and returns every agent's outputs, of
    :class:`AgentActor`'s shapes, under names that begin with the agent's: ``agents_0_observation``
    ``[B, o]``, ``agents_0_action`` ``[B]`` or ``[B, A]``.

    Args:
        actors (sequence of AgentActor): the agents.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> policy = AgentMixerPolicy.from_env(make_env("matrix/climbing")).decentralized()
        >>> team = TeamActor(agent_actors(policy))
        >>> observation = torch.ones(5, 1)
        >>> outputs = team(agents_0_observation=observation, agents_1_observation=observation)
        >>> sorted(outputs)
        ['agents_0_action', 'agents_0_logits', 'agents_1_action', 'agents_1_logits']
    """

    name = "team"

    def __init__(self, actors: Sequence[AgentActor]) -> None:
        super().__init__()
        self.actors = nn.ModuleList(actors)

    @property
    def agents(self) -> list[AgentActor]:
        """The agents, in order."""
        return list(self.actors)  # type: ignore[arg-type]

    @staticmethod
    def prefix(actor: AgentActor) -> str:
        """What the names of an agent's inputs and outputs begin with."""
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
    """All agents of a decentralized, deterministic policy, group by group.

    Args:
        policy (TensorDictModuleBase): from :meth:`AgentMixerPolicy.decentralized` or
            :func:`~torchrl_agentmixer.policies.product.mode_policy`.
        normalization (mapping, optional): ``(loc, scale)`` of a group's observations.

    Raises:
        ValueError: for a policy whose agents do not act on their own observations alone, or that
            samples its actions.
    """
    modules = list(policy.module) if isinstance(policy, TensorDictSequential) else [policy]
    modes = [module.module for module in modules if _holds(module, Mode)]
    _check_decentralized(policy, [mode.group for mode in modes])
    writers = [module for module in modules if not _holds(module, Mode)]
    for name in normalization or {}:
        if name not in [mode.group.name for mode in modes]:
            raise ValueError(
                f"export: expected `normalization` of groups {[m.group.name for m in modes]}, "
                f"got {name!r}."
            )
    return [
        AgentActor(
            mode.group,
            index,
            _network(mode.group, index, writers),
            distribution=mode.distribution,
            normalization=(normalization or {}).get(mode.group.name),
        )
        for mode in modes
        for index in range(mode.group.n_agents)
    ]


def _holds(module: nn.Module, cls: type | tuple[type, ...]) -> bool:
    return isinstance(module, TensorDictModule) and isinstance(module.module, cls)


def _check_decentralized(policy: TensorDictModuleBase, groups: Sequence[AgentGroup]) -> None:
    expected = (
        "expected a decentralized, deterministic policy: `AgentMixerPolicy`, its "
        "`.decentralized()`, or the `execution_policy` of a method whose execution is decentralized"
    )
    if not groups:
        raise ValueError(
            f"export: {expected}; got {type(policy).__name__}, which reads {policy.in_keys} and "
            f"writes {policy.out_keys}. Agents that wait for the actions of others (MAT, ARMAPPO) "
            "or share a latent have no files of their own, and a policy that samples has no mode."
        )
    own = [group.key(leaf) for group in groups for leaf in _READ]
    foreign = [key for key in policy.in_keys if key not in own and key != "is_init"]
    if foreign:
        raise ValueError(
            f"export: {expected}; got one that also reads {foreign}, which an agent does not "
            "observe."
        )


def _network(group: AgentGroup, index: int, writers: Sequence[TensorDictModuleBase]) -> nn.Module:
    for writer in writers:
        for module in writer.modules():
            own = _holds(module, (CategoricalActor, GaussianActor))
            if own and module.in_keys[0] == group.key("observation"):
                return _OwnNetwork(module.module, index)
    return _AdaptedNetwork(group, index, writers)


class _OwnNetwork(nn.Module):
    """Agent ``index`` of this package's actors."""

    one_hot: torch.Tensor

    def __init__(self, actor: CategoricalActor | GaussianActor, index: int) -> None:
        super().__init__()
        self.body = _agent_network(actor.body, index)
        self.head = _agent_network(actor.head, index)
        self.layer_norm = isinstance(next(iter(self.body)), nn.LayerNorm)  # type: ignore[call-overload]
        self.memory_dim = actor.memory_dim
        self.agent_one_hot = actor.agent_one_hot
        if self.agent_one_hot:
            self.register_buffer("one_hot", actor.one_hot[index : index + 1].clone())
        if self.memory_dim:
            self.cell = _agent_cell(actor.memory, index)
            self.memory_norm = deepcopy(actor.memory_norm)

    def forward(
        self, observation: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.agent_one_hot:
            one_hot = self.one_hot.expand(observation.shape[0], -1)
            observation = torch.cat([observation, one_hot], -1)
        features = self.body(observation)
        if not self.memory_dim:
            return self.head(features), None
        memory = self.cell(features, memory)
        return self.head(self.memory_norm(memory)), memory


class _AdaptedNetwork(nn.Module):
    """Agent ``index`` of another feed-forward actor, as if it were its group's only agent.

    TorchRL's multi-agent networks are replaced by the one agent's; all else is run as it is.
    """

    layer_norm = None

    def __init__(
        self, group: AgentGroup, index: int, writers: Sequence[TensorDictModuleBase]
    ) -> None:
        super().__init__()
        self.group = group
        actor = TensorDictSequential(*deepcopy(list(writers))).select_subsequence(
            in_keys=[group.key("observation")], out_keys=group.param_keys[:1]
        )
        if group.param_keys[0] not in actor.out_keys:
            raise ValueError(
                f"export: expected an actor that writes {group.param_keys[0]!r} from "
                f"{group.key('observation')!r} alone, got modules that read "
                f"{[writer.in_keys for writer in writers]}. Memory is exported of this package's "
                "actors (`memory_dim`) only."
            )
        self.actor = _replace(actor, index)

    def forward(self, observation: torch.Tensor, memory: None) -> tuple[torch.Tensor, None]:
        team = TensorDict({"observation": observation.unsqueeze(-2)}, batch_size=[])
        written = self.actor(TensorDict({self.group.name: team}, batch_size=[]))
        return written.get(self.group.param_keys[0]).squeeze(-2), None


def _replace(module: nn.Module, index: int) -> nn.Module:
    if isinstance(module, MultiAgentNetBase):
        return _agent_network(module, index)
    for name, child in list(module.named_children()):
        setattr(module, name, _replace(child, index))
    return module


def _agent_network(network: MultiAgentNetBase, index: int) -> nn.Module:
    """One agent's copy of a TorchRL multi-agent network."""
    if network.centralized:
        raise ValueError(
            f"export: expected networks that read an agent's own observation, got a "
            f"{type(network).__name__} with `centralized=True`, which reads all agents'."
        )
    plain = network.get_stateful_net()
    for module in plain.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in list(tensors.items()):
                if value is not None:
                    own = value if network.share_params else value[index]
                    own = own.detach().clone()
                    tensors[name] = nn.Parameter(own) if tensors is module._parameters else own
    return plain


def _agent_cell(gru: MultiAgentGRU, index: int) -> nn.GRUCell:
    cell = nn.GRUCell(gru.in_dim, gru.memory_dim, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        weights = getattr(gru, name)
        own = weights[index if weights.shape[0] > 1 else 0]
        setattr(cell, name, nn.Parameter(own.detach().clone()))
    return cell


def _row(value: torch.Tensor | float, group: AgentGroup, size: str, index: int) -> torch.Tensor:
    """An agent's row of what broadcasts to ``[n_agents, size]``."""
    value = torch.as_tensor(value, dtype=torch.get_default_dtype(), device="cpu")
    return value.expand(group.n_agents, getattr(group, size))[index].clone()
