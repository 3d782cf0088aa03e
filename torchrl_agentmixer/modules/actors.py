"""Decentralized actors: networks from each agent's observation to its policy's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.modules.body import MultiAgentBody
from torchrl_agentmixer.modules.images import ImageShape
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU


class _Actor(nn.Module):
    """Body, optional GRU and head of both actors."""

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        out_dim: int,
        *,
        hidden: Sequence[int] = (64,),
        share_params: bool = False,
        agent_one_hot: bool | None = None,
        input_norm: bool = True,
        memory_dim: int = 0,
        head_gain: float = 0.01,
        image_shape: ImageShape | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError(
                f"{type(self).__name__}: expected at least one hidden width, got none."
            )
        check_at_least(type(self).__name__, 0, memory_dim=memory_dim)
        self.n_agents = n_agents
        self.observation_shape = image_shape or (observation_dim,)
        self.memory_dim = memory_dim
        self.features_dim = memory_dim or hidden[-1]
        self.agent_one_hot = share_params if agent_one_hot is None else agent_one_hot
        common: dict[str, Any] = {"share_params": share_params, "device": device}
        net: Any = partial(MultiAgentBody, n_agents, **common)
        in_dim = observation_dim + (n_agents if self.agent_one_hot else 0)
        self.body = net(in_dim, hidden=hidden, input_norm=input_norm, image_shape=image_shape)
        if memory_dim:
            self.memory = MultiAgentGRU(n_agents, hidden[-1], memory_dim, **common)
            self.memory_norm = net(memory_dim, hidden=())
        self.head = net(
            self.features_dim, hidden=(), out_dim=out_dim, input_norm=False, out_gain=head_gain
        )
        self.one_hot: torch.Tensor
        self.register_buffer("one_hot", torch.eye(n_agents, device=device), persistent=False)

    def params(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The policies' parameters for features ``[*B, n, d]``."""
        return (self.head(features),)

    def forward(
        self,
        observation: torch.Tensor,
        memory: torch.Tensor | None = None,
        is_init: torch.Tensor | None = None,
        *,
        unroll: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Map observations ``[*B, n, o]`` to policy parameters and features ``[*B, n, d]``.

        Args:
            observation (Tensor): ``[*B, n, o]``.
            memory (Tensor, optional): the GRU's memory ``[*B, n, m]``.
            is_init (Tensor, optional): ``[*B, 1]``, true at the first step of an episode, where the
                memory is set to zero.

        Keyword Args:
            unroll (bool): the last batch dimension is time: observations ``[*B, T, n, o]``,
                ``is_init`` ``[*B, T, 1]``, and the memory before the first step ``[*B, n, m]``.

        Returns:
            tuple of Tensor: parameters, features and, with a GRU, the new memory, per step.
        """
        expected = (self.n_agents, *self.observation_shape)
        if tuple(observation.shape[-len(expected) :]) != expected:
            raise ValueError(
                f"{type(self).__name__}: expected an observation of shape [*B, "
                f"{', '.join(map(str, expected))}], got {tuple(observation.shape)}."
            )
        observation = observation.flatten(1 - len(expected))
        if self.agent_one_hot:
            one_hot = self.one_hot.expand(*observation.shape[:-2], -1, -1)
            observation = torch.cat([observation, one_hot], -1)
        features = self.body(observation)  # [*B, n, d]
        if not self.memory_dim:
            return *self.params(features), features
        if memory is None or is_init is None:
            raise ValueError(
                f"{type(self).__name__} with `memory_dim` {self.memory_dim}: expected `memory` and "
                "`is_init`, got None."
            )
        if unroll:
            memory = self.memory.unroll(features, memory, is_init)
        else:
            memory = self.memory(features, memory.masked_fill(is_init.unsqueeze(-1), 0.0))
        features = self.memory_norm(memory)
        return *self.params(features), features, memory


class CategoricalActor(_Actor):
    """Actors of discrete actions: observations to ``logits`` and ``features``.

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.
        n_actions (int): number of actions of one agent.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers; the last is the features' width.
        share_params (bool): one network for all agents; separate networks by default.
        agent_one_hot (bool, optional): append the agent's one-hot to its observation. Default:
            only when parameters are shared.
        input_norm (bool): LayerNorm on the input, as in the authors' networks. It removes mean and
            scale of an observation: use ``False`` for few entries that are scaled already.
        memory_dim (int): width of a GRU between the hidden layers and the head, followed by a
            LayerNorm; 0 for none.
        head_gain (float): gain of the last layer's orthogonal initialization.
        image_shape (tuple of int, optional): channels, height and width of observations that are
            images ``[*B, n, C, H, W]``: convolutions come first.
        device (optional): device of the parameters.

    Raises:
        ValueError: for zero agents, or an observation of the wrong shape.

    Examples:
        >>> import torch
        >>> actor = CategoricalActor(n_agents=3, observation_dim=8, n_actions=5)
        >>> logits, features = actor(torch.randn(4, 3, 8))
        >>> logits.shape, features.shape
        (torch.Size([4, 3, 5]), torch.Size([4, 3, 64]))
    """

    def __init__(self, n_agents: int, observation_dim: int, n_actions: int, **kwargs: Any) -> None:
        super().__init__(n_agents, observation_dim, n_actions, **kwargs)


class GaussianActor(_Actor):
    r"""Actors of continuous actions: observations to ``loc``, ``scale`` and ``features``.

    The scale is :math:`b\,\sigma(p)` with one free parameter :math:`p` per agent and action
    dimension, as in the authors' continuous actors (:math:`b = 0.5`, initially :math:`p = 1`).

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.
        action_dim (int): action dimensions of one agent.

    Keyword Args:
        scale_bound (float): :math:`b`, in the unit of the action.
        scale_head (bool): the scale depends on the observation.
        **kwargs: as :class:`CategoricalActor`.

    Raises:
        ValueError: for zero agents, or an observation of the wrong shape.

    Examples:
        >>> import torch
        >>> actor = GaussianActor(n_agents=3, observation_dim=8, action_dim=2)
        >>> loc, scale, features = actor(torch.randn(4, 3, 8))
        >>> loc.shape, scale.shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3, 2]))
    """

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        action_dim: int,
        *,
        scale_bound: float = 0.5,
        scale_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_agents, observation_dim, action_dim, **kwargs)
        self.scale_bound = scale_bound
        device = kwargs.get("device")
        if not scale_head:
            self.scale_head = None
            self.scale_param = nn.Parameter(torch.ones(n_agents, action_dim, device=device))
            return
        self.scale_head = MultiAgentBody(
            n_agents,
            self.features_dim,
            hidden=(),
            out_dim=action_dim,
            share_params=self.head.share_params,
            input_norm=False,
            device=device,
        )

    @property
    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters of the scale alone."""
        return [self.scale_param] if self.scale_head is None else [*self.scale_head.parameters()]

    def params(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loc = self.head(features)
        p = self.scale_param if self.scale_head is None else self.scale_head(features)
        return loc, (self.scale_bound * torch.sigmoid(p)).expand_as(loc)
