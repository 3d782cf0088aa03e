"""SMACv2, the StarCraft Multi-Agent Challenge with StarCraft II, as batched environments."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv

from torchrl_agentmixer._choices import check_at_least, check_known
from torchrl_agentmixer.envs.masks import check_actions, draw_valid_actions
from torchrl_agentmixer.envs.optional import require
from torchrl_agentmixer.envs.scenarios import RACES
from torchrl_agentmixer.envs.smacv2_game import SMACv2Game

# Options of the benchmark's configurations that differ from the defaults of its class.
_GAME_OPTIONS = {"obs_own_pos": True, "use_unit_ranges": True, "min_attack_range": 2}
# Options that this module sets under other names.
_OWN_OPTIONS = {"map_name", "capability_config", "seed", "continuing_episode"}


class SMACv2TeamEnv(TransformedEnv):
    """A batch of SMACv2 games, with one StarCraft II process per environment.

    The benchmark's ``{race}_{n_units}_vs_{n_enemies}`` scenarios (SMACv2:
    `arXiv 2212.07489 <https://arxiv.org/abs/2212.07489>`_) on TorchRL's ``SMACv2Env``, batched by
    its ``ParallelEnv``. Each environment writes, for the ``n = n_units`` units of the team,

    - ``("agents", "observation")`` ``[*B, n, o]`` and ``"state"`` ``[*B, s]``, float32;
    - ``("agents", "action_mask")`` ``[*B, n, K]``, the valid actions: 0 no-op, the only valid one
      of dead units, 1 stop, 2 to 5 move north, south, east and west, 6 and above attack that enemy
      (a medivac: heal that ally); and ``("agents", "alive")`` ``[*B, n]``;
    - ``"reward"`` ``[*B, 1]``, for damage, kills and victory: at most 20 in the first episode,
      unless enemies' shields recover; later episodes, with other teams, have the same scale;
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
        game = partial(SMACv2Game, race, **sizes, **_GAME_OPTIONS | kwargs)
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


def _check_game_options(options: dict[str, Any]) -> None:
    import smacv2.env

    known = set(inspect.signature(smacv2.env.StarCraft2Env).parameters) - _OWN_OPTIONS
    check_known("option of SMACv2", options, known)
