"""The Policy Modifier: individual policies and the state in, the team's deviation out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mixer import AgentMixing, MixerBlock

ModifierOutput = Literal["perturbation", "scale", "temperature"]


@dataclass(frozen=True)
class ModifierGroup:
    """One group of agents as the Policy Modifier sees it.

    Args:
        n_agents: agents in the group.
        params_dim: entries of an individual policy's parameters: ``2 * action_dim`` for ``loc`` and
            ``scale``, ``n_actions`` for ``logits``.
        out_dim: entries to write for each agent: ``action_dim``, ``n_actions``, or 1 for
            a temperature.
        features_dim: width of the actors' features; 0 where there are none.
        output: what is written. ``"perturbation"``: the raw output :math:`x` of Eq. 12.
            ``"scale"``: :math:`c\\,\\sigma(g x)`, in the unit of the action. ``"temperature"``:
            a positive number that is 1 at :math:`x = 0`.
    """

    n_agents: int
    params_dim: int
    out_dim: int
    features_dim: int = 0
    output: ModifierOutput = "perturbation"

    def __post_init__(self) -> None:
        for name, least in (
            ("n_agents", 1),
            ("params_dim", 1),
            ("out_dim", 1),
            ("features_dim", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"ModifierGroup: expected `{name}` >= {least}, got {getattr(self, name)}."
                )
        if self.output not in ("perturbation", "scale", "temperature"):
            raise ValueError(
                "ModifierGroup: expected `output` 'perturbation', 'scale' or 'temperature', "
                f"got {self.output!r}."
            )


class PolicyModifier(nn.Module):
    """MLP-Mixer over agents that turns individual policies and the state into joint deviations.

    For every agent it concatenates the encoded state, the encoded policy parameters, the actor's
    features and a one-hot of the agent, projects them to a token of width ``channels``, mixes the
    tokens of all agents of all groups (:class:`~torchrl_agentmixer.modules.MixerBlock`), and
    writes one output per agent (AgentMixer, Eq. 5 and "Policy Modifier",
    `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). Groups of unequal sizes have their own
    encoder and head and share the mixer blocks.

    Policy parameters and features enter detached: the Modifier reads the individual policies and
    never trains them through its input.

    Args:
        groups (sequence of ModifierGroup): the groups, in the order of ``forward``'s arguments.
        state_dim (int): entries of the state.

    Keyword Args:
        seed_dim (int): width ``w`` of a shared random seed, 0 for none (the paper's code).
        channels (int): token width ``d``.
        num_blocks (int): number ``L`` of mixer blocks.
        num_components (int): 0, or how many perturbations to write for each agent, and as many
            log-weights for the team: what
            :class:`~torchrl_agentmixer.distributions.IGCMixture` reads.
        agent_mixing (str), channel_mixing (bool): parts of the mixer blocks, see ``MixerBlock``.
        reads_state (bool): whether the Modifier sees the state; without, only the individual
            policies, the actors' features and the seed.
        head_gain (float): gain of the heads' orthogonal initialization. The authors use 0.01;
            it sets how far the joint policy deviates at first.
        scale_bound (float): ``c`` of a ``"scale"`` output.
        scale_gain (float): ``g`` of a ``"scale"`` output.

    Raises:
        ValueError: for no group or no agent, and in ``forward`` for an input of the wrong shape.

    Examples:
        >>> import torch
        >>> group = ModifierGroup(n_agents=3, params_dim=4, out_dim=2, output="scale")
        >>> modifier = PolicyModifier([group], state_dim=10)
        >>> (scale,) = modifier(torch.randn(6, 10), torch.randn(6, 3, 4))
        >>> scale.shape
        torch.Size([6, 3, 2])
    """

    def __init__(
        self,
        groups: Sequence[ModifierGroup],
        state_dim: int,
        *,
        seed_dim: int = 0,
        channels: int = 64,
        num_blocks: int = 1,
        num_components: int = 0,
        agent_mixing: AgentMixing = "mlp",
        channel_mixing: bool = True,
        reads_state: bool = True,
        head_gain: float = 1.0,
        scale_bound: float = 0.75,
        scale_gain: float = 0.3,
    ) -> None:
        super().__init__()
        if not groups:
            raise ValueError("PolicyModifier: expected at least one group of agents, got none.")
        sizes = {"state_dim": state_dim, "channels": channels, "num_blocks": num_blocks}
        least = {"state_dim": 1, "channels": 1}
        for name, size in {**sizes, "seed_dim": seed_dim, "num_components": num_components}.items():
            if size < least.get(name, 0):
                raise ValueError(
                    f"PolicyModifier: expected `{name}` >= {least.get(name, 0)}, got {size}."
                )
        if scale_bound <= 0 or scale_gain <= 0:
            raise ValueError(
                "PolicyModifier: expected `scale_bound` and `scale_gain` > 0, got "
                f"{scale_bound} and {scale_gain}."
            )
        if num_components and (len(groups) > 1 or groups[0].output != "perturbation"):
            raise ValueError(
                "PolicyModifier: expected one group with output 'perturbation' for "
                f"`num_components` > 0, got {[group.output for group in groups]}."
            )
        self.groups = tuple(groups)
        self.num_components = num_components
        self.state_dim = state_dim
        self.seed_dim = seed_dim
        self.reads_state = reads_state
        self.scale_bound = scale_bound
        self.scale_gain = scale_gain
        n_agents = sum(group.n_agents for group in groups)

        self.state_encoder = self._encoder(state_dim + seed_dim, channels)
        self.params_encoders = nn.ModuleList(
            self._encoder(group.params_dim, channels) for group in groups
        )
        self.token_encoders = nn.ModuleList(
            self._encoder(2 * channels + group.features_dim + n_agents, channels)
            for group in groups
        )
        self.blocks = nn.Sequential(
            *(
                MixerBlock(
                    n_agents, channels, agent_mixing=agent_mixing, channel_mixing=channel_mixing
                )
                for _ in range(num_blocks)
            )
        )
        self.norm = nn.LayerNorm(channels)
        self.heads = nn.ModuleList(
            nn.Linear(channels, max(1, num_components) * group.out_dim) for group in groups
        )
        self.component_head = nn.Linear(channels, num_components) if num_components else None
        self.one_hot: torch.Tensor
        self.register_buffer("one_hot", torch.eye(n_agents), persistent=False)

        orthogonal_(self, gain=math.sqrt(2))
        orthogonal_(self.heads, gain=head_gain)
        if self.component_head is not None:
            orthogonal_(self.component_head, gain=0.01)

    @staticmethod
    def _encoder(in_dim: int, channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(in_dim, channels), nn.ReLU(), nn.LayerNorm(channels))

    def forward(self, state: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Write every group's output.

        Args:
            state (Tensor): ``[*B, state_dim]``.
            *inputs (Tensor): the seed ``[*B, seed_dim]`` if ``seed_dim > 0``, then for each group
                its policy parameters ``[*B, n_agents, ...]``, as one tensor or several whose last
                axes add up to ``params_dim``, and last its features, if it has any.

        Returns:
            tuple of Tensor: ``[*B, n_agents, out_dim]`` for each group; with components
            ``[*B, n_agents, num_components, out_dim]``, and ``[*B, num_components]``.
        """
        self._check("state", state, (self.state_dim,))
        if not self.reads_state:
            state = torch.zeros_like(state)
        remaining = list(inputs)
        if self.seed_dim:
            seed = self._pop(remaining, "correlation seed", (self.seed_dim,))
            state = torch.cat([state, seed], -1)
        context = self.state_encoder(state).unsqueeze(-2)  # [*B, 1, d]

        tokens, first = [], 0
        for index, group in enumerate(self.groups):
            agents = slice(first, first + group.n_agents)
            first += group.n_agents
            params = self._pop_params(remaining, group).detach()  # [*B, n, params_dim]
            if params.shape[:-2] != state.shape[:-1]:
                raise ValueError(
                    "PolicyModifier: expected state and policy parameters of one batch shape, got "
                    f"{tuple(state.shape[:-1])} and {tuple(params.shape[:-2])}."
                )
            parts = [
                context.expand(*params.shape[:-1], -1),
                self.params_encoders[index](params),
                self.one_hot[agents].expand(*params.shape[:-1], -1),
            ]
            if group.features_dim:
                shape = (group.n_agents, group.features_dim)
                parts.append(self._pop(remaining, "features", shape).detach())
            tokens.append(self.token_encoders[index](torch.cat(parts, -1)))  # [*B, n, d]
        if remaining:
            raise ValueError(
                f"PolicyModifier: {len(remaining)} inputs left over; expected the state, "
                f"{'a seed, ' if self.seed_dim else ''}and the parameters and features of "
                f"{len(self.groups)} group(s)."
            )
        mixed = self.norm(self.blocks(torch.cat(tokens, -2)))  # [*B, n_total, d]
        per_group = mixed.split([group.n_agents for group in self.groups], dim=-2)
        outputs = tuple(
            self._output(group, head(x))
            for group, head, x in zip(self.groups, self.heads, per_group, strict=True)
        )
        if self.component_head is None:
            return outputs
        perturbation = outputs[0].unflatten(-1, (self.num_components, -1))
        return perturbation, self.component_head(mixed.mean(-2))

    def _output(self, group: ModifierGroup, x: torch.Tensor) -> torch.Tensor:
        if group.output == "scale":
            return self.scale_bound * torch.sigmoid(self.scale_gain * x)
        if group.output == "temperature":
            return F.softplus(x + math.log(math.e - 1)).clamp_min(1e-2)
        return x

    def _pop_params(self, remaining: list[torch.Tensor], group: ModifierGroup) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        while remaining and sum(part.shape[-1] for part in parts) < group.params_dim:
            parts.append(remaining.pop(0))
        params = torch.cat(parts, -1) if parts else torch.empty(0)
        self._check("policy parameters", params, (group.n_agents, group.params_dim))
        return params

    def _pop(
        self, remaining: list[torch.Tensor], name: str, shape: tuple[int, ...]
    ) -> torch.Tensor:
        value = remaining.pop(0) if remaining else torch.empty(0)
        self._check(name, value, shape)
        return value

    @staticmethod
    def _check(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(value.shape[value.ndim - len(shape) :]) != shape:
            raise ValueError(
                f"PolicyModifier: expected {name} of shape [*B, {', '.join(map(str, shape))}], "
                f"got {tuple(value.shape)}."
            )
