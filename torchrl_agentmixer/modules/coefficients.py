"""Coefficients of the IGC distributions, annealed over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.schedules import Schedule, Scheduled, as_schedule

_SHARPENED = Schedule(1.0, 0.1, since=0.5, until=0.9)
_ANNEALED = Schedule(3.0, 0.0, until=0.25)
_SHIFTS_ANNEALED = Schedule(1.0, 0.0, until=0.25)


@dataclass(kw_only=True)
class PlanSchedules:
    r"""Coefficients of a mixture of continuous joint plans over training; numbers or schedules.

    The defaults anneal the correlation to zero in the first quarter of training.

    Args:
        strength: :math:`\lambda`, factor of the perturbation; 0 is the individual policy. In Eq. 12
            of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_ it is 1.
        modified_share: :math:`\beta` in [0, 1], the weight of the modified components in
            :class:`~torchrl_agentmixer.distributions.IGCMixture` and
            :class:`~torchrl_agentmixer.distributions.IGCNormalMixture`.
    """

    strength: Scheduled = _SHIFTS_ANNEALED
    modified_share: Scheduled = 1.0

    def schedules(self) -> dict[str, Schedule]:
        """The schedule of each coefficient by name."""
        return {field.name: as_schedule(getattr(self, field.name)) for field in fields(self)}


@dataclass(kw_only=True)
class IGCSchedules(PlanSchedules):
    r"""Coefficients of the discrete joint policy over training; numbers or schedules.

    The defaults anneal the correlation to zero in the first quarter of training, and lower the
    temperature of the individual policies in the second half.

    Args:
        temperature: :math:`\tau` of Eq. 12 of `arXiv 2401.08728
            <https://arxiv.org/abs/2401.08728>`_, > 0.
        consistency: in [0, 1]; the paper has 0, and 1 keeps the individual modes exactly.
    """

    strength: Scheduled = _ANNEALED
    temperature: Scheduled = _SHARPENED
    consistency: Scheduled = 0.0


class IGCCoefficients(TensorDictModuleBase):
    """Module that writes the coefficients of the IGC distributions.

    The values are buffers that :meth:`set` and :meth:`anneal` change in place: collectors, losses
    and compiled graphs of the policy read the new values.

    Args:
        keys (sequence of NestedKey): ``logits`` or ``loc`` of each group, ``[*B, n_agents, size]``.
            Each coefficient is written next to it, with shape ``[*B, n_agents, 1]``.

    Keyword Args:
        **schedules (float, Schedule or mapping): values over training by name of coefficient.

    Raises:
        ValueError: in :meth:`set`, for an unknown name.

    Examples:
        >>> from tensordict import TensorDict
        >>> agents = TensorDict({"logits": torch.zeros(4, 3, 5)}, [4, 3])
        >>> write = IGCCoefficients([("agents", "logits")], strength=Schedule(1.0, 0.0))
        >>> write.anneal(0.75)
        >>> data = write(TensorDict({"agents": agents}, [4]))
        >>> data["agents", "strength"].shape, data["agents", "strength"].unique().item()
        (torch.Size([4, 3, 1]), 0.25)
    """

    def __init__(self, keys: Sequence[NestedKey], **schedules: Scheduled) -> None:
        super().__init__()
        self.schedules = {name: as_schedule(value) for name, value in schedules.items()}
        self.in_keys = list(keys)
        self.out_keys = [_sibling(key, name) for key in keys for name in self.schedules]
        for name, schedule in self.schedules.items():
            self.register_buffer(name, torch.tensor(schedule(0.0)))
        # As `cancel_perturbation`, without reading buffers; recomputed wherever they are set here.
        self._cancels = _cancel(self._numbers())

    def anneal(self, progress: float) -> None:
        """Set all coefficients to their values at the fraction ``progress`` of training."""
        self.set(**{name: schedule(progress) for name, schedule in self.schedules.items()})

    def set(self, **coefficients: float) -> None:
        """Set coefficients to numbers."""
        check_known("coefficient", coefficients, self.schedules)
        values = dict(self._numbers() if coefficients.keys() != self.schedules.keys() else {})
        for name, value in coefficients.items():
            getattr(self, name).fill_(value)
        self._cancels = _cancel(values | coefficients)

    @property
    def cancel_perturbation(self) -> bool:
        """Whether no perturbation can change the joint policy: at strength 0.

        A mixture must also be a single product: only modified components, or a temperature that
        leaves them equal to the individual policies. On an accelerator, where reading a value would
        synchronize, and under ``torch.compile``, it is what :meth:`set` and :meth:`anneal` found,
        and ``False`` in a copy of this module until they are called there.
        """
        if torch.compiler.is_compiling() or any(b.device.type != "cpu" for b in self.buffers()):
            return self._cancels
        return _cancel(self._numbers())

    def _numbers(self) -> dict[str, float]:
        return {name: buffer.item() for name, buffer in self.named_buffers()}

    def __getstate__(self) -> dict[str, Any]:
        # A copy, such as a worker's, gets new values by its buffers.
        return {**self.__dict__, "_cancels": False}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._cancels = _cancel(self._numbers())

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            params = tensordict.get(key)
            for name in self.schedules:
                value = getattr(self, name).to(params.dtype)
                tensordict.set(_sibling(key, name), value.expand(*params.shape[:-1], 1).clone())
        return tensordict


def _cancel(values: Mapping[str, float]) -> bool:
    one_product = 1.0 in (values.get("modified_share", 1.0), values.get("temperature", 1.0))
    return values.get("strength") == 0 and one_product


def _sibling(key: NestedKey, name: str) -> NestedKey:
    """The key of an entry in the same nested tensordict."""
    return name if isinstance(key, str) else (*key[:-1], name)
