"""The joint random seed of the joint policy, as a TorchRL transform."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import Transform


class CorrelationSeed(Transform):
    r"""Draws a seed :math:`\omega \sim N(0, I_w)` that all agents' joint policy shares.

    The paper's joint policy is :math:`\pi(a | s, \omega)`; given the state alone it would be
    a product of the agents' policies (AgentMixer, "Dec-POMDPs",
    `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). The seed is part of what the
    environment returns, ``"correlation_seed"`` ``[*B, w]``, so that a loss sees the draw that the
    action was taken under. Execution does not read it.

    Args:
        seed_dim (int): width ``w``.

    Keyword Args:
        per (str): a new seed for each ``"step"`` or each ``"episode"``.
        out_key (NestedKey): where it is written.

    Raises:
        ValueError: for a width under 1 or another ``per``.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = TransformedEnv(make_env("matrix/climbing", num_envs=4), CorrelationSeed(8))
        >>> env.rollout(1)["correlation_seed"].shape
        torch.Size([4, 1, 8])
    """

    def __init__(
        self,
        seed_dim: int,
        *,
        per: Literal["step", "episode"] = "step",
        out_key: NestedKey = "correlation_seed",
    ) -> None:
        if seed_dim < 1:
            raise ValueError(f"CorrelationSeed: expected `seed_dim` >= 1, got {seed_dim}.")
        if per not in ("step", "episode"):
            raise ValueError(f"CorrelationSeed: expected `per` 'step' or 'episode', got {per!r}.")
        super().__init__(in_keys=[], out_keys=[out_key])
        self.seed_dim = seed_dim
        self.per = per
        self.out_key = out_key

    def _draw(self, like: TensorDictBase) -> torch.Tensor:
        device = like.device or (self.parent.device if self.parent is not None else None)
        return torch.randn(*like.batch_size, self.seed_dim, device=device)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        keep = self.per == "episode"
        seed = tensordict.get(self.out_key) if keep else self._draw(next_tensordict)
        return next_tensordict.set(self.out_key, seed)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        seed = self._draw(tensordict_reset)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        old = None if tensordict is None else tensordict.get(self.out_key, None)
        if mask is not None and old is not None:
            seed = torch.where(mask.reshape(*seed.shape[:-1], 1), seed, old)
        return tensordict_reset.set(self.out_key, seed)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        if not isinstance(observation_spec, Composite):
            raise ValueError(f"expected a Composite spec, got {type(observation_spec).__name__}.")
        observation_spec[self.out_key] = Unbounded(
            (*observation_spec.shape, self.seed_dim), device=observation_spec.device
        )
        return observation_spec
