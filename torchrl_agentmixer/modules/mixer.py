"""Agent- and channel-mixing MLPs (AgentMixer, Eq. 5)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

AgentMixing = Literal["mlp", "attention", "none"]


def mixing_mlp(size: int, hidden: int) -> nn.Sequential:
    """Linear -> ReLU -> LayerNorm -> Linear over the last axis, ``size`` to ``size``."""
    return nn.Sequential(
        nn.Linear(size, hidden), nn.ReLU(), nn.LayerNorm(hidden), nn.Linear(hidden, size)
    )


class MixerBlock(nn.Module):
    r"""One block of Eq. 5: agent-mixing, then channel-mixing, each residual, LayerNorm first.

    .. math::
        H_{agent} &= H + W_a^{(2)} \sigma(W_a^{(1)} \mathrm{LayerNorm}(H)) \\
        H_{channel} &= H_{agent} + \sigma(W_c^{(1)} \mathrm{LayerNorm}(H_{agent})) W_c^{(2)}

    Agent-mixing runs over the agent axis, for each channel on its own; channel-mixing over the
    channel axis, for each agent on its own. As in the authors' networks, a LayerNorm follows the
    inner activation (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Args:
        n_agents (int): length of the agent axis; fixed, since agent-mixing has weights for it.
        channels (int): width ``d`` of each agent's token.
        agent_hidden (int, optional): hidden width of agent-mixing. Default ``d // 2``.
        channel_hidden (int, optional): hidden width of channel-mixing. Default ``4 * d``.
        agent_mixing (str): ``"mlp"``, the paper's; ``"attention"``, self-attention over agents of
            as many heads as divide ``d``, at most 4, in its place; or ``"none"``.
        channel_mixing (bool): whether there is channel-mixing.

    Raises:
        ValueError: for another ``agent_mixing``.

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
        agent_mixing: AgentMixing = "mlp",
        channel_mixing: bool = True,
    ) -> None:
        super().__init__()
        if agent_mixing not in get_args(AgentMixing):
            raise ValueError(
                f"MixerBlock: expected `agent_mixing` one of {get_args(AgentMixing)}, "
                f"got {agent_mixing!r}."
            )
        self.agent_norm = None if agent_mixing == "none" else nn.LayerNorm(channels)
        self.agent_mixing: nn.Module | None = None
        if agent_mixing == "mlp":
            self.agent_mixing = mixing_mlp(n_agents, agent_hidden or max(1, channels // 2))
        elif agent_mixing == "attention":
            heads = max(h for h in range(1, 5) if channels % h == 0)
            self.agent_mixing = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.channel_norm = nn.LayerNorm(channels) if channel_mixing else None
        self.channel_mixing: nn.Module | None = None
        if channel_mixing:
            self.channel_mixing = mixing_mlp(channels, channel_hidden or 4 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix ``tokens`` ``[*B, n_agents, d]`` into the same shape."""
        if self.agent_mixing is not None and self.agent_norm is not None:
            tokens = tokens + self._mix_agents(self.agent_mixing, self.agent_norm(tokens))
        if self.channel_mixing is not None and self.channel_norm is not None:
            tokens = tokens + self.channel_mixing(self.channel_norm(tokens))
        return tokens

    @staticmethod
    def _mix_agents(mixing: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(mixing, nn.MultiheadAttention):
            flat = tokens.reshape(-1, *tokens.shape[-2:])
            return mixing(flat, flat, flat, need_weights=False)[0].reshape(tokens.shape)
        return mixing(tokens.mT).mT  # over [*B, d, n_agents]
