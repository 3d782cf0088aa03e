"""What the batched torch environments share: specs, seeding and partial resets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_agentmixer.envs.simulation import check_names, check_shape


class TeamEnv(EnvBase):
    """A cooperative team of one group, ``"agents"``, simulated as one batch of tensors.

    Subclasses hold their state in tensors ``[num_envs, ...]`` and implement :meth:`_reset_where`,
    :meth:`_advance` and :meth:`_observe`. Every environment writes

    - ``("agents", "observation")`` ``[*B, n_agents, o]`` and ``"state"`` ``[*B, s]``, float32;
    - ``"reward"`` ``[*B, 1]``, one number for the team;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: ends terminate, time limits
      truncate;

    and reads ``("agents", "action")`` ``[*B, n_agents]``, integers. Where agents have different
    numbers of actions, ``("agents", "action_mask")`` ``[*B, n_agents, K]`` says which of the ``K``
    of the richest agent each one has. Its random numbers come from a generator of its own: what a
    policy draws does not change them.

    Args:
        n_agents (int): agents in the group.
        n_actions (int or sequence of int): actions of each agent.
        observation_dim (int): entries of one agent's observation.
        state_dim (int): entries of the state.

    Keyword Args:
        num_envs (int): environments in the batch.
        device (optional): where they live.
        seed (int, optional): of the environment's generator.

    Raises:
        ValueError: for ``num_envs`` under 1.

    Examples:
        A game in which only agent 0 counts:

        >>> class Dictator(TeamEnv):
        ...     def _reset_where(self, mask):
        ...         pass
        ...
        ...     def _advance(self, actions):
        ...         over = torch.ones(self.batch_size, dtype=torch.bool)
        ...         return actions[:, 0].float(), over, ~over
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
        n_actions: int | Sequence[int],
        observation_dim: int,
        state_dim: int,
        *,
        num_envs: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"{type(self).__name__}: expected `num_envs` >= 1, got {num_envs}.")
        device = torch.device(device or "cpu")
        super().__init__(device=device, batch_size=[num_envs])
        self.n_agents = n_agents
        self.group_map = {"agents": [f"agent_{i}" for i in range(n_agents)]}
        self._generator = torch.Generator(device=device)
        counts = [n_actions] * n_agents if isinstance(n_actions, int) else list(n_actions)
        index = torch.arange(max(counts), device=device)
        mask = index < torch.tensor(counts, device=device)[:, None]  # [n_agents, K]
        self._action_mask = None if mask.all() else mask.expand(num_envs, -1, -1)
        self._make_specs(max(counts), observation_dim, state_dim)
        self.set_seed(seed if seed is not None else int(torch.randint(2**62, ())))

    def _make_specs(self, n_actions: int, observation_dim: int, state_dim: int) -> None:
        n, batch = self.n_agents, self.batch_size
        options: dict[str, Any] = {"device": self.device}

        def group(**leaves: Any) -> Composite:
            return Composite(leaves, shape=(*batch, n), **options)

        agents = group(observation=Unbounded((*batch, n, observation_dim), **options))
        if self._action_mask is not None:
            agents["action_mask"] = Binary(
                shape=(*batch, n, n_actions), dtype=torch.bool, **options
            )
        state = Unbounded((*batch, state_dim), **options)
        self.observation_spec = Composite(agents=agents, state=state, shape=batch, **options)
        action = Categorical(n_actions, shape=(*batch, n), mask=self._action_mask, **options)
        self.action_spec = Composite(agents=group(action=action), shape=batch, **options)
        self.reward_spec = Unbounded((*batch, 1), **options)
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool, **options)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch, **options
        )

    @abstractmethod
    def _reset_where(self, mask: torch.Tensor) -> None:
        """Start new episodes in the environments of ``mask`` ``[num_envs]``, and only there."""

    @abstractmethod
    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step with actions ``[N, n_agents]``: reward, terminated and truncated, each ``[N]``."""

    @abstractmethod
    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations ``[num_envs, n_agents, o]`` and state ``[num_envs, s]``."""

    def _rand(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, device=self.device, generator=self._generator)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        self._reset_where(mask.reshape(self.batch_size))
        over = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        return self._output({"done": over, "terminated": over.clone(), "truncated": over.clone()})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward, terminated, truncated = self._advance(tensordict["agents", "action"])
        truncated = truncated & ~terminated
        return self._output(
            {
                "reward": reward.unsqueeze(-1),
                "done": (terminated | truncated).unsqueeze(-1),
                "terminated": terminated.unsqueeze(-1),
                "truncated": truncated.unsqueeze(-1),
            }
        )

    def _output(self, entries: dict[str, Any]) -> TensorDict:
        observation, state = self._observe()
        agents = TensorDict(
            {"observation": observation},
            batch_size=[*self.batch_size, self.n_agents],
            device=self.device,
        )
        if self._action_mask is not None:
            agents["action_mask"] = self._action_mask.clone()
        return TensorDict(
            {"agents": agents, "state": state, **entries},
            batch_size=self.batch_size,
            device=self.device,
        )

    def simulation_state(self) -> dict[str, Any]:
        """All tensors of the simulation and its random numbers, see ``simulation_state``."""
        return {
            "generator": self._generator.get_state(),
            **{name: value.clone() for name, value in self._own_tensors().items()},
        }

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for the state of another environment or number of them.
        """
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
        """This environment, if it lives on ``device``; it cannot move.

        Raises:
            NotImplementedError: for another device than that of construction.
        """
        if torch.empty(0, device=device).device != torch.empty(0, device=self.device).device:
            raise NotImplementedError(
                f"{type(self).__name__} lives on {self.device} and cannot move to {device}: "
                f"build it there, with `device={str(device)!r}`."
            )
        return self

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)
