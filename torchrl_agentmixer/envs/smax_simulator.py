"""SMAX battles as compiled JAX functions, and conversion between JAX arrays and tensors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from torchrl_agentmixer.envs.smax_battles import make_battle


class Simulator:
    """A scenario's battles as JAX functions, compiled once per number of environments.

    ``battles`` ``[N, ...]`` is a tuple: JaxMARL's states, the team's observations with the keys of
    its tensordict, and the enemies' observations.
    """

    def __init__(self, battle: Any) -> None:
        self.battle = battle
        self.start = jax.jit(self._start, static_argnums=1)
        self.restart = jax.jit(self._restart)
        self.step = jax.jit(self._step)

    def _start(self, key: Any, num_envs: int) -> Any:
        def start_one(key: Any) -> Any:
            _, state = self.battle.reset(key)
            observations = self.battle.get_all_unit_obs(state)
            observations["world_state"] = self.battle.get_world_state(state)
            return state, *self._observe(observations, state)

        return _canonical(jax.vmap(start_one)(jax.random.split(key, num_envs)))

    def _restart(self, battles: Any, starts: Any, mask: Any, used: Any) -> Any:
        """Replace battles of ``mask`` ``[N]`` by ``starts``, beginning with the first unused."""
        rows = used + jnp.cumsum(mask) - 1

        def choose(old: Any, new: Any) -> Any:
            return jnp.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new[rows], old)

        return jax.tree.map(choose, battles, starts)

    def _step(self, key: Any, battles: Any, actions: Any, max_steps: Any) -> Any:
        """Step with actions ``[N, n]``: next key, battles, and reward and flags ``[N, 1]``."""
        keys = jax.random.split(key, len(actions) + 1)
        battles, outcome = jax.vmap(self._step_one, in_axes=(0, 0, 0, None))(
            keys[1:], battles, actions, max_steps
        )
        return keys[0], _canonical(battles), jax.tree.map(lambda x: x[:, None], outcome)

    def _step_one(self, key: Any, battle: Any, actions: Any, max_steps: Any) -> Any:
        # As HeuristicEnemySMAX.step_env, which would compute the enemies' observations twice.
        state, _, enemy_observations = battle
        game = self.battle._env
        key, enemy_key = jax.random.split(key)
        enemy_actions, memory = self.battle.get_enemy_actions(
            enemy_key, state.enemy_policy_state, enemy_observations
        )
        enemy_actions = jnp.stack([enemy_actions[enemy] for enemy in self.battle.enemy_agents])
        teams = [game._decode_discrete_actions(team) for team in (actions, enemy_actions)]
        observations, units, reward, _, _ = game.step_env_no_decode(
            key, state.state, jax.tree.map(lambda *xs: jnp.concatenate(xs), *teams)
        )
        state = state.replace(state=units, enemy_policy_state=memory)
        ours, theirs = (x.any() for x in jnp.split(units.unit_alive, [self.battle.num_allies]))
        terminated = ~ours | ~theirs
        truncated = (units.step >= max_steps) & ~terminated
        outcome = {
            "reward": reward[self.battle.agents[0]],  # the same for all agents
            "battle_won": ours & ~theirs,
            "done": terminated | truncated,
            "terminated": terminated,
            "truncated": truncated,
        }
        return (state, *self._observe(observations, state)), outcome

    def _observe(self, observations: Any, state: Any) -> Any:
        """The team's entries, and the enemies' observations."""

        def stack(entries: Any, agents: Any) -> Any:
            return jnp.stack([entries[agent] for agent in agents])

        agents, enemies = self.battle.agents, self.battle.enemy_agents
        team = {
            "observation": stack(observations, agents),
            "action_mask": stack(self.battle.get_avail_actions(state), agents) > 0,
            "alive": state.state.unit_alive[: len(agents)],
            "state": observations["world_state"],
        }
        return team, stack(observations, enemies)


@cache
def simulator(scenario: str, device: Any, **options: Any) -> Simulator:
    """A simulator, shared by all environments with the same options, so that it compiles once."""
    with jax.default_device(device):
        return Simulator(make_battle(scenario, options))


def _canonical(tree: Any) -> Any:
    """Remove JAX's weak types: a changed type would compile the step again."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def to_tensor(array: Any) -> torch.Tensor:
    """Copy an array, or the data of a random key, to a tensor."""
    return torch.from_numpy(np.array(jax.random.key_data(array) if _is_key(array) else array))


def as_array(tensor: torch.Tensor, like: Any) -> Any:
    """Inverse of :func:`to_tensor`, for an array of the dtype of ``like``."""
    array = jnp.array(tensor.numpy(force=True))
    return jax.random.wrap_key_data(array) if _is_key(like) else array.astype(like.dtype)


def jax_device(device: torch.device) -> Any:
    """The JAX device that corresponds to a torch device; a RuntimeError if there is none."""
    try:
        return jax.devices(device.type)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise RuntimeError(
            f"SmaxEnv: JAX has no device {str(device)!r}, only {jax.devices()}. For an NVIDIA GPU: "
            'pip install "jax[cuda12]"'
        ) from error


def cache_compiled_code() -> None:
    """Enable JAX's compilation cache on disk, unless the user configured it."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        folder = Path.home() / ".cache" / "torchrl_agentmixer" / "jax"
        config.update("jax_compilation_cache_dir", str(folder))
