"""AgentMixer's Policy Modifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import nn

from torchrl_agentmixer._choices import check_at_least, check_known
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules.mixer import MixerBlock
from torchrl_agentmixer.modules.mlp import orthogonal_
from torchrl_agentmixer.modules.modifier_options import (
    JointScaleOptions,
    modifier_options,
)


class PolicyModifier(TensorDictModuleBase):
    r"""MLP-Mixer from the state and the individual policies to the joint policy's deviation.

    AgentMixer, Eq. 5 (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). The token of an
    agent, of width ``channels``, is a projection of the encoded state, the encoded policy
    parameters, the agent's one-hot and the actor's features. A
    :class:`~torchrl_agentmixer.modules.MixerBlock` mixes the tokens of all agents of all groups.
    Each group has its own encoder and head.

    Layout, per group of agents (``"agents"`` below):

    - reads ``"state"`` ``[*B, s]``; ``("agents", "logits")`` ``[*B, n, K]`` or ``("agents",
      "loc")`` and ``("agents", "scale")`` ``[*B, n, A]``; and, with ``features_dim``,
      ``("agents", "features")`` ``[*B, n, f]``;
    - writes for discrete actions ``("agents", "perturbation")``, the :math:`x` of Eq. 12, ``[*B,
      n, K]``, or with ``m`` components ``[*B, n, m, K]`` and ``"component_logits"`` ``[*B, m]``;
    - writes for continuous actions ``("agents", "joint_scale")`` :math:`c\,\sigma(g x)`, ``[*B, n,
      A]``, or with ``m`` components ``("agents", "perturbation")`` :math:`\tanh(x)`, ``[*B, n, m,
      A]``, shifts of the means, and ``"component_logits"``.

    :meth:`set_keys` renames entries; keys of agents are relative to their group. Policy parameters
    and features are detached: no gradient of the Modifier reaches the individual policies. Called
    with tensors instead of a tensordict, it returns tensors.

    Args:
        groups (sequence of AgentGroup): the agents.
        state_dim (int): size of the state.

    Keyword Args:
        features_dim (int or mapping): size of the actors' features, of all groups or by group name;
            0 without features.
        **options: fields of :class:`DiscreteModifierOptions` if all groups have discrete actions,
            else of :class:`ContinuousModifierOptions`, or :class:`JointScaleOptions` without
            components. A mixture needs all groups discrete, or all continuous.

    Raises:
        ValueError: without a group, for an unknown option, a size out of range, and in ``forward``
            for an entry of the wrong shape.

    Examples:
        >>> from tensordict import TensorDict
        >>> group = AgentGroup("agents", 3, observation_dim=8, action_dim=2, discrete=False)
        >>> modifier = PolicyModifier([group], state_dim=10)
        >>> agents = {"loc": torch.randn(6, 3, 2), "scale": torch.rand(6, 3, 2)}
        >>> data = TensorDict({"state": torch.randn(6, 10), "agents": agents}, [6])
        >>> modifier(data)["agents", "perturbation"].shape  # of 16 components
        torch.Size([6, 3, 16, 2])
    """

    block_class = MixerBlock

    @dataclass
    class _AcceptedKeys:
        """Keys of :meth:`PolicyModifier.set_keys`; all except the first two are inside a group."""

        state: NestedKey = "state"
        component_logits: NestedKey = "component_logits"
        logits: NestedKey = "logits"
        loc: NestedKey = "loc"
        scale: NestedKey = "scale"
        features: NestedKey = "features"
        perturbation: NestedKey = "perturbation"
        joint_scale: NestedKey = "joint_scale"

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        state_dim: int,
        *,
        features_dim: int | Mapping[str, int] = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if not groups:
            raise ValueError("PolicyModifier: expected at least one group of agents, got none.")
        self.groups = tuple(groups)
        self.options = modifier_options(groups, options)
        self.num_components: int = self.options.num_components
        self.state_dim = state_dim
        self.features_dims = [
            features_dim if isinstance(features_dim, int) else features_dim.get(group.name, 0)
            for group in groups
        ]
        channels = self.options.channels
        check_at_least("PolicyModifier", 1, state_dim=state_dim, channels=channels)
        n_agents = sum(group.n_agents for group in groups)

        self.state_encoder = _encoder(state_dim, channels)
        self.params_encoders = nn.ModuleList(
            _encoder(group.params_dim, channels) for group in groups
        )
        self.token_encoders = nn.ModuleList(
            _encoder(2 * channels + features + n_agents, channels)
            for features in self.features_dims
        )
        self.block = self.block_class(n_agents, channels)
        self.norm = nn.LayerNorm(channels)
        rows = max(1, self.num_components)
        self.heads = nn.ModuleList(nn.Linear(channels, rows * g.action_dim) for g in groups)
        self.component_head = nn.Linear(channels, rows) if self.num_components else None
        self.one_hot: torch.Tensor
        self.register_buffer("one_hot", torch.eye(n_agents), persistent=False)

        orthogonal_(self, gain=math.sqrt(2))
        orthogonal_(self.heads, gain=self.options.head_gain)
        if self.component_head is not None:
            orthogonal_(self.component_head, gain=0.01)
        self.set_keys()

    def set_keys(self, **keys: NestedKey) -> None:
        """Set the keys of entries; other entries get their default keys.

        Raises:
            ValueError: for an unknown name.
        """
        known = [field.name for field in fields(self._AcceptedKeys)]
        check_known("key of PolicyModifier", keys, known)
        self.tensor_keys = self._AcceptedKeys(**keys)
        self.in_keys = [self.tensor_keys.state]
        self.out_keys = []
        for group, features_dim in zip(self.groups, self.features_dims, strict=True):
            self.in_keys += self.params_keys(group)
            self.in_keys += [self.key(group, "features")] if features_dim else []
            perturbs = group.discrete or self.num_components
            output = "perturbation" if perturbs else "joint_scale"
            self.out_keys.append(self.key(group, output))
        if self.num_components:
            self.out_keys.append(self.tensor_keys.component_logits)

    def key(self, group: AgentGroup, name: str) -> NestedKey:
        """The key of an entry of a group's agents, such as ``("agents", "perturbation")``."""
        inside = getattr(self.tensor_keys, name)
        return (group.name, *((inside,) if isinstance(inside, str) else inside))

    def params_keys(self, group: AgentGroup) -> list[NestedKey]:
        """Keys of the parameters of a group's individual policies."""
        return [self.key(group, name) for name in group.param_names]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        params, features = [], []
        for group, features_dim in zip(self.groups, self.features_dims, strict=True):
            parts = [tensordict[key] for key in self.params_keys(group)]
            params.append(torch.cat(parts, -1))
            key = self.key(group, "features")
            features.append(tensordict[key] if features_dim else None)
        outputs = self.modify(tensordict[self.tensor_keys.state], params, features)
        for key, output in zip(self.out_keys, outputs, strict=True):
            tensordict.set(key, output)
        return tensordict

    def modify(
        self,
        state: torch.Tensor,
        params: Sequence[torch.Tensor],
        features: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, ...]:
        """Compute the outputs from tensors.

        Args:
            state (Tensor): ``[*B, state_dim]``.
            params (sequence of Tensor): policy parameters of each group, ``[*B, n, params_dim]``.
            features (sequence of Tensor or None): features of each group, ``[*B, n, f]``.

        Returns:
            tuple of Tensor: the entries of ``out_keys``.
        """
        _check("state", state, (self.state_dim,))
        context = self.state_encoder(state).unsqueeze(-2)  # [*B, 1, d]
        tokens, first = [], 0
        for index, (group, own, extra) in enumerate(
            zip(self.groups, params, features, strict=True)
        ):
            _check(f"parameters of {group.name!r}", own, (group.n_agents, group.params_dim))
            if own.shape[:-2] != state.shape[:-1]:
                raise ValueError(
                    "PolicyModifier: expected state and policy parameters of one batch shape, got "
                    f"{tuple(state.shape[:-1])} and {tuple(own.shape[:-2])}."
                )
            one_hot = self.one_hot[first : first + group.n_agents]
            first += group.n_agents
            parts = [
                context.expand(*own.shape[:-1], -1),
                self.params_encoders[index](own.detach()),
                one_hot.expand(*own.shape[:-1], -1),
            ]
            if extra is not None:
                shape = (group.n_agents, self.features_dims[index])
                _check(f"features of {group.name!r}", extra, shape)
                parts.append(extra.detach())
            tokens.append(self.token_encoders[index](torch.cat(parts, -1)))  # [*B, n, d]
        mixed = self.norm(self.block(torch.cat(tokens, -2)))  # [*B, n_total, d]
        per_group = mixed.split([group.n_agents for group in self.groups], dim=-2)
        outputs = tuple(
            self.output(group, head(x))
            for group, head, x in zip(self.groups, self.heads, per_group, strict=True)
        )
        if self.component_head is None:
            return outputs
        return *outputs, self.component_head(mixed.mean(-2))

    def output(self, group: AgentGroup, x: torch.Tensor) -> torch.Tensor:
        """The entry of a group for its head's output ``x`` ``[*B, n, ...]``."""
        if self.num_components:
            x = x.unflatten(-1, (self.num_components, -1))
            return x if group.discrete else torch.tanh(x)
        if isinstance(self.options, JointScaleOptions) and not group.discrete:
            return self.options.scale_bound * torch.sigmoid(self.options.scale_gain * x)
        return x


def _encoder(in_dim: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, channels), nn.ReLU(), nn.LayerNorm(channels))


def _check(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape[value.ndim - len(shape) :]) != shape:
        raise ValueError(
            f"PolicyModifier: expected {name} of shape [*B, {', '.join(map(str, shape))}], "
            f"got {tuple(value.shape)}."
        )
