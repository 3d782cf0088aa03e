"""Candidates of ``modifier_ablation.yaml``: the Policy Modifier with one part removed or replaced.

A variant is a subclass of the part and a method that builds it: ``AgentMixer.policy_class``,
``AgentMixerPolicy.modifier_class`` and ``PolicyModifier.block_class`` name the parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchrl_agentmixer.algorithms import AgentMixer, AgentMixerConfig
from torchrl_agentmixer.algorithms.registry import register_algorithm
from torchrl_agentmixer.modules import MixerBlock, PolicyModifier
from torchrl_agentmixer.policies import AgentMixerPolicy


class AttentionBlock(MixerBlock):
    """Mixer block with self-attention over agents instead of the agent-mixing MLP.

    The number of heads is the largest divisor of ``channels`` up to 4.
    """

    def __init__(self, n_agents: int, channels: int) -> None:
        super().__init__(n_agents, channels)
        heads = max(h for h in range(1, 5) if channels % h == 0)
        self.agent_mixing = nn.MultiheadAttention(channels, heads, batch_first=True)

    def mix_agents(self, tokens: torch.Tensor) -> torch.Tensor:
        flat = tokens.reshape(-1, *tokens.shape[-2:])
        return self.agent_mixing(flat, flat, flat, need_weights=False)[0].reshape(tokens.shape)


class NoAgentMixingBlock(MixerBlock):
    """Mixer block without agent-mixing."""

    def __init__(self, n_agents: int, channels: int) -> None:
        super().__init__(n_agents, channels)
        self.agent_norm = self.agent_mixing = nn.Identity()  # no unused parameters

    def mix_agents(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tokens)


class NoChannelMixingBlock(MixerBlock):
    """Mixer block without channel-mixing."""

    def __init__(self, n_agents: int, channels: int) -> None:
        super().__init__(n_agents, channels)
        self.channel_norm = self.channel_mixing = nn.Identity()  # no unused parameters

    def mix_channels(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tokens)


class AttentionModifier(PolicyModifier):
    """Policy Modifier with attention over agents."""

    block_class = AttentionBlock


class NoAgentMixingModifier(PolicyModifier):
    """Policy Modifier without agent-mixing."""

    block_class = NoAgentMixingBlock


class NoChannelMixingModifier(PolicyModifier):
    """Policy Modifier without channel-mixing."""

    block_class = NoChannelMixingBlock


class NoStateModifier(PolicyModifier):
    """Policy Modifier that reads zeros instead of the state."""

    def modify(
        self,
        state: torch.Tensor,
        params: Sequence[torch.Tensor],
        features: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, ...]:
        return super().modify(torch.zeros_like(state), params, features)


CANDIDATES = {
    "agent_mixer_attention": AttentionModifier,
    "agent_mixer_no_agent_mixing": NoAgentMixingModifier,
    "agent_mixer_no_channel_mixing": NoChannelMixingModifier,
    "agent_mixer_no_state": NoStateModifier,
}

for name, modifier in CANDIDATES.items():
    policy = type(f"{modifier.__name__}Policy", (AgentMixerPolicy,), {"modifier_class": modifier})
    method = type(f"{modifier.__name__}Mixer", (AgentMixer,), {"policy_class": policy})
    register_algorithm(name, method, AgentMixerConfig)
