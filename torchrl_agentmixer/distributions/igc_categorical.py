"""Categorical joint policies around individual logits (AgentMixer, Eq. 12), with an exact mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent

from torchrl_agentmixer.distributions._validation import check_finite, check_rank, should_validate

Coefficient = float | torch.Tensor

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value > 0, "> 0"),
    "strength": (lambda value: value >= 0, ">= 0"),
    "modified_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "consistency": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "margin": (lambda value: value > 0, "> 0"),
    "noise_bound": (lambda value: 0 < value < 1, "in (0, 1)"),
}


def gumbel_perturbation(
    perturbation: torch.Tensor, *, noise_bound: float = 0.95, noise_gain: float = 1.0
) -> torch.Tensor:
    r"""The learned Gumbel noise :math:`\epsilon_\theta` of Eq. 12, without overflow.

    :math:`\epsilon = -\log(-\log u)` with :math:`u = c\,\sigma(g x)`, computed as
    ``-log(softplus(-g x) - log c)``, which stays finite, gradients included, for any finite ``x``
    (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_, "Discrete Case").

    Args:
        perturbation (Tensor): the Policy Modifier's output :math:`x`, any shape.

    Keyword Args:
        noise_bound (float): :math:`c` in (0, 1), the largest :math:`u`.
        noise_gain (float): :math:`g`, the slope inside the sigmoid.

    Returns:
        Tensor: the noise, of the same shape, bounded above by ``-log(-log c)``.

    Examples:
        >>> import torch
        >>> noise = gumbel_perturbation(torch.tensor([-1e4, 0.0, 1e4]))
        >>> bool(noise.isfinite().all())
        True
    """
    return -(F.softplus(-noise_gain * perturbation) - math.log(noise_bound)).log()


class IGCCategorical(Independent):
    r"""Joint categorical policy around the individual policies' logits (Eq. 12).

    With :math:`l` the masked log-probabilities of the individual policies and :math:`x` what the
    Policy Modifier writes,

    .. math:: z = (l + \text{strength} \cdot \epsilon(x)) / \tau, \qquad
              \pi_\theta = \operatorname{softmax}(z),

    where :math:`\epsilon` is :func:`gumbel_perturbation`. As published (``consistency=0``) this
    does **not** keep the mode: it moves as soon as the noise outweighs the gap between two
    actions. ``consistency=1`` keeps it exactly, for every input: with
    :math:`k^* = \arg\max_k l_k`, every other logit is held at or under
    :math:`z_{k^*} - \text{margin}`, a bound that is a constant for the gradient (differentiated
    through, a clipped action with a good advantage would raise :math:`l_{k^*}` in its own place).
    Without a ``perturbation``, and with a ``temperature`` written by the Policy Modifier, the mode
    is exact too, up to rounding of logits that nearly tie:
    :math:`\operatorname{softmax}(l / \tau_\theta)`, the twin of the Gaussian case.

    Args:
        logits (Tensor): individual logits, ``[*B, n_agents, n_actions]``.
        perturbation (Tensor, optional): the Policy Modifier's output :math:`x`, same shape.
            ``None`` adds no noise.
        mask (Tensor, optional): ``True`` where an action is allowed, same shape. Forbidden
            actions have probability zero in the joint and in the individual policy.
        temperature (float or Tensor): :math:`\tau > 0`. This and the next two may be tensors,
            broadcastable to ``logits``, such as ``[*B, n_agents, 1]``.
            Tensors are not checked for their range.
        strength (float or Tensor): 1 is the paper's noise; 0 is the individual policy itself
            (at temperature 1).
        consistency (float or Tensor): in [0, 1]; 0 is the paper, 1 is exact, between them the
            excess over the bound is reduced by that share.

    Keyword Args:
        margin (float): gap, in nats, that ``consistency`` puts between the mode and what it
            clips; > 0, else clipped actions would tie with the mode.
        noise_bound (float): :math:`c`, see :func:`gumbel_perturbation`.
        noise_gain (float): :math:`g`, see :func:`gumbel_perturbation`.
        joint (bool): if ``True`` (default) the agent axis is an event axis and ``log_prob`` and
            ``entropy`` are one number for the team, ``[*B]``; if ``False`` ``[*B, n_agents]``.
        validate_args (bool, optional): check values (NaN, an agent without an allowed action).
            By default on the CPU, where it is cheap, and not on an accelerator; never under
            ``torch.compile``.

    Raises:
        ValueError: for a missing agent axis, zero agents or actions, shapes that do not match,
            coefficients out of range or, where values are checked, NaN or a mask that leaves an
            agent no action.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.5, 0.0]]])
        >>> noise = torch.tensor([[[-9.0, 0.0, 9.0], [9.0, -9.0, 0.0]]])
        >>> IGCCategorical(logits, noise).mode  # the paper's form leaves the individual mode
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
        margin: float = 1e-2,
        noise_bound: float = 0.95,
        noise_gain: float = 1.0,
        joint: bool = True,
        validate_args: bool | None = None,
    ) -> None:
        _check_inputs(logits, perturbation, mask, joint, validate_args)
        check_coefficients(
            "IGCCategorical",
            temperature=temperature,
            strength=strength,
            consistency=consistency,
            margin=margin,
            noise_bound=noise_bound,
        )
        self.joint = joint
        self.mask = mask
        individual = masked_log_softmax(logits, mask)
        z = joint_logits(
            individual,
            perturbation,
            mask,
            temperature,
            strength,
            consistency,
            margin=margin,
            noise_bound=noise_bound,
            noise_gain=noise_gain,
        )
        self.individual_logits = individual
        super().__init__(
            Categorical(logits=z, validate_args=False),
            int(joint),
            validate_args=False,
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
        # `logits` are final, so that the copy needs no noise, temperature or clipping of its own.
        batch_shape = torch.Size(batch_shape)
        shape = batch_shape + self.event_shape + self.base_dist.logits.shape[-1:]
        new = Independent.expand(self, batch_shape, _instance=self.__new__(type(self)))
        new.joint = self.joint
        new.mask = None if self.mask is None else self.mask.expand(shape)
        new.individual_logits = self.individual_logits.expand(shape)
        return new


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities; a forbidden action has the lowest finite number, so gradients exist."""
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
    *,
    margin: float,
    noise_bound: float,
    noise_gain: float,
) -> torch.Tensor:
    """Logits of the joint policy around individual log-probabilities; all arguments broadcast."""
    z = individual if mask is None else individual.masked_fill(~mask, 0.0)
    if perturbation is not None:
        noise = gumbel_perturbation(perturbation, noise_bound=noise_bound, noise_gain=noise_gain)
        z = z + strength * noise
    z = _keep_mode(z / temperature, individual, consistency, margin)
    return z if mask is None else masked_log_softmax(z, mask)


def _keep_mode(
    z: torch.Tensor, individual: torch.Tensor, consistency: Coefficient, margin: float
) -> torch.Tensor:
    """Move every logit but the individual mode's towards ``z[k*] - margin`` where it is above.

    Logits are taken relative to the constant ``z[k*]``, which softmax does not see: the margin
    then survives rounding, however large the noise is.
    """
    if not isinstance(consistency, torch.Tensor) and consistency == 0:
        return z
    star = individual.argmax(-1, keepdim=True).expand(*z.shape[:-1], 1)
    relative = z - z.gather(-1, star).detach()
    clipped = torch.lerp(
        relative, relative.clamp(max=-margin), torch.as_tensor(consistency).to(relative)
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
    """Raise for numbers out of range; tensors are not looked at."""
    for name, value in coefficients.items():
        valid, expected = _RANGES[name]
        if not isinstance(value, torch.Tensor) and not valid(value):
            raise ValueError(f"{owner}: expected `{name}` {expected}, got {value}.")
