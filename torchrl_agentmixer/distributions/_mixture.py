"""What the mixtures of joint plans share."""

from __future__ import annotations

import torch

# Replaces log 0 where terms are added: finite, so that gradients are finite.
_LOWEST = -1e9


def are_components_of(
    params: torch.Tensor, perturbation: torch.Tensor, component_logits: torch.Tensor
) -> bool:
    """Whether shapes fit: ``[*B, n_agents, size]``, ``[*B, n_agents, m, size]``, ``[*B, m]``."""
    m = component_logits.shape[-1] if component_logits.ndim else 0
    return (
        m > 0
        and perturbation.shape == (*params.shape[:-1], m, *params.shape[-1:])
        and component_logits.shape[:-1] == params.shape[:-2]
    )


def team_weights(
    component_logits: torch.Tensor, modified_share: torch.Tensor | float, agents: torch.Size
) -> torch.Tensor:
    """Log-weights ``[*B, 1 + m]`` of the product and of ``m`` components.

    Args:
        component_logits (Tensor): ``[*B, m]``.
        modified_share (float or Tensor): broadcasts to ``[*B, n_agents, 1]``; the first agent's
            value is used.
        agents (torch.Size): ``[*B, n_agents]``.
    """
    share = torch.as_tensor(
        modified_share, dtype=component_logits.dtype, device=component_logits.device
    )
    share = share.expand(*agents, 1)[..., 0, :]  # [*B, 1]
    weights = component_logits.log_softmax(-1) + share.log().clamp_min(_LOWEST)
    return torch.cat([(-share).log1p().clamp_min(_LOWEST), weights], -1)


def chain_rule(log_weights: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    r"""Log-probability per agent given the actions of the agents before it, ``[*B, n_agents]``.

    :math:`\log \pi(a_i | a_{<i}) = \log \sum_m w_m \prod_{j \le i} p_{m j}(a_j)
    - \log \sum_m w_m \prod_{j < i} p_{m j}(a_j)`. Their sum is the team's log-probability.

    Args:
        log_weights (Tensor): normalized, of the components, ``[*B, m]``.
        log_probs (Tensor): of each agent's action in each component, ``[*B, m, n_agents]``.
    """
    so_far = (log_weights.unsqueeze(-1) + log_probs.cumsum(-1)).logsumexp(-2)  # [*B, n]
    return torch.cat([so_far[..., :1], so_far[..., 1:] - so_far[..., :-1]], -1)
