"""Loss over several groups of agents."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict, TensorDictBase
from torch import nn


class GroupedLoss(nn.Module):
    """Weighted mean of the losses of several groups; weights are the numbers of agents.

    An entry of only some losses is averaged over these.

    Args:
        losses (sequence of nn.Module): one per group; each maps a batch to scalars.
        n_agents (sequence of int): number of agents per group.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> from torchrl_agentmixer.algorithms import make_algorithm
        >>> env = make_env("vmas/simple_speaker_listener", num_envs=4, reward="mean")
        >>> len(make_algorithm("mappo", env, 1000).loss.losses)
        2
    """

    def __init__(self, losses: Sequence[nn.Module], n_agents: Sequence[int]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.n_agents = tuple(n_agents)

    def forward(self, batch: TensorDictBase) -> TensorDict:
        """Mean losses and metrics (scalars) of a batch ``[*B]``."""
        outputs = [loss(batch) for loss in self.losses]
        mean = {}
        for key in dict.fromkeys(key for output in outputs for key in output.keys()):  # noqa: SIM118
            terms = [
                (n, output[key].mean())
                for n, output in zip(self.n_agents, outputs, strict=True)
                if key in output
            ]
            mean[key] = sum(n * term for n, term in terms) / sum(n for n, _ in terms)
        return TensorDict(mean)
