"""Base classes of batched multi-agent environments: specs, partial resets, outputs, seeding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.simulation import check_names, check_shape


def flag_spec(*shape: int, device: Any = None) -> Categorical:
    """Spec of a boolean entry."""
    return Categorical(2, shape=shape, dtype=torch.bool, device=device)


def done_spec(batch: Sequence[int] = (), device: Any = None) -> Composite:
    """Specs of ``"done"``, ``"terminated"`` and ``"truncated"``, ``[*B, 1]``."""
    keys = ("done", "terminated", "truncated")
    flags = {key: flag_spec(*batch, 1, device=device) for key in keys}
    return Composite(flags, shape=batch, device=device)


class BatchedEnv(EnvBase):
    """Base class of environments that simulate a whole batch in one process.

    Subclasses set ``group_map``, call :meth:`_set_specs`, and implement :meth:`_reset_where`,
    :meth:`_observations` and ``_step``, which returns :meth:`_result` or :meth:`_output`.

    Args:
        num_envs (int): environments in the batch.
        device: device of the tensordicts.

    Raises:
        ValueError: if ``num_envs`` is less than 1.
    """

    # Boolean entries that a reset writes as false.
    _flags: tuple[str, ...] = ("done", "terminated", "truncated")

    def __init__(self, num_envs: int, device: torch.device | str | None) -> None:
        check_at_least(type(self).__name__, 1, num_envs=num_envs)
        super().__init__(device=torch.device(device or "cpu"), batch_size=[num_envs])

    def _set_specs(
        self,
        observations: Mapping[str, Mapping[str, TensorSpec]],
        actions: Mapping[str, TensorSpec],
        state_dim: int,
        **root: TensorSpec,
    ) -> None:
        """Set all specs, given each group's observation entries and action, with batch sizes."""
        batch, options = self.batch_size, {"device": self.device}

        def group(name: str, leaves: Mapping[str, TensorSpec]) -> Composite:
            return Composite(leaves, shape=(*batch, len(self.group_map[name])), **options)

        groups = {name: group(name, leaves) for name, leaves in observations.items()}
        state = Unbounded((*batch, state_dim), **options)
        leaves = {**groups, "state": state, **root}
        self.observation_spec = Composite(leaves, shape=batch, **options)
        action_groups = {name: group(name, {"action": spec}) for name, spec in actions.items()}
        self.action_spec = Composite(action_groups, shape=batch, **options)
        self.reward_spec = Unbounded((*batch, 1), **options)
        self.done_spec = done_spec(batch, self.device)

    @abstractmethod
    def _reset_where(self, mask: torch.Tensor) -> None:
        """Start new episodes in the environments of ``mask`` ``[num_envs]`` only."""

    @abstractmethod
    def _observations(self) -> dict[str, Any]:
        """``"state"``, and a dict of each group's entries."""

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        self._reset_where(mask.reshape(self.batch_size))
        no = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        return self._output({key: no.clone() for key in self._flags})

    def _result(
        self, reward: torch.Tensor, terminated: torch.Tensor, truncated: torch.Tensor
    ) -> TensorDict:
        """Output of a step, from ``[num_envs]`` each."""
        truncated = truncated & ~terminated
        entries = {
            "reward": reward,
            "done": terminated | truncated,
            "terminated": terminated,
            "truncated": truncated,
        }
        return self._output({key: value.unsqueeze(-1) for key, value in entries.items()})

    def _output(self, entries: dict[str, Any]) -> TensorDict:
        batch, entries = list(self.batch_size), {**self._observations(), **entries}
        for name, agents in self.group_map.items():
            size = [*batch, len(agents)]
            entries[name] = TensorDict(entries[name], batch_size=size, device=self.device)
        return TensorDict(entries, batch_size=batch, device=self.device)


class TeamEnv(BatchedEnv):
    """A cooperative team of one group, ``"agents"``, simulated as one batch of tensors.

    Subclasses keep their simulation state in tensors ``[num_envs, ...]`` and implement
    :meth:`_reset_where`, :meth:`_advance` and :meth:`_observe`. Every environment writes

    - ``("agents", "observation")`` ``[*B, n_agents, o]`` and ``"state"`` ``[*B, s]``, float32;
    - ``"reward"`` ``[*B, 1]``, the team reward;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``; time limits truncate;

    and reads ``("agents", "action")``: integers ``[*B, n_agents]``, or continuous actions
    ``[*B, n_agents, A]``. If agents have different numbers of actions,
    ``("agents", "action_mask")`` ``[*B, n_agents, K]`` is true for the valid actions, where ``K``
    is the largest number. Random numbers come from a private generator, so that they do not depend
    on what a policy samples.

    Args:
        n_agents (int): number of agents.
        n_actions (int, sequence of int or Bounded): number of actions per agent; or the spec of one
            agent's continuous action, ``[A]``.
        observation_dim (int): entries of one agent's observation.
        state_dim (int): entries of the state.

    Keyword Args:
        num_envs (int): environments in the batch.
        device (optional): device of the simulation.
        seed (int, optional): seed of the environment's generator.

    Raises:
        ValueError: if ``num_envs`` is less than 1.

    Examples:
        A game in which only the action of agent 0 counts:

        >>> class Dictator(TeamEnv):
        ...     def _reset_where(self, mask):
        ...         pass
        ...
        ...     def _advance(self, actions):
        ...         terminated = torch.ones(self.batch_size, dtype=torch.bool)
        ...         return actions[:, 0].float(), terminated, ~terminated
        ...
        ...     def _observe(self):
        ...         ones = torch.ones(*self.batch_size, self.n_agents, 1)
        ...         return ones, ones[:, 0].clone()
        >>> Dictator(3, 2, 1, 1, num_envs=5).rollout(1)["next", "reward"].shape
        torch.Size([5, 1, 1])
    """

    def __init__(
        self,
        n_agents: int,
        n_actions: int | Sequence[int] | Bounded,
        observation_dim: int,
        state_dim: int,
        *,
        num_envs: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_envs, device)
        self.n_agents = n_agents
        self.group_map = {"agents": [f"agent_{i}" for i in range(n_agents)]}
        self._generator = torch.Generator(device=self.device)
        shape = (num_envs, n_agents)
        leaves: dict[str, TensorSpec] = {
            "observation": Unbounded((*shape, observation_dim), device=self.device)
        }
        self._action_mask: torch.Tensor | None = None
        if isinstance(n_actions, Bounded):
            action: TensorSpec = n_actions.to(self.device).expand(*shape, *n_actions.shape)
        else:
            action = self._discrete_actions(n_actions)
            if self._action_mask is not None:
                leaves["action_mask"] = Binary(
                    shape=self._action_mask.shape, dtype=torch.bool, device=self.device
                )
        self._set_specs({"agents": leaves}, {"agents": action}, state_dim)
        self.set_seed(seed if seed is not None else int(torch.randint(2**62, ())))

    def _discrete_actions(self, n_actions: int | Sequence[int]) -> Categorical:
        """Spec ``[N, n_agents]``; sets the mask if the agents have different numbers of actions."""
        options, shape = {"device": self.device}, (*self.batch_size, self.n_agents)
        counts = [n_actions] * self.n_agents if isinstance(n_actions, int) else list(n_actions)
        mask = torch.arange(max(counts), **options) < torch.tensor(counts, **options)[:, None]
        if not mask.all():  # [n, K]
            self._action_mask = mask.expand(*shape, -1)
        return Categorical(max(counts), shape=shape, mask=self._action_mask, **options)

    @abstractmethod
    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step with ``[N, n_agents(, A)]``: reward, terminated and truncated, each ``[N]``."""

    @abstractmethod
    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations ``[num_envs, n_agents, o]`` and state ``[num_envs, s]``."""

    def _rand(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, device=self.device, generator=self._generator)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._result(*self._advance(tensordict["agents", "action"]))

    def _observations(self) -> dict[str, Any]:
        observation, state = self._observe()
        agents = {"observation": observation}
        if self._action_mask is not None:
            agents["action_mask"] = self._action_mask.clone()
        return {"agents": agents, "state": state}

    def simulation_state(self) -> dict[str, Any]:
        """All tensors of the simulation and the generator's state; see ``simulation_state``."""
        tensors = {name: value.clone() for name, value in self._own_tensors().items()}
        return {"generator": self._generator.get_state(), **tensors}

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Restore a simulation state; a ValueError for another environment or batch size."""
        own, name = self._own_tensors(), type(self).__name__
        check_names(name, state, {"generator", *own})
        for key, value in own.items():
            check_shape(name, key, state[key], value)
        self._generator.set_state(state["generator"].cpu())
        for key in own:
            setattr(self, key, state[key].to(self.device, copy=True))

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        return {key: value for key, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device | str) -> TeamEnv:
        """Return this environment; a NotImplementedError if ``device`` is another than its own."""
        if torch.empty(0, device=device).device != torch.empty(0, device=self.device).device:
            raise NotImplementedError(
                f"{type(self).__name__} is on {self.device} and cannot be moved to {device}: "
                f"build it with `device={str(device)!r}`."
            )
        return self

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)
