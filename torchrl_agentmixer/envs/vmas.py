"""Cooperative VMAS scenarios: team reward, state and time limits at the root of tensordicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import VmasEnv

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import done_spec
from torchrl_agentmixer.envs.drawing import Canvas, to_rgb
from torchrl_agentmixer.envs.optional import require
from torchrl_agentmixer.envs.simulation import (
    State,
    check_names,
    check_shape,
    numpy_random_state,
    plain_random_state,
    tensors_within,
)
from torchrl_agentmixer.envs.team_reward import TeamReward, team_reward


class VmasTeamEnv(VmasEnv):
    """TorchRL's ``VmasEnv`` with a team reward, a state and time limits.

    - ``"state"`` ``[*B, s]``: the scenario's ``state()`` if it has that method, else all agents'
      observations, concatenated;
    - ``"reward"`` ``[*B, 1]``: by default the mean of the agents' rewards;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: ``max_steps`` truncates; in
      ``VmasEnv`` it terminates.

    Groups, observations and actions are those of ``VmasEnv`` (VMAS:
    `arXiv 2207.03530 <https://arxiv.org/abs/2207.03530>`_). All VMAS environments share one random
    state; this class keeps one per environment, so that evaluation in one does not change another.
    (On CUDA, scenarios use torch's global generator.) Partial resets loop over environments in
    VMAS; resets of the whole batch do not.

    Args:
        scenario (str or BaseScenario): a VMAS scenario.

    Keyword Args:
        num_envs (int): environments in the batch.
        max_steps (int): time limit of an episode, in steps.
        device (optional): device of the simulation.
        seed (int, optional): seed of the environments' random state.
        reward ("sum", "mean" or callable, optional): as in
            :func:`~torchrl_agentmixer.envs.team_env`. Scenarios with several groups need it: in
            most of them, such as ``simple_tag``, the groups are opponents.
        **kwargs: options of ``VmasEnv`` and of the scenario.

    Raises:
        ImportError: without VMAS, with the install command.
        ValueError: if ``num_envs`` or ``max_steps`` is less than 1, or for a scenario with several
            groups without ``reward``.

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
        reward: TeamReward | None = None,
        **kwargs: Any,
    ) -> None:
        require("vmas")
        check_at_least("VmasTeamEnv", 1, num_envs=num_envs, max_steps=max_steps)
        self.__dict__["time_limit"] = max_steps
        # Samples of a Gaussian policy may exceed the bounds; the simulator clamps them.
        kwargs = {"clamp_actions": True, **kwargs}
        device = torch.device(device or "cpu")
        super().__init__(scenario, num_envs=num_envs, device=device, **kwargs)
        owner = f"VmasTeamEnv {self.scenario_name}"
        self._team_reward = team_reward(owner, list(self.group_map), reward)
        self._steps = torch.zeros(num_envs, 1, dtype=torch.int64, device=self.device)
        self._last_reward = torch.zeros(num_envs, 1, device=self.device)
        self._random_state = list(self._env.vmas_random_state)
        # Scenarios create some tensors in their first step; simulation states contain them all.
        self.step(self.reset().update(self.full_action_spec.zero()))
        self.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))

    @property
    def n_agents(self) -> int:
        """Number of agents in all groups."""
        return self._env.n_agents

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        self._has_state = hasattr(self.scenario, "state")
        observations: Composite = self.full_observation_spec_unbatched  # type: ignore[has-type]
        size = self.scenario.state().shape[-1] if self._has_state else 0
        for group in self.group_map:
            if "info" in observations[group].keys():  # noqa: SIM118
                del observations[group, "info"]
            if not self._has_state:
                size += observations[group, "observation"].shape.numel()
        observations["state"] = Unbounded((size,), dtype=torch.float32, device=self.device)
        self.full_observation_spec_unbatched = observations
        self.full_reward_spec_unbatched = Composite(
            reward=Unbounded((1,), dtype=torch.float32, device=self.device), device=self.device
        )
        self.full_done_spec_unbatched = done_spec(device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        with self._own_random_state():
            # VMAS also seeds Python and numpy, whose seeds have 32 bits.
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
        rewards = {group: result.get((group, "reward")) for group in self.group_map}
        self._last_reward = self._team_reward(rewards)
        self._steps = self._steps + 1
        truncated = (self._steps >= self.time_limit) & ~result["terminated"]
        for group in self.group_map:
            result.get(group).del_("reward")
        done = result["terminated"] | truncated
        result.update({"reward": self._last_reward, "truncated": truncated, "done": done})
        return self._add_state(result)

    def _add_state(self, result: TensorDictBase) -> TensorDictBase:
        for group in self.group_map:
            if "info" in result.get(group).keys():  # noqa: SIM118
                result.get(group).del_("info")
        if self._has_state:
            state = self.scenario.state()
        else:
            observations = [result.get((group, "observation")) for group in self.group_map]
            state = torch.cat([x.flatten(1) for x in observations], -1)
        return result.set("state", state)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Swap this environment's random state into VMAS, which has one for all environments."""
        shared = self._env.vmas_random_state
        before = list(shared)
        shared[:] = self._random_state
        try:
            yield
        finally:
            self._random_state = list(shared)
            shared[:] = before

    def simulation_state(self) -> State:
        """World, scenario and random states; see ``simulation_state``."""
        torch_state, numpy_state, python_state = self._random_state
        return {
            "random": (torch_state.clone(), plain_random_state(numpy_state), python_state),
            "steps": self._steps.clone(),
            "last_reward": self._last_reward.clone(),
            "world": {
                path: None if container[name] is None else container[name].clone()
                for container, name, path in self._simulated()
            },
        }

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Restore a simulation state; a ValueError for another scenario or batch size."""
        label = f"VmasTeamEnv {self.scenario_name}"
        places = list(self._simulated())
        check_names(label, state["world"], [path for *_, path in places])
        check_shape(label, "steps", state["steps"], self._steps)
        for container, name, path in places:
            value = state["world"][path]
            container[name] = None if value is None else value.to(self.device, copy=True)
        self._steps = state["steps"].to(self.device, copy=True)
        self._last_reward = state["last_reward"].to(self.device, copy=True)
        torch_state, numpy_state, python_state = state["random"]
        own = (torch_state.cpu().clone(), numpy_random_state(numpy_state), python_state)
        self._random_state = list(own)

    def _simulated(self) -> Iterator[tuple[Any, Any, str]]:
        modules = ("vmas", type(self.scenario).__module__)
        return tensors_within(self._env, modules, known=(self._env.vmas_random_state,))

    def render(self, env_index: int = 0, size: int = 360, **kwargs: Any) -> np.ndarray:
        """Image of one environment, ``[H, W, 3]``, uint8, rendered without a display."""
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
        canvas.caption(size, self._steps[env_index], self._last_reward[env_index])
        return canvas.image()


def _outline(shape: Any, scale: float, angle: float) -> float | list[tuple[float, float]]:
    """Radius of a sphere, or corners of a box or line around its center, in pixels."""
    if hasattr(shape, "radius"):
        return max(2.0, shape.radius * scale)
    width, height = shape.length, getattr(shape, "width", 0.0)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [(x * width / 2, y * max(height, 0.02) / 2) for x, y in corners]
    cos, sin = np.cos(angle), np.sin(angle)
    return [((x * cos - y * sin) * scale, -(x * sin + y * cos) * scale) for x, y in points]
