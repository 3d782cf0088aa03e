"""The IGC coefficients that training may anneal, as buffers written into the tensordict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class IGCCoefficients(TensorDictModuleBase):
    """Writes temperature, strength and consistency for :class:`IGCCategorical` to read.

    They are buffers, changed in place by :meth:`set`: collectors, losses and compiled graphs that
    hold the policy see the new values, and a rollout records those it was collected under.

    Args:
        groups (sequence of str): group names; each gets ``(group, name)`` entries of shape
            ``[*B, n_agents, 1]``.

    Keyword Args:
        **coefficients (float): the names and their first values.

    Raises:
        ValueError: in :meth:`set`, for a name that was not given at construction.

    Examples:
        >>> from tensordict import TensorDict
        >>> agents = TensorDict({"logits": torch.zeros(4, 3, 5)}, [4, 3])
        >>> write = IGCCoefficients(["agents"], strength=1.0)
        >>> write.set(strength=0.25)
        >>> write(TensorDict({"agents": agents}, [4]))["agents", "strength"].shape
        torch.Size([4, 3, 1])
    """

    def __init__(self, groups: Sequence[str], **coefficients: float) -> None:
        super().__init__()
        self.names = tuple(coefficients)
        self.in_keys = [(group, "logits") for group in groups]
        self.out_keys = [(group, name) for group in groups for name in self.names]
        for name, value in coefficients.items():
            self.register_buffer(name, torch.tensor(float(value)))

    def set(self, **coefficients: float) -> None:
        """Change coefficients in place."""
        for name, value in coefficients.items():
            if name not in self.names:
                raise ValueError(
                    f"IGCCoefficients: expected one of {list(self.names)}, got {name!r}."
                )
            getattr(self, name).fill_(value)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        for group, logits_key in self.in_keys:
            logits = tensordict.get((group, logits_key))
            for name in self.names:
                value = getattr(self, name).to(logits.dtype)
                tensordict.set((group, name), value.expand(*logits.shape[:-1], 1).clone())
        return tensordict
