"""Mixture of joint Gaussian policies with one component per team (continuous actions)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import Categorical, Distribution, constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform
from torchrl.modules.distributions.continuous import SafeTanhTransform

from torchrl_agentmixer.distributions._mixture import are_components_of, chain_rule, team_weights
from torchrl_agentmixer.distributions._validation import check_finite, should_validate
from torchrl_agentmixer.distributions.igc_categorical import Coefficient, check_coefficients
from torchrl_agentmixer.distributions.igc_normal import IGCNormal, IGCTanhNormal

# Logarithm of individual scale over the scale of a modified component, at strength 1.
SHARPNESS = 1.5
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class IGCNormalMixture(Distribution):
    r"""Mixture of joint Gaussian policies, each with its own shift of all agents' means.

    .. math:: \pi_\theta(a) = (1 - \beta) \prod_i \mathcal N(a_i; \mu_i, \sigma_i^2)
              + \beta \sum_m w_m \prod_i
                \mathcal N(a_i; \mu_i + \lambda x_{m, i}, e^{-3 \lambda} \sigma_i^2)

    The counterpart of :class:`IGCMixture` for continuous actions: the team draws one component, so
    its agents are correlated, and ``log_prob`` marginalizes the component exactly. The first
    component is the product of the individual policies. The others are sharp at first, so each is
    close to one joint action. At ``strength=0`` or ``modified_share=0`` the mixture is the product,
    and its mode is the individual means.

    Args:
        loc (Tensor): individual means :math:`\mu`, ``[*B, n_agents, action_dim]``.
        scale (Tensor): individual standard deviations :math:`\sigma > 0`, shape of ``loc``.
        perturbation (Tensor): shifts :math:`x` of the means, in the unit of the action,
            ``[*B, n_agents, n_components, action_dim]``.
        component_logits (Tensor): :math:`\log w` up to a constant, ``[*B, n_components]``.
        strength (float or Tensor): :math:`\lambda \ge 0`, broadcastable to ``[*B, n_agents, 1]``.
        modified_share (float or Tensor): :math:`\beta` in [0, 1]. A tensor broadcasts to
            ``[*B, n_agents, 1]``; the first agent's value is used.

    Keyword Args:
        joint (bool): ``True``: one log-probability per team, ``[*B]``. ``False``: one per agent,
            ``[*B, n_agents]``, given the actions of the agents before it; their sum is the team's.
        mask (Tensor, optional): as in :class:`IGCNormal`.
        validate_args (bool, optional): as in :class:`IGCNormal`.

    Raises:
        ValueError: as :class:`IGCNormal`, and for shifts or component logits of the wrong shape.

    Examples:
        >>> import torch
        >>> loc, scale = torch.zeros(1, 2, 1), torch.full((1, 2, 1), 0.1)
        >>> shift = torch.tensor([[-0.5], [0.5]]).expand(1, 2, 2, 1)  # both left, or both right
        >>> dist = IGCNormalMixture(loc, scale, shift, torch.zeros(1, 2))
        >>> both, apart = torch.tensor([[[0.5], [0.5]]]), torch.tensor([[[0.5], [-0.5]]])
        >>> bool(dist.log_prob(both) > 0), bool(dist.log_prob(apart) < -10)
        (True, True)
    """

    has_rsample = False

    def __init__(
        self,
        loc: torch.Tensor,
        scale: torch.Tensor,
        perturbation: torch.Tensor,
        component_logits: torch.Tensor,
        strength: Coefficient = 1.0,
        modified_share: Coefficient = 1.0,
        *,
        joint: bool = True,
        mask: torch.Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_shapes(loc, scale, perturbation, component_logits)
        check_coefficients("IGCNormalMixture", strength=strength, modified_share=modified_share)
        if should_validate(validate_args, loc):
            check_finite("IGCNormalMixture", "perturbation", perturbation)
            check_finite("IGCNormalMixture", "component_logits", component_logits)
        self.joint, self.mask = joint, mask
        self.product = IGCNormal(loc, scale, joint=joint, mask=mask, validate_args=validate_args)
        self.log_weights = team_weights(component_logits, modified_share, loc.shape[:-1])
        strength = torch.as_tensor(strength, dtype=loc.dtype, device=loc.device)
        strength = strength.expand(*loc.shape[:-1], 1).unsqueeze(-2)  # [*B, n, 1, 1]
        own_loc, own_scale = loc.unsqueeze(-2), scale.unsqueeze(-2)
        means = torch.cat([own_loc, own_loc + strength * perturbation], -2)
        sharp = (own_scale * (-SHARPNESS * strength).exp()).expand_as(perturbation)
        self.means = means.movedim(-2, -3)  # [*B, 1 + m, n, A]
        self.scales = torch.cat([own_scale, sharp], -2).movedim(-2, -3)
        event = self.product.event_shape
        super().__init__(loc.shape[: loc.ndim - len(event)], event, validate_args=False)

    @property
    def loc(self) -> torch.Tensor:
        """Individual means, ``[*B, n_agents, action_dim]``."""
        return self.product.loc

    @property
    def scale(self) -> torch.Tensor:
        """Individual standard deviations, ``[*B, n_agents, action_dim]``."""
        return self.product.scale

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, 1 + self.joint)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Joint actions ``[*sample_shape, *B, n_agents, action_dim]``."""
        with torch.no_grad():
            weights = Categorical(logits=self.log_weights, validate_args=False)
            return self.sample_component(weights.sample(torch.Size(sample_shape)))

    def sample_component(self, index: torch.Tensor) -> torch.Tensor:
        """Joint actions of components ``[*sample_shape, *B]``."""
        shape = (*index.shape[: index.ndim - self.means.ndim + 3], *self.means.shape)
        index = index[..., None, None, None].expand(*index.shape, 1, *shape[-2:])
        mean, scale = (x.expand(shape).gather(-3, index) for x in (self.means, self.scales))
        return torch.normal(mean, scale).squeeze(-3)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of joint actions ``[*B, n_agents, action_dim]``."""
        per_agent = chain_rule(self.log_weights, self.component_log_prob(value))
        return per_agent.sum(-1) if self.joint else per_agent

    def component_log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of each agent's action in each component, ``[*B, 1 + m, n_agents]``."""
        z = (value.unsqueeze(-3) - self.means) / self.scales
        return self._present((-0.5 * z.square() - self.scales.log() - _HALF_LOG_2PI).sum(-1))

    def _present(self, per_agent: torch.Tensor) -> torch.Tensor:
        """Zeros for agents outside the mask, ``[*B, 1 + m, n_agents]``."""
        if self.mask is None:
            return per_agent
        return torch.where(self.mask.unsqueeze(-2), per_agent, 0.0)

    @property
    def individual_mode(self) -> torch.Tensor:
        """The individual means, ``[*B, n_agents, action_dim]``."""
        return self.loc

    @property
    def component_modes(self) -> torch.Tensor:
        """Modes of the components, the individual means first, ``[1 + m, *B, n_agents, A]``."""
        return self.means.movedim(-3, 0)

    @property
    def mode(self) -> torch.Tensor:
        """The most probable of the components' modes, ``[*B, n_agents, action_dim]``.

        The mode of a Gaussian mixture has no closed form. Ties are broken in favor of the
        individual means.
        """
        modes = self.component_modes
        # One component at a time: all pairs of components at once need much memory.
        each = torch.stack([self.component_log_prob(mode) for mode in modes]).sum(-1)
        scores = (each + self.log_weights).logsumexp(-1)  # [1 + m, *B]
        best = scores.argmax(0)[None, ..., None, None].expand(1, *modes.shape[1:])
        return modes.gather(0, best).squeeze(0)

    @property
    def deterministic_sample(self) -> torch.Tensor:
        """The mode, ``[*B, n_agents, action_dim]``."""
        return self.mode

    def entropy(self) -> torch.Tensor:
        r"""Lower bound in nats, ``[*B]`` (``joint``) or ``[*B, n_agents]``: :math:`\sum_m w_m H_m`.

        It is exact where all components are equal.
        """
        per_agent = (
            self.log_weights.exp().unsqueeze(-1) * self._present(self._component_entropy())
        ).sum(-2)
        return per_agent.sum(-1) if self.joint else per_agent

    def _component_entropy(self) -> torch.Tensor:
        """Entropy per agent of each component, ``[*B, 1 + m, n_agents]``."""
        return (self.scales.log() + 0.5 + _HALF_LOG_2PI).sum(-1)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IGCNormalMixture:
        shape = torch.Size(batch_shape)
        new = self.__new__(type(self))
        new.joint, new.mask = self.joint, None
        new.product = self.product.expand(shape)
        team = shape if self.joint else shape[:-1]
        if self.mask is not None:
            new.mask = self.mask.expand(*team, *self.mask.shape[-1:])
        new.log_weights = self.log_weights.expand(*team, *self.log_weights.shape[-1:])
        new.means = self.means.expand(*team, *self.means.shape[-3:])
        new.scales = self.scales.expand(*team, *self.scales.shape[-3:])
        super(IGCNormalMixture, new).__init__(shape, self.event_shape, validate_args=False)
        return new


class IGCTanhNormalMixture(IGCNormalMixture):
    r"""Tanh-squashed :class:`IGCNormalMixture` for bounded actions.

    As for :class:`IGCTanhNormal`, the executed action is the squashed individual means,
    ``deterministic_sample``, which is not the mode of the density; ``mode`` is the same action.

    Args:
        *args: as :class:`IGCNormalMixture`, before squashing.

    Keyword Args:
        low (float or Tensor): lower bound of the actions, broadcastable to ``loc``. Default -1.
        high (float or Tensor): upper bound of the actions, broadcastable to ``loc``. Default 1.
        **kwargs: as :class:`IGCNormalMixture`.

    Raises:
        ValueError: as :class:`IGCNormalMixture`.

    Examples:
        >>> import torch
        >>> loc, scale = torch.zeros(1, 2, 1), torch.full((1, 2, 1), 0.1)
        >>> dist = IGCTanhNormalMixture(loc, scale, torch.ones(1, 2, 4, 1), torch.zeros(1, 4))
        >>> action = dist.sample()
        >>> bool((action.abs() < 1).all()), dist.log_prob(action).shape
        (True, torch.Size([1]))
    """

    def __init__(
        self,
        *args: Any,
        low: torch.Tensor | float = -1.0,
        high: torch.Tensor | float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.low, self.high = low, high
        # Numbers stay numbers: a tensor of them would be copied to the device at every call.
        low, high = (x.to(self.means) if isinstance(x, torch.Tensor) else x for x in (low, high))
        half = (high - low) / 2
        squash = AffineTransform(low + half, half)
        self.transform = ComposeTransform([SafeTanhTransform(), squash])

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), 1 + self.joint)

    @property
    def component_modes(self) -> torch.Tensor:
        """Squashed means of the components, the individual ones first, ``[1 + m, *B, n, A]``."""
        return self.transform(super().component_modes)

    @property
    def individual_mode(self) -> torch.Tensor:
        """The squashed individual means, ``[*B, n_agents, action_dim]``."""
        return self.transform(self.loc)

    def sample_component(self, index: torch.Tensor) -> torch.Tensor:
        return self.transform(super().sample_component(index))

    def component_log_prob(self, value: torch.Tensor) -> torch.Tensor:
        x = self.transform.inv(value)
        stretch = self.transform.log_abs_det_jacobian(x, value).sum(-1)  # [*B, n]
        return super().component_log_prob(x) - self._present(stretch.unsqueeze(-2))

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IGCTanhNormalMixture:
        new = super().expand(batch_shape)
        assert isinstance(new, IGCTanhNormalMixture)
        new.low, new.high, new.transform = self.low, self.high, self.transform
        return new

    def _component_entropy(self) -> torch.Tensor:
        low, high = self.low, self.high
        squashed = IGCTanhNormal(
            self.means, self.scales, low=low, high=high, joint=False, validate_args=False
        )
        return squashed.entropy()


def _check_shapes(
    loc: torch.Tensor,
    scale: torch.Tensor,
    perturbation: torch.Tensor,
    component_logits: torch.Tensor,
) -> None:
    fits = are_components_of(loc, perturbation, component_logits)
    if not (fits and scale.shape == loc.shape):
        raise ValueError(
            "IGCNormalMixture: expected `scale` of the shape of `loc` [*B, n_agents, action_dim], "
            "`perturbation` [*B, n_agents, n_components, action_dim] and `component_logits` [*B, "
            f"n_components] with at least one component, got {tuple(loc.shape)}, "
            f"{tuple(scale.shape)}, {tuple(perturbation.shape)} and "
            f"{tuple(component_logits.shape)}."
        )
