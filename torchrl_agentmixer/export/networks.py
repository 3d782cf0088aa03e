"""Extraction of one agent's network from the networks of a team."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.modules.models.multiagent import MultiAgentNetBase

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import CategoricalActor, GaussianActor
from torchrl_agentmixer.modules.images import ImageEncoder
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU


def own_network(
    group: AgentGroup, index: int, modules: Sequence[TensorDictModuleBase]
) -> PackageNetwork | ForeignNetwork:
    """Copy of agent ``index``'s network out of the modules that write the group's parameters."""
    for module in modules:
        for part in module.modules():
            own = holds(part, (CategoricalActor, GaussianActor))
            if own and part.in_keys[0] == group.key("observation"):
                return PackageNetwork(part.module, index)
    return ForeignNetwork(group, index, modules)


def holds(module: nn.Module, cls: type | tuple[type, ...]) -> bool:
    """Whether a module is a ``TensorDictModule`` around an instance of ``cls``."""
    return isinstance(module, TensorDictModule) and isinstance(module.module, cls)


class PackageNetwork(nn.Module):
    """Network of agent ``index``, from an actor of this package."""

    one_hot: torch.Tensor

    def __init__(self, actor: CategoricalActor | GaussianActor, index: int) -> None:
        super().__init__()
        self.body = _agent_copy(actor.body, index)
        self.head = _agent_copy(actor.head, index)
        layers = [layer for layer in self.body if not isinstance(layer, ImageEncoder)]  # type: ignore[attr-defined]
        self.layer_norm = isinstance(layers[0], nn.LayerNorm)
        self.memory_dim = actor.memory_dim
        self.agent_one_hot = actor.agent_one_hot
        if self.agent_one_hot:
            self.register_buffer("one_hot", actor.one_hot[index : index + 1].clone())
        if self.memory_dim:
            self.cell = _agent_cell(actor.memory, index)
            self.memory_norm = _agent_copy(actor.memory_norm, index)

    def forward(
        self, observation: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        observation = observation.flatten(1)
        if self.agent_one_hot:
            one_hot = self.one_hot.expand(observation.shape[0], -1)
            observation = torch.cat([observation, one_hot], -1)
        features = self.body(observation)
        if not self.memory_dim:
            return self.head(features), None
        memory = self.cell(features, memory)
        return self.head(self.memory_norm(memory)), memory


class ForeignNetwork(nn.Module):
    """Network of agent ``index``, from another feed-forward actor, run on a team of one agent."""

    layer_norm = None
    memory_dim = 0

    def __init__(
        self, group: AgentGroup, index: int, modules: Sequence[TensorDictModuleBase]
    ) -> None:
        super().__init__()
        self.group = group
        actor = TensorDictSequential(*deepcopy(list(modules))).select_subsequence(
            in_keys=[group.key("observation")], out_keys=group.param_keys[:1]
        )
        if group.param_keys[0] not in actor.out_keys:
            raise ValueError(
                f"export: expected an actor that writes {group.param_keys[0]!r} from "
                f"{group.key('observation')!r} only, got modules that read "
                f"{[module.in_keys for module in modules]}. Recurrent actors must be this "
                "package's (`memory_dim`)."
            )
        self.actor = _replace(actor, index)

    def forward(self, observation: torch.Tensor, memory: None) -> tuple[torch.Tensor, None]:
        team = TensorDict({"observation": observation.unsqueeze(-2)}, batch_size=[])
        written = self.actor(TensorDict({self.group.name: team}, batch_size=[]))
        return written.get(self.group.param_keys[0]).squeeze(-2), None


def _replace(module: nn.Module, index: int) -> nn.Module:
    if isinstance(module, MultiAgentNetBase):
        return _agent_copy(module, index)
    for name, child in list(module.named_children()):
        setattr(module, name, _replace(child, index))
    return module


def _agent_copy(network: MultiAgentNetBase, index: int) -> nn.Module:
    """One agent's copy of a multi-agent network."""
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
