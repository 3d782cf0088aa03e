"""Continuous predator-prey as a VMAS scenario: a capture takes two predators."""

from __future__ import annotations

import math
from typing import Any

import torch
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import Color

from torchrl_agentmixer._choices import check_at_least, check_known, check_values

_PREY_RADIUS = 0.05
_PREDATOR_RADIUS = 0.07


class PredatorPreyScenario(BaseScenario):
    """Predators with a limited view capture fleeing prey; a capture takes two predators.

    The arena is the square ``[-1, 1]^2``, a step is 0.1 s. Prey are scripted: with a predator
    within ``prey_view``, they flee from the nearest, otherwise they wander. A prey with at least
    two predators within ``catch_radius`` is captured: the team earns ``capture_reward``, and the
    prey appears at a random position (``respawn=True``) or is removed. Exactly one predator within
    that distance costs the team ``penalty`` at every step. With ``respawn=False`` the episode
    terminates when no prey is left.

    Each predator observes its position and velocity and, for every prey and every other predator,
    the relative position and a 1 if it is within ``view_radius``, otherwise zeros:
    ``4 + 3 * (n_prey + n_predators - 1)`` entries. ``state()`` contains all positions and
    velocities of predators, positions and headings of prey, and which prey are alive. Entities do
    not collide.

    Keyword Args (options of :func:`make_env` and of ``make_world``):
        n_predators (int): number of agents.
        n_prey (int): number of prey.
        capture_reward (float): team reward of a capture.
        penalty (float): team reward per step and prey with exactly one predator near; P, <= 0.
        view_radius (float): view of predators, in arena units.
        prey_view (float): view of prey, in arena units.
        catch_radius (float): distance within which predators capture, in arena units.
        predator_speed (float): maximum speed, in arena units per second.
        prey_speed (float): speed of prey, in arena units per second.
        respawn (bool): whether captured prey reappear.

    Source: the task of the paper's appendix (`arXiv 2401.08728
    <https://arxiv.org/abs/2401.08728>`_), made continuous.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=4, penalty=-1.0, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["state"].shape
        (torch.Size([4, 3, 3, 16]), torch.Size([4, 3, 22]))
    """

    n_predators: int = 3
    n_prey: int = 2
    capture_reward: float = 10.0
    penalty: float = 0.0
    view_radius: float = 1.0
    prey_view: float = 0.4
    catch_radius: float = 0.2
    predator_speed: float = 1.0
    prey_speed: float = 0.6
    respawn: bool = True

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        self._set_options(kwargs)
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

    def _set_options(self, options: dict[str, Any]) -> None:
        known = PredatorPreyScenario.__annotations__
        check_known("option of vmas/predator_prey", options, known)
        for name, value in options.items():
            setattr(self, name, value)
        check_at_least("vmas/predator_prey", 2, n_predators=self.n_predators)
        check_at_least("vmas/predator_prey", 1, n_prey=self.n_prey)
        positive = ("view_radius", "prey_view", "catch_radius", "predator_speed", "prey_speed")
        check_values(
            "vmas/predator_prey",
            **{key: (getattr(self, key), getattr(self, key) > 0, "> 0") for key in positive},
            penalty=(self.penalty, self.penalty <= 0, "<= 0 (a reward)"),
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
        """Do nothing: actions are accelerations, clamped by VMAS."""

    def pre_step(self) -> None:
        """Move the prey, before the predators move."""
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
        """Compute captures and penalties, after all entities have moved."""
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
        """Team reward, the same for every agent, ``[N]``."""
        return self.team_reward

    def done(self) -> torch.Tensor:
        """Whether no prey is left, ``[N]``."""
        return ~self.prey_alive.any(-1)

    def observation(self, agent: Agent) -> torch.Tensor:
        """Observation of one predator, ``[N, 4 + 3 * (n_prey + n_predators - 1)]``."""
        me = self.world.agents.index(agent)
        others = [i for i in range(self.n_predators) if i != me]
        targets = torch.cat([self.prey_pos, self.predator_pos()[:, others]], 1)
        relative = targets - agent.state.pos[:, None]
        visible = relative.norm(dim=-1, keepdim=True) < self.view_radius
        visible[:, : self.n_prey] &= self.prey_alive[..., None]
        seen = torch.cat([relative * visible, visible.float()], -1)
        return torch.cat([agent.state.pos, agent.state.vel, seen.flatten(1)], -1)

    def state(self) -> torch.Tensor:
        """Full state, ``[N, 4 * n_predators + 5 * n_prey]``."""
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
