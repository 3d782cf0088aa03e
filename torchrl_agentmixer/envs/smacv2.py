"""SMACv2, the StarCraft Multi-Agent Challenge on the real game, as one team."""

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
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import ParallelEnv, SerialEnv, SMACv2Env, TransformedEnv

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.envs.masks import check_legal, draw_legal_actions
from torchrl_agentmixer.envs.optional import require_smacv2

# Unit types and their chances; a team is never made of exceptions alone.
_TEAMS: dict[str, dict[str, list]] = {
    "protoss": {"unit_types": ["stalker", "zealot", "colossus"], "weights": [0.45, 0.45, 0.1]},
    "terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
# Where the benchmark's own configurations differ from the defaults of its class.
_GAME_OPTIONS = {"obs_own_pos": True, "use_unit_ranges": True, "min_attack_range": 2}
# Options that this module sets itself, under other names.
_OWN_OPTIONS = {"map_name", "capability_config", "seed", "continuing_episode"}
# Starts of an episode that may fail in a row.
_MAX_RESETS = 3


def capability_config(race: str, n_units: int, n_enemies: int) -> dict[str, Any]:
    """What the benchmark's configuration of a race draws anew for every episode.

    Args:
        race (str): ``"protoss"``, ``"terran"`` or ``"zerg"``.
        n_units (int): units of the team.
        n_enemies (int): units against it.

    Examples:
        >>> capability_config("zerg", 5, 6)["team_gen"]["weights"]
        [0.45, 0.1, 0.45]
    """
    starts = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
    return {
        "n_units": n_units,
        "n_enemies": n_enemies,
        "team_gen": {"dist_type": "weighted_teams", "observe": True, **_TEAMS[race]},
        "start_positions": starts,
    }


class SMACv2TeamEnv(TransformedEnv):
    """Games of SMACv2, one StarCraft II process each, as a batch of environments.

    The benchmark's ``{race}_{n_units}_vs_{n_enemies}`` scenarios (SMACv2:
    `arXiv 2212.07489 <https://arxiv.org/abs/2212.07489>`_) over TorchRL's ``SMACv2Env``, batched by
    its ``ParallelEnv``. Each environment writes, for the ``n = n_units`` units of the team,

    - ``("agents", "observation")`` ``[*B, n, o]`` and ``"state"`` ``[*B, s]``, float32;
    - ``("agents", "action_mask")`` ``[*B, n, K]``, the legal actions: 0 no-op, of the dead and only
      of them, 1 stop, 2 to 5 move north, south, east and west, 6 and above attack that enemy (or
      heal that ally, for a medivac); and ``("agents", "alive")`` ``[*B, n]``, who may do more than
      the no-op;
    - ``"reward"`` ``[*B, 1]``, for damage, kills and victory, at most 20 over an episode but for
      shields that recover;
    - ``"battle_won"`` ``[*B, 1]``, true at the last step of an episode that was won;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: a battle that is decided
      terminates; ``max_steps``, or a game that broke off and was started anew, truncates;

    and reads ``("agents", "action")`` ``[*B, n]``, integers. :meth:`rand_action`, and so
    ``env.rollout(n)``, draws legal actions; where a policy is asked for, hand over
    ``env.rand_action``.

    The game starts with the first reset, not before. A seed given by then fixes the game too; a
    later one fixes teams and starting positions, while the running game keeps its own dice.

    Args:
        race (str): ``"protoss"``, ``"terran"`` or ``"zerg"``.

    Keyword Args:
        n_units (int): units of the team.
        n_enemies (int, optional): units against it; as many by default.
        num_envs (int): games at once.
        max_steps (int): time limit of an episode, in steps.
        device (optional): where tensordicts live.
        seed (int, optional): of all games.
        parallel (bool): several games in several processes, which needs an
            ``if __name__ == "__main__"`` in scripts; else they wait for one another.
        **kwargs: options of ``smacv2.env.StarCraft2Env``, such as ``difficulty`` or ``conic_fov``.

    Raises:
        ImportError: without the package, with the command that installs it.
        ValueError: for an unknown race or option, a number under 1, or an illegal action; with
            the agent, the step and what would be legal.
        RuntimeError: when a game does not start, or fails for good; with scenario and step. Of a
            game in a process of its own, that process prints it, and TorchRL says that it died.

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
        require_smacv2()
        if race not in _TEAMS:
            raise ValueError(unknown_name("race", race, _TEAMS))
        n_enemies = n_units if n_enemies is None else n_enemies
        sizes = {"n_units": n_units, "n_enemies": n_enemies, "max_steps": max_steps}
        for name, value in {**sizes, "num_envs": num_envs}.items():
            if value < 1:
                raise ValueError(f"SMACv2TeamEnv: expected `{name}` >= 1, got {value}.")
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
        if mask is not None:  # already here: in a process of its own, an error would end it
            check_legal(
                tensordict["agents", "action"],
                mask,
                name=f"SMACv2 {self.scenario}",
                dead_action=0,
                step=lambda game: self.base_env.steps_taken()[game] + 1,
            )
        return super()._step(tensordict)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Write random legal actions by the tensordict's mask; without one, any actions."""
        if tensordict is None:
            return super().rand_action()
        return draw_legal_actions(tensordict)

    def render(self, env_index: int = 0, mode: str = "rgb_array") -> np.ndarray:
        """SMACv2's picture of one environment, ``[H, W, 3]``, uint8, drawn without a display.

        Raises:
            RuntimeError: where SMACv2 cannot draw; the games go on.
        """
        try:
            # Here, because a failure in a process of its own would end it.
            importlib.import_module("smacv2.env.starcraft2.render")
        except Exception as error:
            raise RuntimeError(
                f"SMACv2 cannot draw here (docs/smacv2.md): {type(error).__name__}: {error}"
            ) from error
        return self.base_env.render(mode=mode)[env_index]


class _Game(SMACv2Env):
    """One game, its tensordicts in a team's layout, without a batch dimension."""

    def __init__(
        self, race: str, *, n_units: int, n_enemies: int, max_steps: int, **options: Any
    ) -> None:
        super().__init__(
            f"10gen_{race}",
            capability_config(race, n_units, n_enemies),
            continuing_episode=True,  # all it does is to tell a time limit from a lost battle
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
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), device=self.device
        )

    def _make_observation_spec(self) -> Composite:
        n = self.n_agents
        options: dict[str, Any] = {"device": self.device}
        agents = Composite(
            observation=Unbounded((n, self.get_obs_size()), **options),
            action_mask=Binary(shape=(n, self.n_actions), dtype=torch.bool, **options),
            alive=Categorical(2, shape=(n,), dtype=torch.bool, **options),
            shape=(n,),
            **options,
        )
        state = Unbounded((self.get_state_size(),), **options)
        battle_won = Categorical(2, shape=(1,), dtype=torch.bool, **options)
        return Composite(agents=agents, state=state, battle_won=battle_won, **options)

    def _init_env(self) -> None:
        """Leave the game's start to the first reset: a second one would start it again."""

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        seed = seed % 2**32
        self._env.env._seed = seed  # read when the game starts
        generator = np.random.default_rng(seed)
        for distribution in self._env.env_key_to_distribution_map.values():
            _share_generator(distribution, generator)
        # SMACv2 also draws from the generators that Python and numpy share with everyone.
        self._random_state = random.Random(seed).getstate()
        self._numpy_state = np.random.RandomState(seed).get_state()

    @contextmanager
    def _playing(self, failure: str) -> Iterator[None]:
        """Lend Python and numpy this game's random states; say in an error what failed where."""
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
                # None: units were missing. A new game: what was returned describes the old one.
                if self._env.reset() is not None and self._env.force_restarts == restarts:
                    return self._output(terminated=False, truncated=False, battle_won=False)
            raise TimeoutError(f"no units on the map after {_MAX_RESETS} resets in a row")

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._steps += 1
        with self._playing(f"failed at step {self._steps}"):
            reward, over, info = self._env.step(tensordict["agents", "action"].tolist())
            broke_off = not info  # the game was lost and started anew: nothing is known of the step
            if broke_off:
                torchrl_logger.warning(
                    f"SMACv2 {self.scenario} broke off at step {self._steps}; "
                    "the episode is truncated and the game started anew."
                )
            truncated = broke_off or info.get("episode_limit", False)
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
            # Alive is who has more to do than the no-op.
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
    """Have a distribution of SMACv2, and those it is made of, draw from one generator."""
    if hasattr(distribution, "rng"):
        distribution.rng = generator
    for part in vars(distribution).values():
        if hasattr(part, "generate"):
            _share_generator(part, generator)


def _check_game_options(options: dict[str, Any]) -> None:
    import smacv2.env

    known = set(inspect.signature(smacv2.env.StarCraft2Env).parameters) - _OWN_OPTIONS
    for option in options:
        if option not in known:
            raise ValueError(unknown_name("option of SMACv2", option, known))
