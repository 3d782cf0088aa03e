"""Encoder and decoder of the Multi-Agent Transformer (MAT), with one token per agent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU


def _check_heads(owner: str, width: int, num_heads: int) -> None:
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"{owner}: expected `num_heads` >= 1 that divides `width` {width}, got {num_heads}."
        )


class ObservationEncoder(nn.Module):
    """MAT's encoder (Figure 2): self-attention over all agents' observations.

    Each agent's observation and one-hot are embedded (Linear -> ReLU -> LayerNorm). Blocks of
    ``torch.nn.TransformerEncoderLayer`` follow.

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.

    Keyword Args:
        width (int): token width.
        num_heads (int): attention heads; must divide ``width``.
        num_blocks (int): number of blocks.
        input_norm (bool): LayerNorm on the observation.

    Raises:
        ValueError: if ``num_heads`` does not divide ``width``; for an observation of the wrong
            shape.

    Examples:
        >>> encoder = ObservationEncoder(n_agents=3, observation_dim=8, width=16)
        >>> encoder(torch.randn(5, 2, 3, 8)).shape
        torch.Size([5, 2, 3, 16])
    """

    one_hot: torch.Tensor

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        *,
        width: int = 64,
        num_heads: int = 1,
        num_blocks: int = 1,
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        _check_heads("ObservationEncoder", width, num_heads)
        self.n_agents, self.observation_dim, self.width = n_agents, observation_dim, width
        self.norm = nn.LayerNorm(observation_dim) if input_norm else nn.Identity()
        self.embed = layer_norm_mlp(observation_dim + n_agents, (width,), input_norm=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, width, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(num_blocks)
        )
        self.register_buffer("one_hot", torch.eye(n_agents), persistent=False)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Map observations ``[*B, n, o]`` to representations ``[*B, n, width]``."""
        if tuple(observation.shape[-2:]) != (self.n_agents, self.observation_dim):
            raise ValueError(
                f"ObservationEncoder: expected an observation of shape [*B, {self.n_agents}, "
                f"{self.observation_dim}], got {tuple(observation.shape)}."
            )
        one_hot = self.one_hot.expand(*observation.shape[:-2], -1, -1)
        tokens = self.embed(torch.cat([self.norm(observation), one_hot], -1))  # [*B, n, width]
        batch = tokens.shape[:-2]
        tokens = tokens.reshape(-1, *tokens.shape[-2:])
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.reshape(*batch, self.n_agents, self.width)


class RecurrentEncoder(nn.Module):
    """An :class:`ObservationEncoder`, then a GRU per agent with shared parameters, and LayerNorm.

    The memory is as wide as a token.

    Args:
        encoder (ObservationEncoder): maps ``[*B, n, o]`` to ``[*B, n, width]``.

    Examples:
        >>> encoder = RecurrentEncoder(ObservationEncoder(3, 8, width=16))
        >>> start = torch.ones(5, 1, dtype=torch.bool)
        >>> representation, memory = encoder(torch.randn(5, 3, 8), torch.zeros(5, 3, 16), start)
        >>> representation.shape, memory.shape
        (torch.Size([5, 3, 16]), torch.Size([5, 3, 16]))
    """

    def __init__(self, encoder: ObservationEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.n_agents, self.memory_dim = encoder.n_agents, encoder.width
        sizes = self.n_agents, encoder.width, encoder.width
        self.memory = MultiAgentGRU(*sizes, share_params=True)
        self.memory_norm = nn.LayerNorm(encoder.width)

    def forward(
        self,
        observation: torch.Tensor,
        memory: torch.Tensor,
        is_init: torch.Tensor,
        *,
        unroll: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map observations to representations and the new memory; arguments as the actors'."""
        tokens = self.encoder(observation)
        if unroll:
            memory = self.memory.unroll(tokens, memory, is_init)
        else:
            memory = self.memory(tokens, memory.masked_fill(is_init.unsqueeze(-1), 0.0))
        return self.memory_norm(memory), memory


class ActionDecoder(nn.Module):
    """MAT's decoder (Figure 2): maps representations and earlier actions to policy parameters.

    The token of agent :math:`i` is the embedded action of agent :math:`i - 1`, and a start token
    for the first agent. Each block has self-attention over tokens, attention from representations
    to tokens and an MLP, all residual and followed by LayerNorm. Both attentions are causal: agent
    :math:`i` attends to the tokens up to its own.

    Args:
        n_agents (int): number of agents.
        action_dim (int): number of actions (discrete), or action dimensions.
        out_dim (int): entries of the output per agent.

    Keyword Args:
        discrete (bool): whether actions are integers.
        width (int): width of tokens and representations.
        num_heads (int): attention heads; must divide ``width``.
        num_blocks (int): number of blocks.
        head_gain (float): gain of the last layer's orthogonal initialization.

    Raises:
        ValueError: if ``num_heads`` does not divide ``width``.

    Examples:
        >>> decoder = ActionDecoder(n_agents=3, action_dim=5, out_dim=5, discrete=True, width=16)
        >>> decoder(torch.randn(7, 3, 16), torch.zeros(7, 3, dtype=torch.int64)).shape
        torch.Size([7, 3, 5])
    """

    def __init__(
        self,
        n_agents: int,
        action_dim: int,
        out_dim: int,
        *,
        discrete: bool,
        width: int = 64,
        num_heads: int = 1,
        num_blocks: int = 1,
        head_gain: float = 0.01,
    ) -> None:
        super().__init__()
        _check_heads("ActionDecoder", width, num_heads)
        self.action_dim, self.discrete = action_dim, discrete
        self.embed = layer_norm_mlp(action_dim + 1, (width,), input_norm=False)
        self.blocks = nn.ModuleList(
            _DecoderBlock(n_agents, width, num_heads) for _ in range(num_blocks)
        )
        self.head = layer_norm_mlp(width, (width,), input_norm=False)
        self.head.append(orthogonal_(nn.Linear(width, out_dim), gain=head_gain))

    def forward(self, representation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Map ``[*B, n, width]`` and actions ``[*B, n]`` or ``[*B, n, A]`` to ``[*B, n, out_dim]``.

        The output of agent :math:`i` depends only on the actions of agents before it.
        """
        if self.discrete:
            action = F.one_hot(action, self.action_dim)
        action = action.to(representation)
        # Shift by one agent; the first entry marks the start token.
        tokens = F.pad(action[..., :-1, :], (1, 0, 1, 0))  # [*B, n, 1 + action_dim]
        tokens[..., 0, 0] = 1.0
        tokens = self.embed(tokens)
        batch = tokens.shape[:-2]
        tokens, representation = (x.reshape(-1, *x.shape[-2:]) for x in (tokens, representation))
        for block in self.blocks:
            tokens = block(tokens, representation)
        return self.head(tokens).reshape(*batch, *tokens.shape[-2:-1], -1)


class _DecoderBlock(nn.Module):
    """Causal self-attention of actions, causal attention from representations to actions, MLP."""

    later: torch.Tensor

    def __init__(self, n_agents: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.among_actions, self.to_actions = (
            nn.MultiheadAttention(width, num_heads, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        later = torch.ones(n_agents, n_agents, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)

    def forward(self, tokens: torch.Tensor, representation: torch.Tensor) -> torch.Tensor:
        after_actions, after_representations, after_mlp = self.norms
        tokens = after_actions(tokens + self._attend(self.among_actions, tokens, tokens))
        seen = self._attend(self.to_actions, representation, tokens)
        hidden = after_representations(representation + seen)
        return after_mlp(hidden + self.mlp(hidden))

    def _attend(
        self, attention: nn.MultiheadAttention, query: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        return attention(query, tokens, tokens, attn_mask=self.later, need_weights=False)[0]
