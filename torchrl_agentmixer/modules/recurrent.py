"""One GRU per agent."""

from __future__ import annotations

import torch
from torch import nn

from torchrl_agentmixer._choices import check_at_least


class MultiAgentGRU(nn.Module):
    r"""One GRU cell per agent (`arXiv 1406.1078 <https://arxiv.org/abs/1406.1078>`_), batched.

    The equations are those of ``torch.nn.GRUCell``. Separate cells run as one batched product. Over
    a sequence, the products with the inputs are one call for all steps.

    Args:
        n_agents (int): number of agents.
        in_dim (int): entries of one agent's input.
        memory_dim (int): entries of one agent's memory.

    Keyword Args:
        share_params (bool): one cell for all agents.
        device (optional): device of the parameters.

    Raises:
        ValueError: for a size below 1, or inputs of the wrong shape.

    Examples:
        >>> gru = MultiAgentGRU(3, 5, 8)
        >>> gru(torch.randn(7, 3, 5), torch.zeros(7, 3, 8)).shape
        torch.Size([7, 3, 8])
        >>> starts = torch.zeros(7, 10, 1, dtype=torch.bool)
        >>> gru.unroll(torch.randn(7, 10, 3, 5), torch.zeros(7, 3, 8), starts).shape
        torch.Size([7, 10, 3, 8])
    """

    def __init__(
        self,
        n_agents: int,
        in_dim: int,
        memory_dim: int,
        *,
        share_params: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_at_least("MultiAgentGRU", 1, n_agents=n_agents, in_dim=in_dim, memory_dim=memory_dim)
        self.n_agents, self.in_dim, self.memory_dim = n_agents, in_dim, memory_dim
        cells = 1 if share_params else n_agents

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(cells, *shape, device=device))

        # Rows are reset gate, update gate and candidate, as in `torch.nn.GRUCell`.
        self.weight_ih = parameter(3 * memory_dim, in_dim)
        self.weight_hh = parameter(3 * memory_dim, memory_dim)
        self.bias_ih = parameter(3 * memory_dim)
        self.bias_hh = parameter(3 * memory_dim)
        if device != "meta":
            for weight in (self.weight_ih, self.weight_hh):
                for gates in weight.data.unflatten(1, (3, memory_dim)).flatten(0, 1):
                    nn.init.orthogonal_(gates)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """One step: input ``[*B, n, in_dim]`` and memory ``[*B, n, memory_dim]`` to new memory."""
        self._check(x, memory, memory.shape[:-2])
        return self._step(self._project(x), memory)

    def unroll(self, x: torch.Tensor, memory: torch.Tensor, is_init: torch.Tensor) -> torch.Tensor:
        """Memory after each step of a sequence.

        Args:
            x (Tensor): inputs ``[*B, T, n, in_dim]``.
            memory (Tensor): memory before the first step, ``[*B, n, memory_dim]``.
            is_init (Tensor): ``[*B, T, 1]``, true at the first step of an episode, where the memory
                is set to zero.

        Returns:
            Tensor: ``[*B, T, n, memory_dim]``.
        """
        self._check(x, memory, memory.shape[:-2] + x.shape[-3:-2])
        projected, memories = self._project(x), []
        for inputs, start in zip(projected.unbind(-3), is_init.unbind(-2), strict=True):
            memory = self._step(inputs, memory.masked_fill(start.unsqueeze(-1), 0.0))
            memories.append(memory)
        return torch.stack(memories, -3)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        return _per_agent(x, self.weight_ih) + self.bias_ih

    def _step(self, projected: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        recurrent = _per_agent(memory, self.weight_hh) + self.bias_hh
        reset_in, update_in, candidate_in = projected.chunk(3, -1)
        reset_rec, update_rec, candidate_rec = recurrent.chunk(3, -1)
        update = torch.sigmoid(update_in + update_rec)
        candidate = torch.tanh(candidate_in + torch.sigmoid(reset_in + reset_rec) * candidate_rec)
        return candidate + update * (memory - candidate)

    def _check(self, x: torch.Tensor, memory: torch.Tensor, batch: torch.Size) -> None:
        expected = (*batch, self.n_agents, self.in_dim)
        memory_tail = (self.n_agents, self.memory_dim)
        if tuple(x.shape) != expected or tuple(memory.shape[-2:]) != memory_tail:
            raise ValueError(
                f"MultiAgentGRU: expected an input of shape [*B, (T,) {self.n_agents}, "
                f"{self.in_dim}] and a memory of shape [*B, {self.n_agents}, {self.memory_dim}], "
                f"got {tuple(x.shape)} and {tuple(memory.shape)}."
            )


def _per_agent(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply ``[*B, n, i]`` by transposed weights ``[n or 1, o, i]`` per agent."""
    if weight.shape[0] == 1:
        return x @ weight[0].mT
    return torch.einsum("...ni,noi->...no", x, weight)
