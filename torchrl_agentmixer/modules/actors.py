"""Decentralized actors: networks from each agent's observation to its policy's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrl.modules.models.multiagent import MultiAgentNetBase

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.modules.images import ImageShape
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU


class MultiAgentBody(MultiAgentNetBase):
    """One LayerNorm MLP per agent, on TorchRL's ``MultiAgentNetBase``.

    LayerNorm on the input, then Linear -> ReLU -> LayerNorm per hidden width (the authors' actor),
    and a last Linear if ``out_dim`` is given. Separate networks run as one batched call.

    Args:
        n_agents (int): number of agents.
        in_dim (int): entries of one agent's input.

    Keyword Args:
        hidden (sequence of int): hidden widths; may be empty when ``out_dim`` is given.
        out_dim (int, optional): entries of the output; ``None`` returns the last hidden layer.
        share_params (bool): one set of parameters for all agents.
        input_norm (bool): LayerNorm on the input.
        image_shape (tuple of int, optional): as in :func:`layer_norm_mlp`.
        out_gain (float): gain of the last Linear's orthogonal initialization.
        device (optional): device of the parameters.

    Raises:
        ValueError: for zero agents, or an input of the wrong shape.

    Examples:
        >>> import torch
        >>> body = MultiAgentBody(3, 5, hidden=(64,), share_params=False)
        >>> body(torch.randn(7, 3, 5)).shape
        torch.Size([7, 3, 64])
    """

    def __init__(
        self,
        n_agents: int,
        in_dim: int,
        *,
        hidden: Sequence[int] = (64,),
        out_dim: int | None = None,
        share_params: bool = False,
        input_norm: bool = True,
        image_shape: ImageShape | None = None,
        out_gain: float = 0.01,
        device: torch.device | str | None = None,
    ) -> None:
        check_at_least(type(self).__name__, 1, n_agents=n_agents, in_dim=in_dim)
        self.in_dim = in_dim
        super().__init__(
            n_agents=n_agents,
            centralized=False,
            share_params=share_params,
            agent_dim=-2,
            in_dim=in_dim,
            hidden=tuple(hidden),
            out_dim=out_dim,
            input_norm=input_norm,
            image_shape=image_shape,
            out_gain=out_gain,
            device=device,
        )

    def _build_single_net(
        self,
        *,
        in_dim: int,
        hidden: tuple[int, ...],
        out_dim: int | None,
        input_norm: bool,
        image_shape: ImageShape | None,
        out_gain: float,
        device: torch.device | str | None,
    ) -> nn.Sequential:
        net = layer_norm_mlp(
            in_dim, hidden, input_norm=input_norm, image_shape=image_shape, device=device
        )
        if out_dim is not None:
            head = nn.Linear([in_dim, *hidden][-1], out_dim, device=device)
            net.append(head if device == "meta" else orthogonal_(head, gain=out_gain))
        return net

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not (self.share_params and torch.compiler.is_compiling()):
            return super().forward(inputs)
        # Views, as torch.compile registers an `nn.Parameter` for good, on the meta device.
        parameters = self.params.apply(lambda parameter: parameter.view_as(parameter))
        with parameters.to_module(self._empty_net, preserve_module_state=False):
            return self._empty_net(self._pre_forward_check(inputs))

    def _pre_forward_check(self, inputs: torch.Tensor) -> torch.Tensor:
        if tuple(inputs.shape[-2:]) != (self.n_agents, self.in_dim):
            raise ValueError(
                f"{type(self).__name__}: expected an input of shape [*B, {self.n_agents}, "
                f"{self.in_dim}], got {tuple(inputs.shape)}."
            )
        return inputs


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
