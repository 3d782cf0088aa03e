"""SMACv2, the StarCraft Multi-Agent Challenge with StarCraft II, as batched environments."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl import torchrl_logger
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import ParallelEnv, SerialEnv, SMACv2Env, TransformedEnv

from torchrl_agentmixer._choices import check_at_least, check_known
from torchrl_agentmixer.envs.base import done_spec, flag_spec
from torchrl_agentmixer.envs.masks import check_actions, draw_valid_actions
from torchrl_agentmixer.envs.optional import require
from torchrl_agentmixer.envs.scenarios import RACES, capability_config

# Options of the benchmark's configurations that differ from the defaults of its class.
_GAME_OPTIONS = {"obs_own_pos": True, "use_unit_ranges": True, "min_attack_range": 2}
# Options that this module sets under other names.
_OWN_OPTIONS = {"map_name", "capability_config", "seed", "continuing_episode"}
# Attempts to start an episode.
_MAX_RESETS = 3


class SMACv2TeamEnv(TransformedEnv):
    """A batch of SMACv2 games, with one StarCraft II process per environment.

    The benchmark's ``{race}_{n_units}_vs_{n_enemies}`` scenarios (SMACv2:
    `arXiv 2212.07489 <https://arxiv.org/abs/2212.07489>`_) on TorchRL's ``SMACv2Env``, batched by
    its ``ParallelEnv``. Each environment writes, for the ``n = n_units`` units of the team,

    - ``("agents", "observation")`` ``[*B, n, o]`` and ``"state"`` ``[*B, s]``, float32;
    - ``("agents", "action_mask")`` ``[*B, n, K]``, the valid actions: 0 no-op, the only valid one
      of dead units, 1 stop, 2 to 5 move north, south, east and west, 6 and above attack that enemy
      (a medivac: heal that ally); and ``("agents", "alive")`` ``[*B, n]``;
    - ``"reward"`` ``[*B, 1]``, for damage, kills and victory: at most 20 per episode, unless
      enemies' shields recover;
    - ``"battle_won"`` ``[*B, 1]``, true at the last step of an episode that is won;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: the end of a battle terminates;
      ``max_steps``, or a crash of the game, which is restarted, truncates;

    and reads ``("agents", "action")`` ``[*B, n]``, integers. :meth:`rand_action`, which
    ``env.rollout(n)`` uses, samples valid actions; pass ``env.rand_action`` as a random policy.

    The first reset starts the game. A seed set before it seeds the game too; a later seed sets
    teams and starting positions only.

    Args:
        race (str): ``"protoss"``, ``"terran"`` or ``"zerg"``.

    Keyword Args:
        n_units (int): units of the team.
        n_enemies (int, optional): units of the enemy; default: ``n_units``.
        num_envs (int): number of games.
        max_steps (int): time limit of an episode, in steps.
        device (optional): device of the tensordicts.
        seed (int, optional): seed of all games.
        parallel (bool): run each game in a process (scripts then need
            ``if __name__ == "__main__"``); otherwise one after the other.
        **kwargs: options of ``smacv2.env.StarCraft2Env``, such as ``difficulty`` or ``conic_fov``.

    Raises:
        ImportError: without the package, with the install command.
        ValueError: for an unknown race or option, a number less than 1, or an invalid action; with
            the agent, the step and the valid actions.
        RuntimeError: for a game that does not start or that fails; with scenario and step. With
            ``parallel``, the process prints this error, and TorchRL reports that it died.

    Examples:
        >>> env = SMACv2TeamEnv("protoss", num_envs=2, seed=0)  # doctest: +SKIP
        >>> rollout = env.rollout(20)  # doctest: +SKIP
        >>> rollout["agents", "observation"].shape, rollout["state"].shape  # doctest: +SKIP
        (torch.Size([2, 20, 5, 92]), torch.Size([2, 20, 130]))
        >>> env.close()  # doctest: +SKIP
    """

    def __init__(
        self,
        race: str,
        *,
        n_units: int = 5,
        n_enemies: int | None = None,
        num_envs: int = 1,
        max_steps: int = 200,
        device: torch.device | str | None = None,
        seed: int | None = None,
        parallel: bool = True,
        **kwargs: Any,
    ) -> None:
        require("smacv2")
        check_known("race", [race], RACES)
        n_enemies = n_units if n_enemies is None else n_enemies
        sizes = {"n_units": n_units, "n_enemies": n_enemies, "max_steps": max_steps}
        check_at_least("SMACv2TeamEnv", 1, **sizes, num_envs=num_envs)
        _check_game_options(kwargs)
        game = partial(_Game, race, **sizes, **_GAME_OPTIONS | kwargs)
        batch = ParallelEnv if parallel and num_envs > 1 else SerialEnv
        super().__init__(batch(num_envs, game, device=torch.device(device or "cpu")))
        self.scenario = f"{race}_{n_units}_vs_{n_enemies}"
        self.n_agents = n_units
        self.group_map = {"agents": [f"agent_{i}" for i in range(n_units)]}
        self.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get(("agents", "action_mask"), None)
        if mask is not None:  # checked here: an error in a worker process would end it
            check_actions(
                tensordict["agents", "action"],
                mask,
                name=f"SMACv2 {self.scenario}",
                step=lambda game: self.base_env.steps_taken()[game] + 1,
            )
        return super()._step(tensordict)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Write random valid actions; without a tensordict, random actions of any kind."""
        return super().rand_action() if tensordict is None else draw_valid_actions(tensordict)

    def render(self, env_index: int = 0, mode: str = "rgb_array") -> np.ndarray:
        """SMACv2's image of one environment, ``[H, W, 3]``, uint8, rendered without a display.

        Raises:
            RuntimeError: where SMACv2 cannot render; the games are not affected.
        """
        try:
            # Imported here: an error in a worker process would end it.
            importlib.import_module("smacv2.env.starcraft2.render")
        except Exception as error:
            raise RuntimeError(
                f"SMACv2 cannot render here (docs/smacv2.md): {type(error).__name__}: {error}"
            ) from error
        return self.base_env.render(mode=mode)[env_index]


class _Game(SMACv2Env):
    """One game, without a batch dimension, that writes the keys of :class:`SMACv2TeamEnv`."""

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
        self._env.env.episode_limit = max_steps
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
            _share_generator(distribution, generator)
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
                restarts = self._env.force_restarts
                # None: units are missing. After a restart, the result describes the old game.
                if self._env.reset() is not None and self._env.force_restarts == restarts:
                    return self._output(terminated=False, truncated=False, battle_won=False)
            raise TimeoutError(f"no units on the map after {_MAX_RESETS} resets in a row")

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


def _share_generator(distribution: Any, generator: np.random.Generator) -> None:
    """Set the generator of a distribution of SMACv2 and of its parts."""
    if hasattr(distribution, "rng"):
        distribution.rng = generator
    for part in vars(distribution).values():
        if hasattr(part, "generate"):
            _share_generator(part, generator)


def _check_game_options(options: dict[str, Any]) -> None:
    import smacv2.env

    known = set(inspect.signature(smacv2.env.StarCraft2Env).parameters) - _OWN_OPTIONS
    check_known("option of SMACv2", options, known)
