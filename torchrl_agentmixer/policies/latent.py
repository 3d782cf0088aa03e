"""MAVEN's policy."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torch.distributions import Categorical
from torchrl.data import Categorical as CategoricalSpec
from torchrl.data import Composite
from torchrl.envs.transforms import TensorDictPrimer
from torchrl.envs.utils import exploration_type

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies.autoregressive import DETERMINISTIC


class LatentPolicy(TensorDictModuleBase):
    r"""Epsilon-greedy policy on utilities that share a latent per episode (MAVEN).

    At the first step of an episode (``"is_init"``) a hierarchical policy :math:`p(z \mid s_0)`
    reads the state and draws ``"latent"``. Later steps carry it like a recurrent state, see
    :func:`~torchrl_agentmixer.envs.with_memory`. Under TorchRL's deterministic exploration types
    the latent is the hierarchical policy's mode, and actions are greedy.

    Args:
        utilities (TensorDictModule): maps ``(group, "observation")`` and ``"latent"`` to ``(group,
            "action_value")`` ``[*B, n, K]``.
        latent_logits (nn.Module): maps the state ``[*B, s]`` to ``[*B, m]``.
        group (AgentGroup): the agents.

    Keyword Args:
        num_latents (int): values of the latent, m.

    Examples:
        >>> from torchrl_agentmixer.algorithms import MAVEN
        >>> from torchrl_agentmixer.envs import make_env, with_memory
        >>> env = make_env("grid/predator_prey", num_envs=4)
        >>> policy = MAVEN(env, total_frames=100).policy
        >>> latent = with_memory(env, policy).rollout(5, policy)["latent"]
        >>> bool((latent == latent[:, :1]).all())
        True
    """

    def __init__(
        self,
        utilities: TensorDictModule,
        latent_logits: nn.Module,
        group: AgentGroup,
        *,
        num_latents: int,
    ) -> None:
        super().__init__()
        self.utilities = utilities
        self.latent_logits = latent_logits
        self.group = group
        self.num_latents = num_latents
        self.register_buffer("epsilon", torch.tensor(0.0))
        self._mask_key = group.key("action_mask") if group.masked else None
        mask_keys = [self._mask_key] if self._mask_key else []
        self.in_keys = [group.key("observation"), *mask_keys, "state", "latent", "is_init"]
        self.out_keys = [
            group.key("action_value"),
            group.key("action"),
            "latent",
            ("next", "latent"),
        ]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The primer of the latent, for TorchRL's ``get_primers_from_module``."""
        latent = CategoricalSpec(self.num_latents, shape=(1,))
        return TensorDictPrimer(Composite(latent=latent), expand_specs=True, default_value=0)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draw the latent at the first step of an episode, and write actions."""
        greedy = exploration_type() in DETERMINISTIC
        logits = self.latent_logits(tensordict["state"]).detach()
        drawn = logits.argmax(-1) if greedy else Categorical(logits=logits).sample()
        latent = torch.where(tensordict["is_init"], drawn.unsqueeze(-1), tensordict["latent"])
        tensordict.set("latent", latent)
        tensordict.set(("next", "latent"), latent)
        self.utilities(tensordict)
        utilities = tensordict[self.group.key("action_value")].detach()  # [*B, n, K]
        action = self._best(utilities, tensordict)
        if not greedy:
            explored = self._best(torch.rand_like(utilities), tensordict)  # uniform, legal
            explore = torch.rand_like(utilities[..., 0]) < self.epsilon
            action = torch.where(explore, explored, action)
        return tensordict.set(self.group.key("action"), action)

    def _best(self, score: torch.Tensor, tensordict: TensorDictBase) -> torch.Tensor:
        return masked(score, tensordict, self._mask_key).argmax(-1)


def masked(
    score: torch.Tensor, tensordict: TensorDictBase, mask_key: NestedKey | None
) -> torch.Tensor:
    """Set scores ``[*B, n, K]`` of masked actions to the lowest finite number."""
    if mask_key is None:
        return score
    return score.masked_fill(~tensordict[mask_key], torch.finfo(score.dtype).min)
