"""SMAX, JaxMARL's StarCraft-like battles, as batches of one team."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_agentmixer.envs.drawing import Canvas
from torchrl_agentmixer.envs.masks import check_legal, draw_legal_actions
from torchrl_agentmixer.envs.optional import require_smax
from torchrl_agentmixer.envs.simulation import check_names, check_shape
from torchrl_agentmixer.envs.smax_simulator import (
    as_array,
    jax_device,
    keep_compiled_code,
    simulator,
    to_tensor,
)

_STOP = 4  # the one action of the dead
_PIXELS = 14  # of a unit of length


class SmaxEnv(EnvBase):
    """A batch of SMAX battles against the built-in heuristic, simulated at once with JAX.

    SMAX (JaxMARL: `arXiv 2311.10090 <https://arxiv.org/abs/2311.10090>`_) has SMAC's units and
    battles, and SMACv2's random teams and starting positions, without StarCraft II; docs/smax.md
    says how they differ. Each environment writes, for the ``n`` units of the team,

    - ``("agents", "observation")`` ``[*B, n, o]``: what a unit sees of the others, relative to its
      sight range, and of itself; and ``"state"`` ``[*B, s]``: all units, positions in units of
      length; float32;
    - ``("agents", "action_mask")`` ``[*B, n, K]``, the legal actions: 0 to 3 move north, east,
      south and west, 4 stop, the only one of the dead, 5 and above attack that enemy; and
      ``("agents", "alive")`` ``[*B, n]``;
    - ``"reward"`` ``[*B, 1]``: the share of the enemies' health that was taken, and 1 for a
      victory;
    - ``"battle_won"`` ``[*B, 1]``, true at the step with which the battle is won;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: a battle that is won or lost
      terminates, ``max_steps`` truncates;

    and reads ``("agents", "action")`` ``[*B, n]``, integers. :meth:`rand_action`, and so
    ``env.rollout(n)``, draws legal actions; where a policy is asked for, hand over
    ``env.rand_action``.

    The first reset and the first step compile, once for all environments of one scenario,
    ``num_envs`` and options, and once for all processes to come: compiled code is kept in
    ``~/.cache/torchrl_agentmixer/jax``, or where ``JAX_COMPILATION_CACHE_DIR`` says. Episodes start
    from states that are drawn ``num_envs`` at a time and used once each.

    Args:
        scenario (str): ``"smacv2_5_units"`` and others of JaxMARL, such as ``"3m"``; or
            ``"{race}_{units}_vs_{enemies}"`` with ``"protoss"``, ``"terran"`` or ``"zerg"``.

    Keyword Args:
        num_envs (int): environments in the batch.
        max_steps (int): time limit of an episode, in steps of half a second.
        device (optional): where battles are simulated and tensordicts live: ``"cpu"``, or
            ``"cuda"`` with a JAX that has it.
        seed (int, optional): of the environment's own random numbers.
        **kwargs: options of JaxMARL's ``SMAX`` and ``HeuristicEnemySMAX``, such as
            ``see_enemy_actions``, ``walls_cause_death`` or ``attack_mode``.

    Raises:
        ImportError: without JaxMARL, with the command that installs it.
        ValueError: for an unknown scenario or option, a number under 1, or an illegal action; with
            the environment, the agent and what would be legal.
        RuntimeError: for a device that JAX does not have.

    Examples:
        >>> env = SmaxEnv("smacv2_5_units", num_envs=64, seed=0)  # doctest: +SKIP
        >>> rollout = env.rollout(20)  # doctest: +SKIP
        >>> rollout["agents", "observation"].shape, rollout["state"].shape  # doctest: +SKIP
        (torch.Size([64, 20, 5, 127]), torch.Size([64, 20, 120]))
    """

    def __init__(
        self,
        scenario: str,
        *,
        num_envs: int = 1,
        max_steps: int = 100,
        device: torch.device | str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        require_smax()
        for name, value in (("num_envs", num_envs), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"SmaxEnv: expected `{name}` >= 1, got {value}.")
        device = torch.device(device or "cpu")
        self._jax_device = jax_device(device)
        super().__init__(device=device, batch_size=[num_envs])
        keep_compiled_code()
        self._simulator = simulator(scenario, self._jax_device, **kwargs)
        self.scenario = scenario
        self.max_steps = max_steps
        self.n_agents = self._simulator.battle.num_agents
        self.group_map = {"agents": [f"agent_{i}" for i in range(self.n_agents)]}
        self._battles: Any = None  # of all environments
        self._make_specs()
        self.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))

    def _make_specs(self) -> None:
        battle, n, batch = self._simulator.battle, self.n_agents, self.batch_size
        n_actions = battle.num_ally_actions
        options: dict[str, Any] = {"device": self.device}

        def group(**leaves: Any) -> Composite:
            return Composite(leaves, shape=(*batch, n), **options)

        def flag(*shape: int) -> Categorical:
            return Categorical(2, shape=(*batch, *shape), dtype=torch.bool, **options)

        agents = group(
            observation=Unbounded((*batch, n, battle.obs_size), **options),
            action_mask=Binary(shape=(*batch, n, n_actions), dtype=torch.bool, **options),
            alive=flag(n),
        )
        state = Unbounded((*batch, battle.state_size), **options)
        self.observation_spec = Composite(
            agents=agents, state=state, battle_won=flag(1), shape=batch, **options
        )
        action = Categorical(n_actions, shape=(*batch, n), **options)
        self.action_spec = Composite(agents=group(action=action), shape=batch, **options)
        self.reward_spec = Unbounded((*batch, 1), **options)
        self.done_spec = Composite(
            done=flag(1), terminated=flag(1), truncated=flag(1), shape=batch, **options
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        import jax

        key = jax.device_put(jax.random.key(seed % 2**32), self._jax_device)
        self._key, self._start_key = jax.random.split(key)
        self._starts: Any = None  # ready states, of which `_used` were used
        self._used = 0

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        import jax

        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones(self.batch_size, dtype=torch.bool)
        count = int(mask.sum())
        if self._starts is None or self._used + count > self.batch_size.numel():
            self._start_key, key = jax.random.split(self._start_key)
            self._starts, self._used = self._simulator.start(key, self.batch_size.numel()), 0
        if self._battles is None:
            self._battles = self._starts
        mask = self._to_jax(mask.reshape(self.batch_size), torch.bool)
        self._battles = self._simulator.restart(self._battles, self._starts, mask, self._used)
        self._used += count
        flags = ("battle_won", "done", "terminated", "truncated")
        over = {
            key: torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
            for key in flags
        }
        return self._output(over)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._battles is None:
            raise RuntimeError(f"smax/{self.scenario}: expected a reset before the first step.")
        states, seen, _ = self._battles
        action = tensordict["agents", "action"]
        check_legal(
            action,
            torch.from_dlpack(seen["action_mask"]).to(action.device),
            name=f"smax/{self.scenario}",
            dead_action=_STOP,
            step=lambda i: int(states.state.step[i]) + 1,
        )
        self._key, self._battles, outcome = self._simulator.step(
            self._key, self._battles, self._to_jax(action, torch.int32), self.max_steps
        )
        return self._output(self._to_torch(outcome))

    def _output(self, entries: dict[str, torch.Tensor]) -> TensorDict:
        agents = self._to_torch(self._battles[1])
        state = agents.pop("state")
        group = TensorDict(agents, batch_size=[*self.batch_size, self.n_agents], device=self.device)
        return TensorDict(
            {"agents": group, "state": state, **entries},
            batch_size=self.batch_size,
            device=self.device,
        )

    def _to_torch(self, arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Copies: JAX shares its memory with torch, and must not see what is written there."""
        import jax

        jax.block_until_ready(arrays)
        return {k: torch.from_dlpack(x).to(self.device, copy=True) for k, x in arrays.items()}

    def _to_jax(self, tensor: torch.Tensor, dtype: torch.dtype) -> Any:
        """A copy, likewise: JAX may read it later."""
        import jax

        device = "cpu" if self._jax_device.platform == "cpu" else self.device
        tensor = tensor.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        return jax.dlpack.from_dlpack(tensor)

    def simulation_state(self) -> dict[str, Any]:
        """Battles and random numbers, see ``simulation_state``."""
        return {"used": self._used, "arrays": [to_tensor(x) for x in self._simulated()[0]]}

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for the state of another scenario or number of environments.
        """
        import jax

        arrays, structure = self._simulated()
        own = [to_tensor(x) for x in arrays]
        check_names(f"smax/{self.scenario}", range(len(state["arrays"])), range(len(own)))
        for i, (new, old) in enumerate(zip(state["arrays"], own, strict=True)):
            check_shape(f"smax/{self.scenario}", f"array {i}", new, old)
        with jax.default_device(self._jax_device):
            arrays = [as_array(x, old) for x, old in zip(state["arrays"], arrays, strict=True)]
        parts = jax.tree.unflatten(structure, arrays)
        self._battles, self._starts, self._key, self._start_key = parts
        self._used = state["used"]

    def _simulated(self) -> tuple[list[Any], Any]:
        import jax

        if self._battles is None or self._starts is None:
            self.reset()
        parts = (self._battles, self._starts, self._key, self._start_key)
        return jax.tree.flatten(parts)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Write random legal actions by the tensordict's mask; without one, any actions."""
        if tensordict is None:
            return super().rand_action()
        return draw_legal_actions(tensordict)

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """A picture of one battle, ``[H, W, 3]``, uint8: the team blue, the enemies red.

        Raises:
            ImportError: without Pillow, with the command that installs it.
            RuntimeError: before the first reset.
        """
        if self._battles is None:
            raise RuntimeError(f"smax/{self.scenario}: expected a reset before a picture.")
        battle, units = self._simulator.battle, self._battles[0].state
        positions, alive, types, health = (
            np.asarray(x)[env_index]
            for x in (units.unit_positions, units.unit_alive, units.unit_types, units.unit_health)
        )
        height = battle.map_height * _PIXELS
        canvas = Canvas(battle.map_width * _PIXELS, height)
        for i in np.flatnonzero(alive).tolist():
            kind = int(types[i])
            x, y = positions[i, 0] * _PIXELS, height - positions[i, 1] * _PIXELS
            radius = float(battle.unit_type_radiuses[kind]) * _PIXELS
            share = health[i] / float(battle.unit_type_health[kind])
            color = (70, 110, 220) if i < self.n_agents else (215, 70, 60)
            canvas.disc((x, y), radius, color)
            left, top = x - 8, y - radius - 5
            canvas.box((left, top, left + max(16 * share, 1), top + 2), fill=(60, 160, 75))
            canvas.text((x - 4, y - 6), battle.unit_type_shorthands[kind], fill=(255, 255, 255))
        return canvas.image()
