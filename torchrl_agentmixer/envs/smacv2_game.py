"""One game of SMACv2, which :class:`~torchrl_agentmixer.envs.SMACv2TeamEnv` batches."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl import torchrl_logger
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import SMACv2Env

from torchrl_agentmixer.envs.base import done_spec, flag_spec
from torchrl_agentmixer.envs.scenarios import capability_config

# Attempts to start an episode.
_MAX_RESETS = 3


class SMACv2Game(SMACv2Env):
    """One game, without a batch dimension, that writes the keys of ``SMACv2TeamEnv``."""

    def __init__(
        self, race: str, *, n_units: int, n_enemies: int, max_steps: int, **options: Any
    ) -> None:
        super().__init__(
            f"10gen_{race}",
            capability_config(race, n_units, n_enemies),
            continuing_episode=True,  # so that `info` marks time limits
            device="cpu",
            **options,
        )
        self.scenario = f"{race}_{n_units}_vs_{n_enemies}"
        package = importlib.import_module("smacv2.env.starcraft2.starcraft2")
        self._units_missing = package.CannotResetException
        self._env.env.episode_limit = max_steps
        self._reward_of_win = self._env.env.max_reward  # and of kills, without enemies' health
        self._steps = 0
        self._set_seed(int(np.random.default_rng().integers(2**31)))

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        self.group_map = {"agents": [f"agent_{i}" for i in range(env.n_agents)]}
        self.done_spec = done_spec(device=self.device)

    def _make_observation_spec(self) -> Composite:
        n = self.n_agents
        options: dict[str, Any] = {"device": self.device}
        agents = Composite(
            observation=Unbounded((n, self.get_obs_size()), **options),
            action_mask=Binary(shape=(n, self.n_actions), dtype=torch.bool, **options),
            alive=flag_spec(n, **options),
            shape=(n,),
            **options,
        )
        state = Unbounded((self.get_state_size(),), **options)
        return Composite(agents=agents, state=state, battle_won=flag_spec(1, **options), **options)

    def _init_env(self) -> None:
        """Do nothing: the first reset starts the game."""

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        seed = seed % 2**32
        self._env.env._seed = seed  # read when the game starts
        generator = np.random.default_rng(seed)
        for distribution in self._env.env_key_to_distribution_map.values():
            share_generator(distribution, generator)
        # SMACv2 also uses the global generators of Python and numpy.
        self._random_state = random.Random(seed).getstate()
        self._numpy_state = np.random.RandomState(seed).get_state()

    @contextmanager
    def _playing(self, failure: str) -> Iterator[None]:
        """Swap in this game's global random states, and add scenario and step to errors."""
        others = random.getstate(), np.random.get_state()
        random.setstate(self._random_state)
        np.random.set_state(self._numpy_state)
        try:
            yield
        except Exception as error:
            raise RuntimeError(
                f"SMACv2 {self.scenario} {failure}: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._random_state, self._numpy_state = random.getstate(), np.random.get_state()
            random.setstate(others[0])
            np.random.set_state(others[1])

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        self._steps = 0
        failure = "started no episode (StarCraft II and its SMAC maps are needed: docs/smacv2.md)"
        with self._playing(failure):
            for _ in range(_MAX_RESETS):
                if self._start_episode():
                    self._count_first_reset()
                    return self._output(terminated=False, truncated=False, battle_won=False)
            raise TimeoutError(f"no units on the map after {_MAX_RESETS} resets in a row")

    def _start_episode(self) -> bool:
        """Whether units of new teams are on the map. SMACv2's own reset would try without end."""
        restarts = self._env.force_restarts
        config: dict[str, Any] = {}
        for distribution in self._env.env_key_to_distribution_map.values():
            config |= distribution.generate()
        try:
            self._env.env.reset(config)
        except self._units_missing:
            return False
        return self._env.force_restarts == restarts  # else, the units are those of the old game

    def _count_first_reset(self) -> None:
        """Count the first reset as an episode.

        Until SMACv2 has counted one, each attempt to reset starts a new process of the game, and
        adds the enemies' health to the scale of rewards.
        """
        game = self._env.env
        if game._episode_count == 0:
            health = sum(enemy.health_max + enemy.shield_max for enemy in game.enemies.values())
            game.max_reward = self._reward_of_win + health
            game._episode_count = 1

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._steps += 1
        with self._playing(f"failed at step {self._steps}"):
            reward, over, info = self._env.step(tensordict["agents", "action"].tolist())
            crashed = not info  # the game crashed and was restarted; the step is unknown
            if crashed:
                torchrl_logger.warning(
                    f"SMACv2 {self.scenario} crashed at step {self._steps}; "
                    "the episode is truncated and the game restarted."
                )
            truncated = crashed or info.get("episode_limit", False)
            output = self._output(
                terminated=over and not truncated,
                truncated=truncated,
                battle_won=info.get("battle_won", False),
            )
        return output.set("reward", torch.tensor([reward], dtype=torch.float32))

    def steps_taken(self) -> int:
        """Steps of the current episode."""
        return self._steps

    def _output(self, *, terminated: bool, truncated: bool, battle_won: bool) -> TensorDict:
        mask = self._update_action_mask()  # [n, K]
        agents = TensorDict(
            # Units are alive that may do more than the no-op.
            {"observation": self.get_obs(), "action_mask": mask, "alive": ~mask[:, 0]},
            batch_size=[self.n_agents],
        )
        flags = {
            "battle_won": battle_won,
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated or truncated,
        }
        return TensorDict(
            {
                "agents": agents,
                "state": self.get_state(),
                **{name: torch.tensor([bool(flag)]) for name, flag in flags.items()},
            },
            batch_size=[],
            device=self.device,
        )

    def _to_tensor(self, value: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(value), dtype=torch.float32, device=self.device)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End the game's process."""
        super().close(raise_if_closed=raise_if_closed)
        self.is_closed = True


def share_generator(distribution: Any, generator: np.random.Generator) -> None:
    """Set the generator of a distribution of SMACv2 and of its parts."""
    if hasattr(distribution, "rng"):
        distribution.rng = generator
    for part in vars(distribution).values():
        if hasattr(part, "generate"):
            share_generator(part, generator)
