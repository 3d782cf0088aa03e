"""Observation normalization by running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv, VecNormV2

from torchrl_agentmixer._choices import check_values
from torchrl_agentmixer.groups import agent_groups


class ObservationNormalizer(VecNormV2):
    """TorchRL's ``VecNormV2`` for batched multi-agent environments, with cumulative statistics.

    Each entry of each agent has a mean and a variance over all steps so far of all environments of
    the batch. Loading statistics updates them in place, also in environments that share them.

    Args:
        in_keys (sequence of NestedKey): entries to normalize, in place.
        bound (float): normalized entries are clamped to ``[-bound, bound]``: an entry that was
            constant so far has a tiny scale.
        **kwargs: as ``VecNormV2``.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = normalize_observations(make_env("grid/predator_prey", num_envs=8))
        >>> type(env.transform).__name__
        'ObservationNormalizer'
    """

    def __init__(self, in_keys: Any, *, bound: float = 10.0, **kwargs: Any) -> None:
        check_values("ObservationNormalizer", bound=(bound, bound > 0, "> 0"))
        super().__init__(in_keys, decay=1.0, reduce_batch_dims=True, **kwargs)
        self.bound = bound

    @property
    def statistics(self) -> TensorDict:
        """The shared ``"loc"``, ``"var"`` (mean of squares) and ``"count"``."""
        return TensorDict({"loc": self._loc, "var": self._var, "count": self._count})

    def set_container(self, container: Any) -> None:
        """Attach to an environment, without the warning of ``VecNormV2`` for batches."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*experimental.*")
            super().set_container(container)

    def clone(self) -> ObservationNormalizer:
        """Copy that shares the statistics; TorchRL clones transforms when it nests them."""
        other = super().clone()
        other._loc, other._var, other._count = self._loc, self._var, self._count
        other.bound = self.bound
        return other

    def set_extra_state(self, state: Any) -> None:
        """Load statistics, in place."""
        if self._loc is None or not state:
            super().set_extra_state(state)
            return
        loaded = TensorDict(state).unflatten_keys(self.SEP)
        try:
            self.statistics.update_(loaded)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"ObservationNormalizer: expected statistics of {self.in_keys} of the same sizes: "
                f"{error}"
            ) from error

    def _stateful_update(self, data: TensorDictBase) -> None:
        super()._stateful_update(data)
        # Rounding of large constants in float32 can give a negative variance, and a NaN scale.
        self._var.update_(self._var.maximum(self._loc.pow(2)))

    @torch.no_grad()
    def average(self, average_: Callable[[list[torch.Tensor]], None]) -> None:
        """Average the statistics of several processes, weighted by their numbers of steps.

        Args:
            average_ (callable): averages a list of tensors over the processes, in place.

        Examples:
            >>> from torchrl_agentmixer.envs import make_env
            >>> env = normalize_observations(make_env("grid/predator_prey", num_envs=8))
            >>> env.transform.average(lambda tensors: None)  # of one process
        """
        keys = list(self._count.keys(True, True))
        count = {key: self._count[key].double() for key in keys}
        sums = [(part, key) for part in (self._loc, self._var) for key in keys]
        # In float64 the product and the quotient are exact: one process changes nothing.
        values = [part[key] * count[key] for part, key in ((p.double(), k) for p, k in sums)]
        average_([*count.values(), *values])
        for (part, key), value in zip(sums, values, strict=True):
            part[key].copy_(value / count[key])
        for key in keys:
            self._count[key].copy_(count[key].round())

    def _norm(self, *args: Any) -> TensorDictBase:
        return super()._norm(*args).apply(lambda value: value.clamp(-self.bound, self.bound))

    def loc_scale_bound(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
        """``(loc, scale, bound)`` of each group, for exports; loc and scale ``[n_agents, o]``."""
        loc, scale = self.loc, self.scale
        groups = [key[0] for key in self.in_keys if isinstance(key, tuple)]
        return {
            name: (
                loc[name, "observation"].clone(),
                scale[name, "observation"].clone(),
                self.bound,
            )
            for name in groups
        }


def merged_statistics(several: Sequence[TensorDictBase]) -> TensorDict:
    """Statistics of all steps of several processes that began with the same statistics.

    Args:
        several (sequence of TensorDictBase): ``statistics`` of :class:`ObservationNormalizer`.

    Returns:
        TensorDict: means weighted by the processes' numbers of steps, and the mean number.

    Examples:
        >>> a, b = ({"loc": {"state": torch.tensor(x)}, "count": {"state": torch.tensor(n)}}
        ...         for x, n in ((1.0, 1), (3.0, 3)))
        >>> a["var"], b["var"] = a["loc"], b["loc"]
        >>> both = merged_statistics([TensorDict(a), TensorDict(b)])
        >>> both["loc", "state"].item(), both["count", "state"].item()
        (2.5, 2)
    """
    result = several[0].clone()
    for key in result["count"].keys(True, True):
        counts = torch.stack([one["count"][key] for one in several]).double()
        count = counts.mean(0)  # resets count too, and differ in number
        for name in ("loc", "var"):
            weighted = [one[name][key] * n for one, n in zip(several, counts, strict=True)]
            result[name][key].copy_(torch.stack(weighted).mean(0) / count)
        result["count"][key].copy_(count.round())
    return result


def observation_normalizer(env: EnvBase) -> ObservationNormalizer | None:
    """The :class:`ObservationNormalizer` of an environment, or ``None``.

    Args:
        env (EnvBase): an environment, with transforms or without.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> observation_normalizer(make_env("grid/predator_prey")) is None
        True
    """
    if not isinstance(env, TransformedEnv):
        return None
    own = [t for t in env.transform.modules() if isinstance(t, ObservationNormalizer)]
    return own[0] if own else observation_normalizer(env.base_env)


def normalize_observations(
    env: EnvBase, *, like: EnvBase | Mapping[str, Any] | None = None, bound: float = 10.0
) -> TransformedEnv:
    """Normalize observations and state to zero mean and unit variance.

    Args:
        env (EnvBase): a batch of environments with ``group_map``.

    Keyword Args:
        like (EnvBase or mapping, optional): for evaluation: the training environment, normalized
            by this function, whose current statistics are shared but not updated; or the
            ``state_dict()`` of its :func:`observation_normalizer`.
        bound (float): normalized entries are clamped to ``[-bound, bound]``; that of ``like``, if
            it is an environment.

    Raises:
        ValueError: if ``like`` is not normalized, or has other sizes, or ``bound`` is not positive.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = normalize_observations(make_env("grid/predator_prey", num_envs=8, seed=0))
        >>> evaluation = normalize_observations(make_env("grid/predator_prey", seed=1), like=env)
        >>> states = env.rollout(200, break_when_any_done=False)["state"][:, 100:]
        >>> bool(states.mean().abs() < 0.1), bool((states.std() - 1).abs() < 0.2)
        (True, True)
    """
    keys = [group.key("observation") for group in agent_groups(env)]
    if "state" in env.observation_spec.keys():  # noqa: SIM118
        keys.append("state")
    statistics = None
    if isinstance(like, EnvBase):
        training = observation_normalizer(like)
        if training is None:
            raise ValueError(
                "normalize_observations: expected `like` to be an environment from this function, "
                f"got {type(like).__name__} without an ObservationNormalizer."
            )
        statistics, bound = training.statistics, training.bound
    normalizer = ObservationNormalizer(keys, bound=bound, shared_data=statistics)
    env = TransformedEnv(env, normalizer, auto_unwrap=False)
    if isinstance(like, Mapping):
        normalizer.load_state_dict(like)
    if like is not None:
        normalizer.freeze()
    return env
