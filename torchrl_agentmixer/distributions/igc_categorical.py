"""Joint categorical policy of AgentMixer (Eq. 12)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent

from torchrl_agentmixer.distributions._validation import (
    check_finite,
    check_rank,
    is_readable,
    should_validate,
)

Coefficient = float | torch.Tensor

# NOISE_BOUND is c of Eq. 12, the largest u; g is 1. MARGIN is the gap, in nats, between the mode
# and actions that `consistency` clips: without it they would tie.
NOISE_BOUND = 0.95
MARGIN = 1e-2

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value > 0, "> 0"),
    "strength": (lambda value: value >= 0, ">= 0"),
    "modified_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "consistency": (lambda value: 0 <= value <= 1, "in [0, 1]"),
}


def gumbel_perturbation(perturbation: torch.Tensor) -> torch.Tensor:
    r"""The learned Gumbel noise :math:`\epsilon_\theta` of Eq. 12, without overflow.

    :math:`\epsilon = -\log(-\log u)` with :math:`u = c\,\sigma(x)` and :math:`c` =
    ``NOISE_BOUND``, computed as ``-log(softplus(-x) - log c)``. This form and its gradients are
    finite for every finite ``x`` (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_, "Discrete
    Case").

    Args:
        perturbation (Tensor): the Policy Modifier's output :math:`x`, any shape.

    Returns:
        Tensor: the noise, of the same shape, at most ``-log(-log c)``.

    Examples:
        >>> import torch
        >>> noise = gumbel_perturbation(torch.tensor([-1e4, 0.0, 1e4]))
        >>> bool(noise.isfinite().all())
        True
    """
    return -(F.softplus(-perturbation) - math.log(NOISE_BOUND)).log()


class IGCCategorical(Independent):
    r"""Joint categorical policy: individual logits plus learned Gumbel noise (Eq. 12).

    With :math:`l` the masked log-probabilities of the individual policies and :math:`x` the Policy
    Modifier's output,

    .. math:: z = (l + \text{strength} \cdot \epsilon(x)) / \tau, \qquad
              \pi_\theta = \operatorname{softmax}(z),

    where :math:`\epsilon` is :func:`gumbel_perturbation`. As published (``consistency=0``), the
    joint mode differs from the individual mode where the noise exceeds the gap between two actions.
    ``consistency=1`` keeps the individual mode for every input: with
    :math:`k^* = \arg\max_k l_k`, every other logit is clipped at :math:`z_{k^*} - \text{MARGIN}`.
    The bound is detached. (Otherwise a clipped action with a positive advantage would raise
    :math:`l_{k^*}`, and the mode could never change.)

    Args:
        logits (Tensor): individual logits, ``[*B, n_agents, n_actions]``.
        perturbation (Tensor, optional): the Policy Modifier's output :math:`x`, same shape.
            ``None`` adds no noise.
        mask (Tensor, optional): action mask, ``True`` where an action is allowed, same shape.
            Other actions have probability zero in the joint and in the individual policy.
        temperature (float or Tensor): :math:`\tau > 0`. This and the next two may be tensors that
            broadcast to ``logits``, such as ``[*B, n_agents, 1]``. The range of tensors is not
            checked.
        strength (float or Tensor): 1 is the paper's noise; 0 is the individual policy (at
            temperature 1).
        consistency (float or Tensor): in [0, 1]: 0 for the paper's form, 1 to keep the individual
            mode. A value between reduces the excess over the bound by that fraction.

    Keyword Args:
        joint (bool): ``True`` (default): the agent axis is an event axis, and ``log_prob`` and
            ``entropy`` have one value per team, ``[*B]``. ``False``: ``[*B, n_agents]``.
        validate_args (bool, optional): check values (NaN, an agent without an allowed action).
            Default: only on the CPU, where the check is cheap, and never under ``torch.compile``.

    Raises:
        ValueError: for a missing agent axis, zero agents or actions, shapes that do not match,
            coefficients out of range or, where values are checked, NaN or a mask that allows an
            agent no action.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.5, 0.0]]])
        >>> noise = torch.tensor([[[-9.0, 0.0, 9.0], [9.0, -9.0, 0.0]]])
        >>> IGCCategorical(logits, noise).mode  # not the individual mode
        tensor([[2, 0]])
        >>> IGCCategorical(logits, noise, consistency=1.0).mode
        tensor([[0, 1]])
        >>> IGCCategorical(logits, noise).log_prob(torch.tensor([[0, 1]])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        logits: torch.Tensor,
        perturbation: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        temperature: Coefficient = 1.0,
        strength: Coefficient = 1.0,
        consistency: Coefficient = 0.0,
        *,
        joint: bool = True,
        validate_args: bool | None = None,
    ) -> None:
        _check_inputs(logits, perturbation, mask, joint, validate_args)
        check_coefficients(
            "IGCCategorical", temperature=temperature, strength=strength, consistency=consistency
        )
        self.joint = joint
        self.mask = mask
        individual = masked_log_softmax(logits, mask)
        z = joint_logits(individual, perturbation, mask, temperature, strength, consistency)
        self.individual_logits = individual
        super().__init__(
            Categorical(logits=z, validate_args=False), int(joint), validate_args=False
        )

    @property
    def logits(self) -> torch.Tensor:
        """Log-probabilities of each agent's actions, ``[*B, n_agents, n_actions]``."""
        return self.base_dist.logits

    @property
    def probs(self) -> torch.Tensor:
        """Probabilities of each agent's actions, ``[*B, n_agents, n_actions]``."""
        return self.base_dist.probs

    @property
    def mode(self) -> torch.Tensor:
        """The most probable action of every agent, ``[*B, n_agents]``."""
        return self.base_dist.logits.argmax(-1)

    @property
    def deterministic_sample(self) -> torch.Tensor:
        """The mode, ``[*B, n_agents]``."""
        return self.mode

    @property
    def individual_mode(self) -> torch.Tensor:
        """The individual policies' modes :math:`k^*`, ``[*B, n_agents]``."""
        return self.individual_logits.argmax(-1)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IGCCategorical:
        # Noise, temperature and clipping are part of `logits` already.
        batch_shape = torch.Size(batch_shape)
        shape = batch_shape + self.event_shape + self.base_dist.logits.shape[-1:]
        new = Independent.expand(self, batch_shape, _instance=self.__new__(type(self)))
        new.joint = self.joint
        new.mask = None if self.mask is None else self.mask.expand(shape)
        new.individual_logits = self.individual_logits.expand(shape)
        return new


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Log-softmax over allowed actions; other actions get the lowest finite number."""
    if mask is None:
        return logits.log_softmax(-1)
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~mask, lowest).log_softmax(-1).masked_fill(~mask, lowest)


def joint_logits(
    individual: torch.Tensor,
    perturbation: torch.Tensor | None,
    mask: torch.Tensor | None,
    temperature: Coefficient,
    strength: Coefficient,
    consistency: Coefficient,
) -> torch.Tensor:
    """Logits of the joint policy around individual log-probabilities; all arguments broadcast."""
    z = individual if mask is None else individual.masked_fill(~mask, 0.0)
    if perturbation is not None:
        z = z + strength * gumbel_perturbation(perturbation)
    z = _keep_mode(z / temperature, individual, consistency)
    return z if mask is None else masked_log_softmax(z, mask)


def _keep_mode(z: torch.Tensor, individual: torch.Tensor, consistency: Coefficient) -> torch.Tensor:
    """Clip every logit except the individual mode's at ``z[k*] - MARGIN``.

    Logits are relative to the constant ``z[k*]``, which softmax ignores, so that the margin
    survives rounding for any noise.
    """
    if isinstance(consistency, torch.Tensor):
        unconstrained = is_readable(consistency) and not consistency.any()
    else:
        unconstrained = consistency == 0
    if unconstrained:
        return z
    star = individual.argmax(-1, keepdim=True).expand(*z.shape[:-1], 1)
    relative = z - z.gather(-1, star).detach()
    clipped = torch.lerp(
        relative, relative.clamp(max=-MARGIN), torch.as_tensor(consistency).to(relative)
    )
    is_star = torch.zeros_like(z, dtype=torch.bool).scatter(-1, star, True)
    return torch.where(is_star, relative, clipped)


def _check_inputs(
    logits: torch.Tensor,
    perturbation: torch.Tensor | None,
    mask: torch.Tensor | None,
    joint: bool,
    validate_args: bool | None,
) -> None:
    owner = "IGCCategorical"
    check_rank(owner, "logits", logits, joint)
    for name, value in (("perturbation", perturbation), ("mask", mask)):
        if value is not None and value.shape != logits.shape:
            raise ValueError(
                f"{owner}: expected `{name}` of the shape of `logits` {tuple(logits.shape)}, "
                f"got {tuple(value.shape)}."
            )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"{owner}: expected a boolean `mask` (True: allowed), got {mask.dtype}.")
    if not should_validate(validate_args, logits):
        return
    check_finite(owner, "logits", logits)
    if perturbation is not None:
        check_finite(owner, "perturbation", perturbation)
    if mask is not None:
        stuck = ~mask.any(-1)
        if stuck.any():
            index = tuple(stuck.nonzero()[0].tolist())
            raise ValueError(
                f"{owner}: expected at least one allowed action for every agent, got a `mask` that "
                f"allows none at index {index} ({int(stuck.sum())} such agents; shape "
                f"{tuple(mask.shape)})."
            )


def check_coefficients(owner: str, **coefficients: Coefficient) -> None:
    """Raise a ValueError for a number out of range; tensors are not checked."""
    for name, value in coefficients.items():
        valid, expected = _RANGES[name]
        if not isinstance(value, torch.Tensor) and not valid(value):
            raise ValueError(f"{owner}: expected `{name}` {expected}, got {value}.")
