"""Agent- and channel-mixing MLPs (AgentMixer, Eq. 5)."""

from __future__ import annotations

import torch
from torch import nn


def mixing_mlp(size: int, hidden: int) -> nn.Sequential:
    """Linear -> ReLU -> LayerNorm -> Linear over the last axis, ``size`` to ``size``."""
    return nn.Sequential(
        nn.Linear(size, hidden), nn.ReLU(), nn.LayerNorm(hidden), nn.Linear(hidden, size)
    )


class MixerBlock(nn.Module):
    r"""One block of Eq. 5: agent-mixing, then channel-mixing, both residual and pre-norm.

    .. math::
        H_{agent} &= H + W_a^{(2)} \sigma(W_a^{(1)} \mathrm{LayerNorm}(H)) \\
        H_{channel} &= H_{agent} + \sigma(W_c^{(1)} \mathrm{LayerNorm}(H_{agent})) W_c^{(2)}

    Agent-mixing runs over the agent axis of each channel; channel-mixing runs over the channel axis
    of each agent. As in the authors' networks, a LayerNorm follows the inner activation (`arXiv
    2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Args:
        n_agents (int): length of the agent axis, fixed by the weights of agent-mixing.
        channels (int): width ``d`` of each agent's token.
        agent_hidden (int, optional): hidden width of agent-mixing. Default ``d // 2``.
        channel_hidden (int, optional): hidden width of channel-mixing. Default ``4 * d``.

    Examples:
        >>> import torch
        >>> MixerBlock(n_agents=3, channels=8)(torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        n_agents: int,
        channels: int,
        *,
        agent_hidden: int | None = None,
        channel_hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.agent_norm = nn.LayerNorm(channels)
        self.agent_mixing = mixing_mlp(n_agents, agent_hidden or max(1, channels // 2))
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mixing = mixing_mlp(channels, channel_hidden or 4 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix ``tokens`` ``[*B, n_agents, d]`` into the same shape."""
        tokens = tokens + self.mix_agents(self.agent_norm(tokens))
        return tokens + self.mix_channels(self.channel_norm(tokens))

    def mix_agents(self, tokens: torch.Tensor) -> torch.Tensor:
        """Agent-mixing of normalized tokens, ``[*B, n_agents, d]``."""
        return self.agent_mixing(tokens.mT).mT  # over [*B, d, n_agents]

    def mix_channels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Channel-mixing of normalized tokens, ``[*B, n_agents, d]``."""
        return self.channel_mixing(tokens)
