"""MAT's joint policy."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import ActionDecoder, RecurrentEncoder
from torchrl_agentmixer.policies.autoregressive import AutoregressivePolicyBase
from torchrl_agentmixer.policies.product import (
    ContinuousDistribution,
    RecurrentActor,
    product_policy,
)


class TransformerPolicy(AutoregressivePolicyBase):
    r"""MAT's joint policy: :math:`\prod_i \pi(a_i \mid \hat o_1, \ldots, \hat o_n, a_{<i})`.

    ``forward`` runs the encoder once and the decoder once per agent; :meth:`get_dist` runs both
    once.

    Args:
        encoder (TensorDictModule): maps ``(group, "observation")`` to ``(group,
            "representation")`` ``[*B, n, width]``.
        individual (ProbabilisticTensorDictSequential): maps representations and actions to a
            distribution that is independent over agents (``joint=False``).
        group (AgentGroup): the agents.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_agentmixer.modules import ObservationEncoder
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> policy = TransformerPolicy.build(group, ObservationEncoder(3, 4, width=16), width=16)
        >>> data = policy(TensorDict({"agents": {"observation": torch.randn(5, 3, 4)}}, [5]))
        >>> data["agents", "action"].shape, data["agents", "action_log_prob"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
        >>> log_prob = policy.get_dist(data).log_prob(data["agents", "action"])
        >>> torch.allclose(log_prob, data["agents", "action_log_prob"])
        True
    """

    def __init__(
        self,
        encoder: TensorDictModule,
        individual: ProbabilisticTensorDictSequential,
        group: AgentGroup,
    ) -> None:
        super().__init__(individual, group)
        self.encoder = encoder
        self._mask_keys = list(group.mask_keys.values())
        self.in_keys = [*encoder.in_keys, *self._mask_keys]
        memory = [key for key in encoder.out_keys if key[0] == "next"]
        self.out_keys = [*individual.out_keys, *memory]

    @classmethod
    def build(
        cls,
        group: AgentGroup,
        encoder: nn.Module,
        *,
        distribution: ContinuousDistribution = "normal",
        **decoder_kwargs: Any,
    ) -> TransformerPolicy:
        """Build the policy with MAT's decoder on an encoder.

        Args:
            group (AgentGroup): the agents.
            encoder (nn.Module): maps ``[*B, n, o]`` to ``[*B, n, width]``. The memory of a
                :class:`RecurrentEncoder` is ``(group, "encoder_memory")``.

        Keyword Args:
            distribution (str): of continuous actions.
            **decoder_kwargs: options of :class:`ActionDecoder`.
        """
        decoder_cls = ActionDecoder if group.discrete else _ContinuousDecoder
        sizes = group.n_agents, group.action_dim, group.action_dim
        network = decoder_cls(*sizes, discrete=group.discrete, **decoder_kwargs)
        representation = group.key("representation")
        decoder = TensorDictModule(
            network, in_keys=[representation, group.key("action")], out_keys=group.param_keys
        )
        keys = [group.key("observation")], [representation]
        wrapped = (
            RecurrentActor(encoder, *keys, group.key("encoder_memory"))
            if isinstance(encoder, RecurrentEncoder)
            else TensorDictModule(encoder, in_keys=keys[0], out_keys=keys[1])
        )
        return cls(wrapped, product_policy([group], [decoder], distribution, joint=False), group)

    def _context(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.encoder(tensordict.select(*self.in_keys))

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        return context.copy().set(self.group.key("action"), action)


class _ContinuousDecoder(ActionDecoder):
    """Decoder that writes loc and scale; scales as in :class:`GaussianActor`."""

    scale_bound = 0.5

    def __init__(self, n_agents: int, action_dim: int, out_dim: int, **kwargs: Any) -> None:
        super().__init__(n_agents, action_dim, out_dim, **kwargs)
        self.scale_param = nn.Parameter(torch.ones(n_agents, out_dim))

    def forward(  # type: ignore[override]
        self, representation: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loc = super().forward(representation, action)
        scale = self.scale_bound * torch.sigmoid(self.scale_param)
        return loc, scale.expand_as(loc)
