"""Networks of MAVEN: utilities and mixer, conditioned on a latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import one_hot
from torchrl.modules import QMixer

from torchrl_agentmixer.modules.body import MultiAgentBody


class LatentUtilities(nn.Module):
    r"""Utilities of the agents' actions given a latent, :math:`Q_i(o_i, a; z)`.

    The paper's hypernetwork maps one-hot z and agent to the last layer. Both are finite: here every
    z and agent has a last layer among the parameters.

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.
        num_actions (int): actions of each agent.
        num_latents (int): values of the latent.

    Keyword Args:
        share_params (bool): one network for all agents; it also reads the agent's one-hot.
        **kwargs: options of :class:`MultiAgentBody`.

    Examples:
        >>> utilities = LatentUtilities(3, 5, num_actions=4, num_latents=8)
        >>> utilities(torch.randn(7, 3, 5), torch.randint(8, (7, 1))).shape
        torch.Size([7, 3, 4])
    """

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        num_actions: int,
        num_latents: int,
        *,
        share_params: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.sizes = (num_latents, num_actions)
        self.share_params = share_params
        self.body = MultiAgentBody(
            n_agents,
            observation_dim + (n_agents if share_params else 0),
            out_dim=num_latents * num_actions,
            share_params=share_params,
            out_gain=1.0,
            **kwargs,
        )

    def forward(self, observation: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Map observations ``[*B, n, o]`` and latent ``[*B, 1]`` to utilities ``[*B, n, K]``."""
        if self.share_params:
            index = torch.eye(observation.shape[-2], device=observation.device)
            index = index.expand(*observation.shape[:-1], -1).to(observation.dtype)
            observation = torch.cat([observation, index], -1)
        utilities = self.body(observation).unflatten(-1, self.sizes)  # [*B, n, m, K]
        choice = latent[..., None, None].expand(*utilities.shape[:-2], 1, self.sizes[1])
        return utilities.gather(-2, choice).squeeze(-2)


class LatentMixer(nn.Module):
    r"""Monotonic mixer of QMIX on state and latent, :math:`Q_{tot}(s, z)` (TorchRL's ``QMixer``).

    Args:
        n_agents (int): number of agents.
        state_dim (int): entries of the state.
        num_latents (int): values of the latent.

    Keyword Args:
        mixer_dim (int): width of the mixing network.

    Examples:
        >>> mixer = LatentMixer(3, 10, num_latents=8)
        >>> mixer(torch.randn(7, 3, 1), torch.randn(7, 10), torch.randint(8, (7, 1))).shape
        torch.Size([7, 1])
    """

    def __init__(
        self, n_agents: int, state_dim: int, num_latents: int, *, mixer_dim: int = 32
    ) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.mixer = QMixer((state_dim + num_latents,), mixer_dim, n_agents, device="cpu")

    def forward(
        self, chosen: torch.Tensor, state: torch.Tensor, latent: torch.Tensor
    ) -> torch.Tensor:
        """Mix the agents' chosen utilities ``[*B, n, 1]`` into the team's value ``[*B, 1]``."""
        context = one_hot(latent.squeeze(-1), self.num_latents).to(state.dtype)
        return self.mixer.mix(chosen, torch.cat([state, context], -1))
