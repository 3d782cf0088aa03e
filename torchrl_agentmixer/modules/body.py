"""One network per agent, or one that all share, on TorchRL's ``MultiAgentNetBase``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrl.modules.models.multiagent import MultiAgentNetBase

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.modules.images import ImageShape
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_


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
