"""Any cooperative VMAS scenario as one team: state, team reward and time limits at the root."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import VmasEnv

from torchrl_agentmixer.envs.drawing import Canvas, to_rgb
from torchrl_agentmixer.envs.optional import require_vmas
from torchrl_agentmixer.envs.simulation import (
    State,
    check_names,
    check_shape,
    numpy_random_state,
    plain_random_state,
    put,
    tensors_within,
)


class VmasTeamEnv(VmasEnv):
    """TorchRL's ``VmasEnv`` with what a team needs at the root of its tensordicts.

    - ``"state"`` ``[*B, s]``: the scenario's ``state()`` if it has that method, else all agents'
      observations, concatenated;
    - ``"reward"`` ``[*B, 1]``: the mean of the agents' rewards;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: ``max_steps`` truncates, where
      ``VmasEnv`` would terminate.

    Groups, observations and actions are ``VmasEnv``'s (VMAS:
    `arXiv 2207.03530 <https://arxiv.org/abs/2207.03530>`_). VMAS draws from one random state that
    all its environments share; this class keeps one for each environment, so that evaluating
    in one does not change another. (On CUDA, scenarios draw from torch's global generator.) Resets
    of single environments loop over them, in VMAS; those of a whole batch do not.

    Args:
        scenario (str or BaseScenario): a VMAS scenario.

    Keyword Args:
        num_envs (int): environments in the batch.
        max_steps (int): time limit of an episode, in steps.
        device (optional): where they live.
        seed (int, optional): of the environments' random state.
        **kwargs: options of ``VmasEnv`` and of the scenario.

    Raises:
        ImportError: without VMAS, with the command that installs it.
        ValueError: for a limit or a number of environments under 1.

    Examples:
        >>> env = VmasTeamEnv("balance", num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["state"].shape, rollout["next", "reward"].shape
        (torch.Size([4, 3, 48]), torch.Size([4, 3, 1]))
    """

    def __init__(
        self,
        scenario: Any,
        *,
        num_envs: int,
        max_steps: int = 100,
        device: torch.device | str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        require_vmas()
        for name, value in (("num_envs", num_envs), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"VmasTeamEnv: expected `{name}` >= 1, got {value}.")
        self.__dict__["time_limit"] = max_steps
        # A Gaussian policy leaves the bounds; the simulator then acts at the bound.
        kwargs = {"clamp_actions": True, **kwargs}
        device = torch.device(device or "cpu")
        super().__init__(scenario, num_envs=num_envs, device=device, **kwargs)
        self._steps = torch.zeros(num_envs, 1, dtype=torch.int64, device=self.device)
        self._last_reward = torch.zeros(num_envs, 1, device=self.device)
        self._random_state = list(self._env.vmas_random_state)
        # Scenarios make some of their tensors when they first step; a saved state has them all.
        self.step(self.reset().update(self.full_action_spec.zero()))
        self.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))

    @property
    def n_agents(self) -> int:
        """Agents of all groups."""
        return self._env.n_agents

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        self._reads_state = hasattr(self.scenario, "state")
        observations: Composite = self.full_observation_spec_unbatched  # type: ignore[has-type]
        for group in self.group_map:
            if "info" in observations[group].keys():  # noqa: SIM118
                del observations[group, "info"]
        sizes = [observations[group, "observation"].shape for group in self.group_map]
        size = (
            self.scenario.state().shape[-1]
            if self._reads_state
            else sum(shape.numel() for shape in sizes)
        )
        observations["state"] = Unbounded((size,), dtype=torch.float32, device=self.device)
        self.full_observation_spec_unbatched = observations
        self.full_reward_spec_unbatched = Composite(
            reward=Unbounded((1,), dtype=torch.float32, device=self.device), device=self.device
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.full_done_spec_unbatched = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), device=self.device
        )

    def _set_seed(self, seed: int | None) -> None:
        with self._own_random_state():
            # VMAS seeds Python and numpy too, and numpy takes 32 bits.
            super()._set_seed(None if seed is None else seed % 2**32)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        with self._own_random_state():
            result = super()._reset(tensordict, **kwargs)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones_like(self._steps, dtype=torch.bool)
        self._steps = torch.where(mask, 0, self._steps)
        self._last_reward = torch.where(mask, 0.0, self._last_reward)
        result["truncated"] = torch.zeros_like(result["done"])
        return self._add_state(result)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        with self._own_random_state():
            result = super()._step(tensordict)
        rewards = [result.get((group, "reward")) for group in self.group_map]
        self._last_reward = torch.cat(rewards, -2).mean(-2)
        self._steps = self._steps + 1
        truncated = (self._steps >= self.time_limit) & ~result["terminated"]
        for group in self.group_map:
            result.get(group).del_("reward")
        result.update(
            {
                "reward": self._last_reward,
                "truncated": truncated,
                "done": result["terminated"] | truncated,
            }
        )
        return self._add_state(result)

    def _add_state(self, result: TensorDictBase) -> TensorDictBase:
        for group in self.group_map:
            if "info" in result.get(group).keys():  # noqa: SIM118
                result.get(group).del_("info")
        if self._reads_state:
            state = self.scenario.state()
        else:
            observations = [result.get((group, "observation")) for group in self.group_map]
            state = torch.cat([x.flatten(1) for x in observations], -1)
        return result.set("state", state)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Lend this environment's random state to VMAS, which keeps one for all."""
        shared = self._env.vmas_random_state
        before = list(shared)
        shared[:] = self._random_state
        try:
            yield
        finally:
            self._random_state = list(shared)
            shared[:] = before

    def simulation_state(self) -> State:
        """World, scenario and random numbers, see ``simulation_state``."""
        torch_state, numpy_state, python_state = self._random_state
        return {
            "random": (torch_state.clone(), plain_random_state(numpy_state), python_state),
            "steps": self._steps.clone(),
            "last_reward": self._last_reward.clone(),
            "world": {
                path: None if (value := _held(holder, name)) is None else value.clone()
                for holder, name, path in self._simulated()
            },
        }

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for the state of another scenario or number of environments.
        """
        label = f"VmasTeamEnv {self.scenario_name}"
        places = list(self._simulated())
        check_names(label, state["world"], [path for *_, path in places])
        check_shape(label, "steps", state["steps"], self._steps)
        for holder, name, path in places:
            value = state["world"][path]
            put(holder, name, None if value is None else value.to(self.device, copy=True))
        self._steps = state["steps"].to(self.device, copy=True)
        self._last_reward = state["last_reward"].to(self.device, copy=True)
        torch_state, numpy_state, python_state = state["random"]
        self._random_state = [
            torch_state.cpu().clone(),
            numpy_random_state(numpy_state),
            python_state,
        ]

    def _simulated(self) -> Iterator[tuple[Any, Any, str]]:
        modules = ("vmas", type(self.scenario).__module__)
        return tensors_within(self._env, modules, known=(self._env.vmas_random_state,))

    def render(self, env_index: int = 0, size: int = 360, **kwargs: Any) -> np.ndarray:
        """A picture of one environment, without a display: ``[H, W, 3]``, uint8."""
        world = self._env.world
        half = max(world.x_semidim or 1.2, world.y_semidim or 1.2) * 1.05
        scale = size / (2 * half)
        canvas = Canvas(size, size + 20)
        if world.x_semidim and world.y_semidim:
            x, y = world.x_semidim * scale, world.y_semidim * scale
            middle = size / 2
            canvas.box((middle - x, middle - y, middle + x, middle + y), outline=(190, 190, 190))
        for entity in [*world.landmarks, *world.agents]:
            if not bool(entity.is_rendering[env_index]):
                continue
            x, y = entity.state.pos[env_index].tolist()
            color = to_rgb(entity.color, env_index)
            center = (size / 2 + x * scale, size / 2 - y * scale)
            angle = float(entity.state.rot[env_index].reshape(-1)[0])
            canvas.shape(center, _outline(entity.shape, scale, angle), color)
            if entity in world.agents:
                name = entity.name.rpartition("_")[-1]
                canvas.text((center[0] - 3, center[1] - 6), name, fill=(255, 255, 255))
        canvas.text(
            (4, size + 4),
            f"step {int(self._steps[env_index])}   "
            f"team reward {float(self._last_reward[env_index]):+.2f}",
        )
        return canvas.image()


def _held(holder: Any, name: Any) -> torch.Tensor | None:
    return holder[name] if isinstance(holder, dict | list | tuple) else vars(holder)[name]


def _outline(shape: Any, scale: float, angle: float) -> float | list[tuple[float, float]]:
    """Radius of a sphere, or corners of a box or line around its center, in pixels."""
    if hasattr(shape, "radius"):
        return max(2.0, shape.radius * scale)
    width, height = shape.length, getattr(shape, "width", 0.0)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [(x * width / 2, y * max(height, 0.02) / 2) for x, y in corners]
    cos, sin = np.cos(angle), np.sin(angle)
    return [((x * cos - y * sin) * scale, -(x * sin + y * cos) * scale) for x, y in points]
