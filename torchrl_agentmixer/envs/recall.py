"""A cue, a delay, and an action together: what cannot be done without memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas


class RecallEnv(TeamEnv):
    """All agents must name the cue that they were shown ``delay`` steps ago.

    The cue is drawn once for each episode and seen at its first step alone. After ``delay`` blank
    steps a flag says that it is time to act: the team gets 1 if every agent's action is the cue,
    else 0, and the episode terminates. Actions before count for nothing. With memory the best
    return is 1; without, ``1 / n_cues``, for the last observation is always the same.

    An agent observes ``[cue, one-hot (zeros after the first step); flag]``; the state is ``[cue,
    one-hot; share of the episode that has passed]``.

    Keyword Args:
        num_envs (int): environments in the batch.
        n_agents (int): agents, each of whom has to remember.
        n_cues (int): cues, and actions of each agent.
        delay (int): blank steps between cue and flag.
        device (optional): where the environments live.
        seed (int, optional): of the environment's generator.

    Raises:
        ValueError: for fewer than one agent, two cues, or a negative delay.

    Examples:
        >>> env = RecallEnv(num_envs=4, delay=3, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["next", "terminated"][0].squeeze(-1).tolist()
        [False, False, False, False, True]
    """

    def __init__(
        self,
        *,
        num_envs: int = 1,
        n_agents: int = 2,
        n_cues: int = 4,
        delay: int = 4,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        sizes = {"n_agents": (n_agents, 1), "n_cues": (n_cues, 2), "delay": (delay, 0)}
        for name, (size, least) in sizes.items():
            if size < least:
                raise ValueError(f"RecallEnv: expected `{name}` >= {least}, got {size}.")
        super().__init__(
            n_agents, n_cues, n_cues + 1, n_cues + 1, num_envs=num_envs, device=device, seed=seed
        )
        self.n_cues, self.delay = n_cues, delay
        self._cue = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._time = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def _reset_where(self, mask: torch.Tensor) -> None:
        cue = (self._rand(*self.batch_size) * self.n_cues).long()
        self._cue = torch.where(mask, cue, self._cue)
        self._time = torch.where(mask, 0, self._time)

    def _advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        due = self._time == self.delay + 1
        named = (actions == self._cue[:, None]).all(-1)
        self._time = self._time + 1
        return (due & named).float(), due, torch.zeros_like(due)

    def _observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        cue = torch.nn.functional.one_hot(self._cue, self.n_cues).float()
        time = self._time[:, None].float()
        seen = torch.cat([cue * (time == 0), (time == self.delay + 1).float()], -1)
        state = torch.cat([cue, time / (self.delay + 1)], -1)
        return seen[:, None].expand(-1, self.n_agents, -1).clone(), state

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """The cues, the right one marked, and the time: ``[H, W, 3]``, uint8."""
        cell = 40
        canvas = Canvas(max(self.n_cues * cell, 200), 2 * cell)
        cue, time = int(self._cue[env_index]), int(self._time[env_index])
        for k in range(self.n_cues):
            fill = (60, 110, 190) if k == cue else (230, 230, 225)
            canvas.box((k * cell + 3, 3, (k + 1) * cell - 3, cell - 3), fill=fill)
            canvas.text((k * cell + 16, 14), str(k))
        phase = "cue" if time == 0 else "act" if time == self.delay + 1 else "wait"
        canvas.text((4, cell + 8), f"step {time}   {phase}")
        return canvas.image()
