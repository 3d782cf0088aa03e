"""MAVEN's policy."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import nn
from torch.distributions import Categorical
from torchrl.data import Categorical as CategoricalSpec
from torchrl.data import Composite
from torchrl.envs.transforms import TensorDictPrimer
from torchrl.envs.utils import exploration_type
from torchrl.modules import EGreedyModule

from torchrl_agentmixer._choices import check_memory
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
        self._mask_key = group.key("action_mask") if group.masked else None
        self.exploration = EGreedyModule(
            CategoricalSpec(group.action_dim, shape=(group.n_agents,)),
            action_mask_key="action_mask" if group.masked else None,
            device=next(self.parameters()).device,
        )
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
        before = {key: tensordict.get(key, None) for key in ("is_init", "latent")}
        check_memory("LatentPolicy", before)
        greedy = exploration_type() in DETERMINISTIC
        logits = self.latent_logits(tensordict["state"]).detach()
        drawn = logits.argmax(-1) if greedy else Categorical(logits=logits).sample()
        latent = torch.where(before["is_init"], drawn.unsqueeze(-1), before["latent"])
        tensordict.set("latent", latent)
        tensordict.set(("next", "latent"), latent)
        self.utilities(tensordict)
        utilities = tensordict[self.group.key("action_value")].detach()  # [*B, n, K]
        action = masked(utilities, tensordict, self._mask_key).argmax(-1)
        # EGreedyModule draws once per batch entry: the agents are a batch dimension.
        agents = TensorDict({"action": action}, action.shape)
        if self._mask_key:
            agents["action_mask"] = tensordict[self._mask_key]
        return tensordict.set(self.group.key("action"), self.exploration(agents)["action"])


def masked(
    score: torch.Tensor, tensordict: TensorDictBase, mask_key: NestedKey | None
) -> torch.Tensor:
    """Set scores ``[*B, n, K]`` of masked actions to the lowest finite number."""
    if mask_key is None:
        return score
    return score.masked_fill(~tensordict[mask_key], torch.finfo(score.dtype).min)
