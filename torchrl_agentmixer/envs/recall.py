"""A memory task: all agents recall a cue after a delay."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.drawing import Canvas


class RecallEnv(TeamEnv):
    """A memory task: every agent must name the cue that it observed ``delay`` steps ago.

    The cue is sampled once per episode and observed at the first step only. After ``delay`` blank
    steps an observed flag is 1: the team reward is 1 if every agent's action is the cue, else 0,
    and the episode terminates. Earlier actions have no effect. The best return is 1 with memory
    and ``1 / n_cues`` without, because the last observation is always the same.

    An agent observes ``[cue, one-hot (zeros after the first step); flag]``; the state is ``[cue,
    one-hot; share of the episode that has passed]``.

    Keyword Args:
        n_agents (int): number of agents.
        n_cues (int): number of cues, and of actions per agent.
        delay (int): number of blank steps between cue and flag.
        num_envs, device, seed: as :class:`~torchrl_agentmixer.envs.TeamEnv`.

    Raises:
        ValueError: for less than one agent or two cues, or a negative delay.

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
        check_at_least("RecallEnv", 1, n_agents=n_agents)
        check_at_least("RecallEnv", 2, n_cues=n_cues)
        check_at_least("RecallEnv", 0, delay=delay)
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
        """Image of the cues, with the correct one in blue, and the step, ``[H, W, 3]``, uint8."""
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
