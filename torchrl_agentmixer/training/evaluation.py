"""Scores of a policy over whole episodes, and a look at one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

from torchrl_agentmixer.envs import with_memory

PolicyCallable = Callable[[TensorDictBase], TensorDictBase]


@dataclass(frozen=True)
class Evaluation:
    """The first episode of every environment in a batch.

    Args:
        returns: undiscounted team return of each episode, ``[num_envs]``.
        lengths: steps of each episode, ``[num_envs]``.
        wins: whether each episode was won, ``[num_envs]``, where the environment writes
            ``"battle_won"``.
    """

    returns: torch.Tensor
    lengths: torch.Tensor
    wins: torch.Tensor | None = None

    @property
    def score(self) -> float:
        """Total team reward over total steps."""
        return float(self.returns.sum() / self.lengths.sum())

    @property
    def episode_columns(self) -> dict[str, torch.Tensor]:
        """What is known of each episode, by name, each ``[num_envs]``."""
        columns = {"return": self.returns, "length": self.lengths}
        return columns if self.wins is None else {**columns, "won": self.wins.long()}

    def metrics(self, prefix: str) -> dict[str, float]:
        """Mean return, score, mean length and win rate, with ``prefix`` before each name."""
        metrics = {
            f"{prefix}_return": float(self.returns.mean()),
            f"{prefix}_score": self.score,
            f"{prefix}_length": float(self.lengths.float().mean()),
        }
        if self.wins is not None:
            metrics[f"{prefix}_win_rate"] = float(self.wins.float().mean())
        return metrics


def evaluate(
    policy: PolicyCallable,
    env: EnvBase,
    *,
    max_steps: int,
    seed: int = 0,
    deterministic: bool = True,
) -> Evaluation:
    """Run one episode in each environment of a batch.

    The global random generator is left as it was, so that evaluating more or less often does not
    change a training run.

    Args:
        policy (callable): acts on the environment's tensordict, such as
            :meth:`AgentMixerPolicy.decentralized`.
        env (EnvBase): a batch of environments of its own, ``[num_envs]``.

    Keyword Args:
        max_steps (int): steps after which an unfinished episode counts as it is.
        seed (int): of the environment and the generator; the same episodes every time.
        deterministic (bool): act by the mode, where the policy is a distribution; else sample it.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> policy = AgentMixerPolicy.from_env(env)
        >>> evaluate(policy.decentralized(), env, max_steps=1).lengths.tolist()
        [1, 1, 1, 1]
    """
    env = _with_memory(env, policy)
    with torch.random.fork_rng(), torch.no_grad():
        env.set_seed(seed)
        torch.manual_seed(seed)
        exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        with set_exploration_type(exploration):
            rollout = env.rollout(max_steps, policy, break_when_any_done=False)
    done = rollout["next", "done"].squeeze(-1)  # [num_envs, T]
    finished_before = done.cumsum(-1) - done.long()
    first = finished_before == 0
    reward = rollout["next", "reward"].squeeze(-1)
    won = rollout["next"].get("battle_won", None)  # [num_envs, T, 1]
    return Evaluation(
        returns=(reward * first).sum(-1),
        lengths=first.sum(-1),
        wins=None if won is None else (won.squeeze(-1) & first).any(-1),
    )


def _with_memory(env: EnvBase, policy: PolicyCallable) -> EnvBase:
    return with_memory(env, policy) if isinstance(policy, nn.Module) else env


def record_gif(
    policy: PolicyCallable,
    env: EnvBase,
    path: str | Path,
    *,
    max_steps: int,
    seed: int = 0,
    frames_per_second: int = 10,
) -> Path:
    """Write an animation of the first environment's first episode.

    Args:
        policy (callable): acts on the environment's tensordict.
        env (EnvBase): an environment whose ``render()`` returns an RGB image.
        path (str or Path): of the GIF.

    Keyword Args:
        max_steps (int): longest animation, in steps.
        seed (int): of the environment and the generator.
        frames_per_second (int): speed.

    Raises:
        ImportError: without Pillow, with the command that installs it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'record_gif needs Pillow: pip install "torchrl_agentmixer[plots]"'
        ) from error
    env = _with_memory(env, policy)
    images: list[np.ndarray] = []
    with torch.random.fork_rng(), torch.no_grad():
        env.set_seed(seed)
        torch.manual_seed(seed)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            tensordict = env.reset()
            images.append(env.render())
            for _ in range(max_steps):
                tensordict = env.step(policy(tensordict))
                images.append(env.render())
                if tensordict["next", "done"][0].any():
                    break
                tensordict = step_mdp(tensordict)
    pictures = [Image.fromarray(image) for image in images]
    path = Path(path)
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=int(1000 / frames_per_second),
        loop=0,
    )
    return path
