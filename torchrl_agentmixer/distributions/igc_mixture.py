"""Mixture of joint categorical policies with one component per team."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, register_kl

from torchrl_agentmixer.distributions._mixture import are_components_of, team_weights
from torchrl_agentmixer.distributions._validation import check_finite, should_validate
from torchrl_agentmixer.distributions.igc_categorical import (
    Coefficient,
    IGCCategorical,
    check_coefficients,
    joint_logits,
)

# The exact mode enumerates all joint actions; larger teams use the components' modes.
MAX_JOINT_ACTIONS = 256


class IGCMixture(MixtureSameFamily):
    r"""Mixture of joint categorical policies, each as in Eq. 12.

    .. math:: \pi_\theta(a) = (1 - \beta) \prod_i \pi_{\phi_i}(a_i)
              + \beta \sum_m w_m \prod_i \pi_{\theta, m, i}(a_i)

    Given the state, the paper's joint policy is a product over agents unless the Policy Modifier
    reads a random seed :math:`\omega`. Here :math:`\omega` is the component :math:`m`, drawn once
    per team with learned weights :math:`w` that depend on the state. ``log_prob`` marginalizes it
    exactly. Agents are thus correlated even in a game with one state.
    The first component is the product of the individual policies; the others are
    :class:`IGCCategorical` around the same logits, each with its own perturbation.
    One perturbation and ``modified_share`` :math:`\beta < 1` is the mixture of a joint and an
    individual policy (Eq. 6 of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). At
    ``strength=0`` (and temperature 1, consistency 0), or ``modified_share=0``, it is the product.

    Args:
        logits (Tensor): individual logits, ``[*B, n_agents, n_actions]``.
        perturbation (Tensor): the Policy Modifier's outputs :math:`x`,
            ``[*B, n_agents, n_components, n_actions]``.
        component_logits (Tensor): log-weights :math:`\log w` up to a constant,
            ``[*B, n_components]``.
        mask (Tensor, optional): action mask, ``True`` where an action is allowed, shape of
            ``logits``.
        temperature, strength, consistency (float or Tensor): of every modified component, see
            :class:`IGCCategorical`. ``consistency=1`` keeps the individual modes in all components
            and in the mixture.
        modified_share (float or Tensor): :math:`\beta` in [0, 1]. A tensor broadcasts to
            ``[*B, n_agents, 1]`` like the other coefficients; the first agent's value is used.

    Keyword Args:
        validate_args (bool, optional): as in :class:`IGCCategorical`.

    Raises:
        ValueError: as :class:`IGCCategorical`, and for component logits of the wrong shape.

    Examples:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 2)  # two agents, two actions each
        >>> heads_or_tails = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])  # [n_components, n_actions]
        >>> dist = IGCMixture(
        ...     logits, heads_or_tails.expand(1, 2, 2, 2), torch.zeros(1, 2), strength=10.0
        ... )
        >>> both, apart = torch.tensor([[0, 0]]), torch.tensor([[0, 1]])
        >>> dist.log_prob(both).exp().item() > 0.49, dist.log_prob(apart).exp().item() < 0.01
        (True, True)
    """

    def __init__(
        self,
        logits: torch.Tensor,
        perturbation: torch.Tensor,
        component_logits: torch.Tensor,
        mask: torch.Tensor | None = None,
        temperature: Coefficient = 1.0,
        strength: Coefficient = 1.0,
        consistency: Coefficient = 0.0,
        modified_share: Coefficient = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        _check_shapes(logits, perturbation, component_logits)
        check_coefficients(
            "IGCMixture",
            temperature=temperature,
            strength=strength,
            consistency=consistency,
            modified_share=modified_share,
        )
        if should_validate(validate_args, logits):
            check_finite("IGCMixture", "perturbation", perturbation)
            check_finite("IGCMixture", "component_logits", component_logits)
        self.product = IGCCategorical(logits, mask=mask, validate_args=validate_args)
        self.mask = mask
        modified = joint_logits(
            self.product.individual_logits.unsqueeze(-3),
            perturbation.movedim(-2, -3),  # [*B, m, n, K]
            None if mask is None else mask.unsqueeze(-3),
            _over_components(temperature),
            _over_components(strength),
            _over_components(consistency),
        )
        weights = team_weights(component_logits, modified_share, logits.shape[:-1])
        every = torch.cat([self.product.logits.unsqueeze(-3), modified], -3)
        super().__init__(
            Categorical(logits=weights, validate_args=False),
            Independent(Categorical(logits=every, validate_args=False), 1, validate_args=False),
            validate_args=False,
        )

    @property
    def n_joint_actions(self) -> int:
        """``n_actions ** n_agents``."""
        n_agents, n_actions = self.product.logits.shape[-2:]
        return n_actions**n_agents

    @property
    def logits(self) -> torch.Tensor:
        """Log-probabilities of each agent's actions in each component, ``[*B, m, n, K]``."""
        return self.component_distribution.base_dist.logits  # type: ignore[attr-defined]

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:  # type: ignore[override]
        """Joint actions ``[*sample_shape, *B, n_agents]``."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            drawn = self.mixture_distribution.sample(shape)[..., None, None, None]
            logits = self.logits.expand(*shape, *self.logits.shape)
            index = drawn.expand(*drawn.shape[:-2], *self.logits.shape[-2:])
            return Categorical(
                logits=logits.gather(-3, index).squeeze(-3), validate_args=False
            ).sample()

    @property
    def individual_mode(self) -> torch.Tensor:
        """The individual policies' modes, ``[*B, n_agents]``."""
        return self.product.mode

    @property
    def mode(self) -> torch.Tensor:  # type: ignore[override]
        """The most probable joint action, ``[*B, n_agents]``.

        With more than ``MAX_JOINT_ACTIONS`` joint actions, the most probable one among the
        components' modes. Ties, up to rounding, are broken in favor of the individual modes.
        """
        if self.n_joint_actions <= MAX_JOINT_ACTIONS:
            score, best = _log(self._joint_probs()).max(-1)
            mode = self._joint_actions()[best]
        else:
            candidates = self.logits.argmax(-1).movedim(-2, 0)  # [m, *B, n]
            score, best = self.log_prob(candidates).max(0)
            index = best[None, ..., None].expand(1, *candidates.shape[1:])
            mode = candidates.gather(0, index).squeeze(0)
        individual = self.individual_mode
        rounding = 8 * torch.finfo(score.dtype).eps * (1 + score.abs())
        tied = self.log_prob(individual) >= score - rounding
        return torch.where(tied.unsqueeze(-1), individual, mode)

    @property
    def deterministic_sample(self) -> torch.Tensor:
        """The mode, ``[*B, n_agents]``."""
        return self.mode

    def entropy(self) -> torch.Tensor:
        r"""Lower bound of the joint action's entropy, ``[*B]``, in nats, for teams of any size.

        The pairwise-distance bound with the Bhattacharyya coefficient of Kolchinsky and Tracey
        (`arXiv 1706.02419 <https://arxiv.org/abs/1706.02419>`_),

        .. math:: \sum_i w_i H(p_i) - \sum_i w_i \log \sum_j w_j \sum_a \sqrt{p_i(a) p_j(a)}.

        It is exact where any two components are equal or have no joint action in common.
        """
        each = -(self.logits.exp() * self.logits).sum((-2, -1))  # [*B, m]
        weights = self.mixture_distribution
        roots = (0.5 * self.logits).exp().transpose(-3, -2)  # [*B, n, m, K]
        overlap = _log(roots @ roots.mT).sum(-3)  # log of the coefficients, [*B, m, m]
        mixed = (weights.logits.unsqueeze(-2) + overlap).logsumexp(-1)
        return (weights.probs * (each - mixed)).sum(-1)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IGCMixture:
        shape = torch.Size(batch_shape)
        new = super().expand(shape, _instance=self.__new__(type(self)))
        new.product = self.product.expand(shape)
        new.mask = new.product.mask
        return new

    def _joint_actions(self) -> torch.Tensor:
        """All joint actions, ``[n_actions ** n_agents, n_agents]``."""
        n_agents, n_actions = self.product.logits.shape[-2:]
        device = self.product.logits.device
        index = torch.arange(self.n_joint_actions, device=device).unsqueeze(-1)
        place = n_actions ** torch.arange(n_agents - 1, -1, -1, device=device)
        return index // place % n_actions

    def _joint_probs(self) -> torch.Tensor:
        """Probability of every joint action, ``[*B, n_actions ** n_agents]``."""
        *others, last = self.logits.exp().unbind(-2)  # each [*B, m, K]
        joint = self.mixture_distribution.probs.unsqueeze(-1)  # [*B, m, 1]
        for agent in others:
            joint = (joint.unsqueeze(-1) * agent.unsqueeze(-2)).flatten(-2)
        return (joint.mT @ last).flatten(-2)


def _log(probs: torch.Tensor) -> torch.Tensor:
    """Logarithm with the argument clamped at the smallest normal number."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _over_components(coefficient: Coefficient) -> Coefficient:
    """``[*B, n, 1]`` to ``[*B, 1, n, 1]``."""
    many = isinstance(coefficient, torch.Tensor) and coefficient.ndim >= 2
    return coefficient.unsqueeze(-3) if many else coefficient  # type: ignore[union-attr]


@register_kl(IGCMixture, IGCCategorical)
def _kl_mixture_product(p: IGCMixture, q: IGCCategorical) -> torch.Tensor:
    return kl_to_product(p, q.logits)


def kl_to_product(p: IGCMixture, logits: torch.Tensor) -> torch.Tensor:
    """Upper bound of ``KL(p || q)``, ``[*B]``, for a product ``q`` over agents.

    Only ``p``'s entropy is a bound, see :meth:`IGCMixture.entropy`. The expected logarithm of a
    product is exact: a sum over agents of expectations under ``p``'s marginals.

    Args:
        p (IGCMixture): the joint policy.
        logits (Tensor): normalized log-probabilities of the agents, ``[*B, n_agents, n_actions]``.
    """
    weights = p.mixture_distribution.probs[..., None, None]
    marginals = (weights * p.logits.exp()).sum(-3)  # [*B, n, K]
    return -p.entropy() - (marginals * logits).sum((-2, -1))


def _check_shapes(
    logits: torch.Tensor, perturbation: torch.Tensor, component_logits: torch.Tensor
) -> None:
    if not are_components_of(logits, perturbation, component_logits):
        raise ValueError(
            "IGCMixture: expected `perturbation` [*B, n_agents, n_components, n_actions] and "
            "`component_logits` [*B, n_components] with at least one component for `logits` of "
            f"shape {tuple(logits.shape)}, got {tuple(perturbation.shape)} and "
            f"{tuple(component_logits.shape)}."
        )
