"""Continuous predator-prey as a VMAS scenario: catching takes two predators at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import Color

from torchrl_agentmixer.envs.vmas import VmasTeamEnv

_PREY_RADIUS = 0.05
_PREDATOR_RADIUS = 0.07


class PredatorPreyScenario(BaseScenario):
    """Predators with a limited view catch fleeing prey, two or more at once.

    The arena is the square ``[-1, 1]^2``, a step is 0.1 s. Prey are scripted: one that has
    a predator within ``prey_view`` flees from the nearest, else it wanders. A prey with at least
    two predators within ``catch_radius`` is caught: the team earns ``capture_reward``, and the prey
    appears elsewhere (``respawn=True``) or is gone. Exactly one predator within that distance costs
    the team ``penalty``, at every step: a lone predator must wait for company. With
    ``respawn=False`` the episode terminates when no prey is left.

    Each predator observes its own position and velocity and, for every prey and for every other
    predator, the relative position and a flag that it is within ``view_radius``, or zeros:
    ``4 + 3 * (n_prey + n_predators - 1)`` entries. ``state()`` holds all positions and velocities
    of the predators, positions and headings of the prey, and which prey are alive. Entities do not
    collide.

    Keyword Args (of ``make_world``):
        n_predators (int): agents.
        n_prey (int): prey.
        capture_reward (float): team reward of a catch.
        penalty (float): team reward of a lone touch, for every prey and step; P, not positive.
        view_radius (float): how far predators see, in arena units.
        prey_view (float): how far prey see.
        catch_radius (float): how near a predator must be.
        predator_speed (float): largest speed, in arena units per second.
        prey_speed (float): likewise.
        respawn (bool): whether caught prey come back.

    Source: the task of the paper's appendix (`arXiv 2401.08728
    <https://arxiv.org/abs/2401.08728>`_), made continuous.
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        self.n_predators: int = kwargs.pop("n_predators", 3)
        self.n_prey: int = kwargs.pop("n_prey", 2)
        self.capture_reward: float = kwargs.pop("capture_reward", 10.0)
        self.penalty: float = kwargs.pop("penalty", 0.0)
        self.view_radius: float = kwargs.pop("view_radius", 1.0)
        self.prey_view: float = kwargs.pop("prey_view", 0.4)
        self.catch_radius: float = kwargs.pop("catch_radius", 0.2)
        self.predator_speed: float = kwargs.pop("predator_speed", 1.0)
        self.prey_speed: float = kwargs.pop("prey_speed", 0.6)
        self.respawn: bool = kwargs.pop("respawn", True)
        self._check(kwargs)
        world = World(batch_dim, device, dt=0.1, x_semidim=1.0, y_semidim=1.0)
        for i in range(self.n_predators):
            world.add_agent(
                Agent(
                    name=f"agent_{i}",
                    shape=Sphere(_PREDATOR_RADIUS),
                    color=Color.BLUE,
                    collide=False,
                    u_multiplier=5.0,
                    max_speed=self.predator_speed,
                )
            )
        self._prey = [
            Landmark(name=f"prey_{j}", shape=Sphere(_PREY_RADIUS), color=Color.RED, collide=False)
            for j in range(self.n_prey)
        ]
        for prey in self._prey:
            world.add_landmark(prey)
        shape = (batch_dim, self.n_prey)
        self.prey_pos = torch.zeros(*shape, 2, device=device)
        self.prey_heading = torch.zeros(shape, device=device)
        self.prey_alive = torch.ones(shape, dtype=torch.bool, device=device)
        self.team_reward = torch.zeros(batch_dim, device=device)
        return world

    def _check(self, left: dict[str, Any]) -> None:
        if left:
            raise ValueError(f"PredatorPreyScenario: got unknown options {sorted(left)}.")
        for name, low in (("n_predators", 2), ("n_prey", 1)):
            if getattr(self, name) < low:
                raise ValueError(
                    f"PredatorPreyScenario: expected `{name}` >= {low}, got {getattr(self, name)}."
                )
        for name in ("view_radius", "prey_view", "catch_radius", "predator_speed", "prey_speed"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"PredatorPreyScenario: expected `{name}` > 0, got {getattr(self, name)}."
                )
        if self.penalty > 0:
            raise ValueError(
                f"PredatorPreyScenario: expected `penalty` <= 0, a reward, got {self.penalty}."
            )

    def reset_world_at(self, env_index: int | None = None) -> None:
        index = slice(None) if env_index is None else env_index
        for agent in self.world.agents:
            agent.set_pos(self._random_positions(agent.state.pos[index]), batch_index=env_index)
        self.prey_pos[index] = self._random_positions(self.prey_pos[index])
        self.prey_heading[index] = math.tau * torch.rand_like(self.prey_heading[index])
        self.prey_alive[index] = True
        self.team_reward[index] = 0.0
        self._place_prey()

    def process_action(self, agent: Agent) -> None:
        """Nothing to do: actions are accelerations, clamped by VMAS."""

    def pre_step(self) -> None:
        """Prey move, on what they see before the predators do."""
        away = self.prey_pos[:, :, None] - self.predator_pos()[:, None]  # [N, prey, predators, 2]
        distance = away.norm(dim=-1)
        nearest = distance.min(-1)
        flee = away.gather(2, nearest.indices[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
        seen = nearest.values < self.prey_view
        wander = self.prey_heading + 0.5 * torch.randn_like(self.prey_heading)
        self.prey_heading = torch.where(seen, torch.atan2(flee[..., 1], flee[..., 0]), wander)
        direction = torch.stack([self.prey_heading.cos(), self.prey_heading.sin()], -1)
        step = self.prey_speed * self.world.dt * direction
        self.prey_pos = (self.prey_pos + step).clamp(-1.0, 1.0)

    def post_step(self) -> None:
        """Catches and lone touches, after everybody has moved."""
        distance = (self.prey_pos[:, :, None] - self.predator_pos()[:, None]).norm(dim=-1)
        near = (distance < self.catch_radius).sum(-1)  # [N, prey]
        caught = self.prey_alive & (near >= 2)
        lone = self.prey_alive & (near == 1)
        self.team_reward = (self.capture_reward * caught + self.penalty * lone).sum(-1)
        if self.respawn:
            fresh = self._random_positions(self.prey_pos)
            self.prey_pos = torch.where(caught[..., None], fresh, self.prey_pos)
        else:
            self.prey_alive = self.prey_alive & ~caught
        self._place_prey()

    def reward(self, agent: Agent) -> torch.Tensor:
        """The team's reward, the same for every agent, ``[N]``."""
        return self.team_reward

    def done(self) -> torch.Tensor:
        """Whether no prey is left, ``[N]``."""
        return ~self.prey_alive.any(-1)

    def observation(self, agent: Agent) -> torch.Tensor:
        """What one predator sees, ``[N, 4 + 3 * (n_prey + n_predators - 1)]``."""
        me = self.world.agents.index(agent)
        others = [i for i in range(self.n_predators) if i != me]
        targets = torch.cat([self.prey_pos, self.predator_pos()[:, others]], 1)
        relative = targets - agent.state.pos[:, None]
        visible = relative.norm(dim=-1, keepdim=True) < self.view_radius
        visible[:, : self.n_prey] &= self.prey_alive[..., None]
        seen = torch.cat([relative * visible, visible.float()], -1)
        return torch.cat([agent.state.pos, agent.state.vel, seen.flatten(1)], -1)

    def state(self) -> torch.Tensor:
        """Everything, ``[N, 4 * n_predators + 5 * n_prey]``."""
        velocity = torch.stack([agent.state.vel for agent in self.world.agents], 1)
        heading = torch.stack([self.prey_heading.cos(), self.prey_heading.sin()], -1)
        parts = [self.predator_pos(), velocity, self.prey_pos, heading, self.prey_alive.float()]
        return torch.cat([part.flatten(1) for part in parts], -1)

    def predator_pos(self) -> torch.Tensor:
        """Positions of the predators, ``[N, n_predators, 2]``."""
        return torch.stack([agent.state.pos for agent in self.world.agents], 1)

    @staticmethod
    def _random_positions(like: torch.Tensor) -> torch.Tensor:
        return 2 * torch.rand_like(like) - 1

    def _place_prey(self) -> None:
        for j, prey in enumerate(self._prey):
            prey.state.pos = self.prey_pos[:, j]
            prey.is_rendering[:] = self.prey_alive[:, j]


def make_predator_prey(
    num_envs: int,
    device: torch.device | str | None = None,
    seed: int | None = None,
    max_steps: int = 100,
    continuous_actions: bool = True,
    n_predators: int = 3,
    n_prey: int = 2,
    capture_reward: float = 10.0,
    penalty: float = 0.0,
    view_radius: float = 1.0,
    prey_view: float = 0.4,
    catch_radius: float = 0.2,
    predator_speed: float = 1.0,
    prey_speed: float = 0.6,
    respawn: bool = True,
) -> VmasTeamEnv:
    """:class:`PredatorPreyScenario` as a TorchRL environment; the arguments are explained there.

    Args:
        num_envs: environments in the batch.
        device: where they live.
        seed: of the environments' random state.
        max_steps: time limit of an episode, in steps.
        continuous_actions: accelerations ``[*B, n, 2]`` in [-1, 1], or five discrete actions.

    Examples:
        >>> env = make_predator_prey(num_envs=4, penalty=-1.0, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["state"].shape
        (torch.Size([4, 3, 3, 16]), torch.Size([4, 3, 22]))
    """
    return VmasTeamEnv(
        PredatorPreyScenario(),
        num_envs=num_envs,
        max_steps=max_steps,
        device=device,
        seed=seed,
        continuous_actions=continuous_actions,
        n_predators=n_predators,
        n_prey=n_prey,
        capture_reward=capture_reward,
        penalty=penalty,
        view_radius=view_radius,
        prey_view=prey_view,
        catch_radius=catch_radius,
        predator_speed=predator_speed,
        prey_speed=prey_speed,
        respawn=respawn,
    )
