"""SMAX, JaxMARL's StarCraft-like battles, as batched environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Binary, Categorical, Unbounded

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import BatchedEnv, flag_spec
from torchrl_agentmixer.envs.drawing import Canvas
from torchrl_agentmixer.envs.masks import check_actions, draw_valid_actions
from torchrl_agentmixer.envs.optional import require
from torchrl_agentmixer.envs.simulation import check_names, check_shape
from torchrl_agentmixer.envs.smax_simulator import (
    as_array,
    cache_compiled_code,
    jax_device,
    simulator,
    to_tensor,
)

_PIXELS = 14  # per unit of length


class SmaxEnv(BatchedEnv):
    """A batch of SMAX battles against the built-in heuristic, simulated with JAX.

    SMAX (JaxMARL: `arXiv 2311.10090 <https://arxiv.org/abs/2311.10090>`_) has SMAC's units and
    battles, and SMACv2's random teams and starting positions, without StarCraft II; docs/smax.md
    lists the differences. Keys and shapes are those of
    :class:`~torchrl_agentmixer.envs.SMACv2TeamEnv`, except that

    - of ``("agents", "action")``, 0 to 3 move north, east, south and west, 4 stops and is the only
      valid action of dead units, 5 and above attack that enemy;
    - observations are relative to the sight range, and the state is in units of length;
    - ``"reward"`` is the share of the enemies' health that was destroyed, plus 1 for a victory.

    :meth:`rand_action`, which ``env.rollout(n)`` uses, samples valid actions; pass
    ``env.rand_action`` as a random policy.

    The first reset and the first step compile, once per scenario, ``num_envs`` and options.
    Compiled code is cached on disk in ``~/.cache/torchrl_agentmixer/jax``, or in
    ``JAX_COMPILATION_CACHE_DIR``. Initial states are sampled ``num_envs`` at a time, each used
    once.

    Args:
        scenario (str): ``"smacv2_5_units"`` and others of JaxMARL, such as ``"3m"``; or
            ``"{race}_{units}_vs_{enemies}"`` with ``"protoss"``, ``"terran"`` or ``"zerg"``.

    Keyword Args:
        num_envs (int): environments in the batch.
        max_steps (int): time limit of an episode, in steps of half a second.
        device (optional): device of simulation and tensordicts: ``"cpu"``, or ``"cuda"`` with a
            JAX installation that supports it.
        seed (int, optional): seed of the environment's random numbers.
        **kwargs: options of JaxMARL's ``SMAX`` and ``HeuristicEnemySMAX``, such as
            ``see_enemy_actions``, ``walls_cause_death`` or ``attack_mode``.

    Raises:
        ImportError: without JaxMARL, with the install command.
        ValueError: for an unknown scenario or option, a number less than 1, or an invalid action;
            with the environment, the agent and the valid actions.
        RuntimeError: for a device that JAX does not have.

    Examples:
        >>> env = SmaxEnv("smacv2_5_units", num_envs=64, seed=0)  # doctest: +SKIP
        >>> rollout = env.rollout(20)  # doctest: +SKIP
        >>> rollout["agents", "observation"].shape, rollout["state"].shape  # doctest: +SKIP
        (torch.Size([64, 20, 5, 127]), torch.Size([64, 20, 120]))
    """

    _flags = ("battle_won", "done", "terminated", "truncated")

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
        require("smax")
        check_at_least("SmaxEnv", 1, num_envs=num_envs, max_steps=max_steps)
        self._jax_device = jax_device(torch.device(device or "cpu"))
        super().__init__(num_envs, device)
        cache_compiled_code()
        self._simulator = simulator(scenario, self._jax_device, **kwargs)
        self.scenario = scenario
        self.max_steps = max_steps
        battle = self._simulator.battle
        n = self.n_agents = battle.num_agents
        self.group_map = {"agents": [f"agent_{i}" for i in range(n)]}
        self._battles: Any = None  # of all environments
        shape, n_actions, options = (num_envs, n), battle.num_ally_actions, {"device": self.device}
        leaves = {
            "observation": Unbounded((*shape, battle.obs_size), **options),
            "action_mask": Binary(shape=(*shape, n_actions), dtype=torch.bool, **options),
            "alive": flag_spec(*shape, **options),
        }
        self._set_specs(
            {"agents": leaves},
            {"agents": Categorical(n_actions, shape=shape, **options)},
            battle.state_size,
            battle_won=flag_spec(num_envs, 1, **options),
        )
        self.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        key = jax.device_put(jax.random.key(seed % 2**32), self._jax_device)
        self._key, self._start_key = jax.random.split(key)
        self._starts: Any = None  # initial states, the first `_used` of which were used
        self._used = 0

    def _reset_where(self, mask: torch.Tensor) -> None:
        count = int(mask.sum())
        if self._starts is None or self._used + count > self.batch_size.numel():
            self._start_key, key = jax.random.split(self._start_key)
            self._starts, self._used = self._simulator.start(key, self.batch_size.numel()), 0
        if self._battles is None:
            self._battles = self._starts
        jax_mask = self._to_jax(mask, torch.bool)
        self._battles = self._simulator.restart(self._battles, self._starts, jax_mask, self._used)
        self._used += count

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._battles is None:
            raise RuntimeError(f"smax/{self.scenario}: expected a reset before the first step.")
        states, seen, _ = self._battles
        action = tensordict["agents", "action"]
        check_actions(
            action,
            torch.from_dlpack(seen["action_mask"]).to(action.device),
            name=f"smax/{self.scenario}",
            step=lambda i: int(states.state.step[i]) + 1,
        )
        self._key, self._battles, outcome = self._simulator.step(
            self._key, self._battles, self._to_jax(action, torch.int32), self.max_steps
        )
        return self._output(self._to_torch(outcome))

    def _observations(self) -> dict[str, Any]:
        agents = self._to_torch(self._battles[1])
        return {"state": agents.pop("state"), "agents": agents}

    def _to_torch(self, arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Copies of arrays: JAX shares memory with torch, and must not see what users write."""
        jax.block_until_ready(arrays)
        return {k: torch.from_dlpack(x).to(self.device, copy=True) for k, x in arrays.items()}

    def _to_jax(self, tensor: torch.Tensor, dtype: torch.dtype) -> Any:
        """A copy of a tensor: JAX may read it later."""
        device = "cpu" if self._jax_device.platform == "cpu" else self.device
        tensor = tensor.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        return jax.dlpack.from_dlpack(tensor)

    def simulation_state(self) -> dict[str, Any]:
        """Battles and random keys; see ``simulation_state``."""
        return {"used": self._used, "arrays": [to_tensor(x) for x in self._simulated()[0]]}

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Restore a simulation state; a ValueError for another scenario or batch size."""
        arrays, structure = self._simulated()
        check_names(f"smax/{self.scenario}", range(len(state["arrays"])), range(len(arrays)))
        for i, (new, old) in enumerate(zip(state["arrays"], arrays, strict=True)):
            check_shape(f"smax/{self.scenario}", f"array {i}", new, to_tensor(old))
        with jax.default_device(self._jax_device):
            arrays = [as_array(x, old) for x, old in zip(state["arrays"], arrays, strict=True)]
        parts = jax.tree.unflatten(structure, arrays)
        self._battles, self._starts, self._key, self._start_key = parts
        self._used = state["used"]

    def _simulated(self) -> tuple[list[Any], Any]:
        if self._battles is None or self._starts is None:
            self.reset()
        parts = (self._battles, self._starts, self._key, self._start_key)
        return jax.tree.flatten(parts)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Write random valid actions; without a tensordict, random actions of any kind."""
        return super().rand_action() if tensordict is None else draw_valid_actions(tensordict)

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of one battle, ``[H, W, 3]``, uint8: the team in blue, the enemies in red.

        Raises:
            ImportError: without Pillow, with the install command.
            RuntimeError: before the first reset.
        """
        if self._battles is None:
            raise RuntimeError(f"smax/{self.scenario}: expected a reset before `render`.")
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
            canvas.shape((x, y), radius, color)
            left, top = x - 8, y - radius - 5
            canvas.box((left, top, left + max(16 * share, 1), top + 2), fill=(60, 160, 75))
            canvas.text((x - 4, y - 6), battle.unit_type_shorthands[kind], fill=(255, 255, 255))
        return canvas.image()
