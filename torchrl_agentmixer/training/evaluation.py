"""Evaluation of a policy over whole episodes, and animations of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.training.randomness import preserved_random_state

PolicyCallable = Callable[[TensorDictBase], TensorDictBase]


@dataclass(frozen=True)
class Evaluation:
    """Results of one episode per environment of a batch.

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
        """Results of each episode by name, each ``[num_envs]``."""
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
    """Run one episode in each environment of a batch, until all have ended.

    The global generators of torch, numpy and Python are seeded, and restored afterwards:
    evaluation does not change training.

    Args:
        policy (callable): acts on the environment's tensordict, such as
            :meth:`AgentMixerPolicy.decentralized`.
        env (EnvBase): a batch of environments for evaluation only, ``[num_envs]``.

    Keyword Args:
        max_steps (int): time limit; an unfinished episode counts up to there.
        seed (int): seed of the environment and the generators; the same seed gives the same
            episodes.
        deterministic (bool): act by the mode of a stochastic policy, or sample it.

    Raises:
        ValueError: for an environment of another batch size than ``[num_envs]``.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> policy = AgentMixerPolicy.from_env(env)
        >>> evaluate(policy.decentralized(), env, max_steps=1).lengths.tolist()
        [1, 1, 1, 1]
    """
    check_batch_size(env=env)
    # `rollout(break_when_all_done=True)` does not reset ended environments, and so changes the
    # random numbers of the others; TorchRL's `Evaluator` counts the episodes that end first.
    env = _with_memory(env, policy)
    rewards = torch.zeros(*env.batch_size, max_steps, device=env.device)
    lengths = torch.zeros(env.batch_size, dtype=torch.int64, device=env.device)
    wins = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
    active, reports_wins = ~wins, False
    with _episode(env, seed, deterministic) as data:
        for step in range(max_steps):
            data = env.step(data.update(policy(data)))
            result = data["next"]
            rewards[..., step] = result["reward"].squeeze(-1) * active
            lengths += active
            if "battle_won" in result.keys():  # noqa: SIM118
                reports_wins = True
                wins |= result["battle_won"].squeeze(-1) & active
            active = active & ~result["done"].squeeze(-1)
            if not active.any():
                break
            data = env.maybe_reset(step_mdp(data))
    return Evaluation(rewards.sum(-1), lengths, wins if reports_wins else None)


@contextmanager
def _episode(env: EnvBase, seed: int, deterministic: bool) -> Iterator[TensorDictBase]:
    """First data of a seeded episode; the global generators are restored afterwards."""
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with preserved_random_state(seed), torch.no_grad(), set_exploration_type(exploration):
        env.set_seed(seed)
        torch.manual_seed(seed)  # `set_seed` may have drawn random numbers
        yield env.reset()


def _with_memory(env: EnvBase, policy: PolicyCallable) -> EnvBase:
    return with_memory(env, policy) if isinstance(policy, nn.Module) else env


def check_batch_size(**envs: EnvBase) -> None:
    """Raise a ``ValueError`` for an environment of another batch size than ``[num_envs]``.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> check_batch_size(env=make_env("matrix/climbing", num_envs=4))
    """
    for name, env in envs.items():
        if len(env.batch_size) != 1:
            raise ValueError(
                f"expected `{name}` to be a batch of environments [num_envs], got batch size "
                f"{list(env.batch_size)}: use `torchrl_agentmixer.envs.team_env({name})`."
            )


def require_pillow() -> None:
    """Raise an ImportError with the command that installs Pillow, if it is missing."""
    if find_spec("PIL") is None:
        raise ImportError('animations need Pillow: pip install "torchrl_agentmixer[plots]"')


def can_render(env: EnvBase) -> bool:
    """Whether an environment has a method ``render``.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> can_render(make_env("matrix/climbing"))
        True
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    # Batches of workers answer with one method per worker.
    return not isinstance(env, BatchedEnvBase) and callable(getattr(env, "render", None))


def check_videos(video_interval: int | None, env: EnvBase) -> None:
    """Raise a ``ValueError`` for ``video_interval`` and an environment without ``render``."""
    if video_interval is not None and not can_render(env):
        raise ValueError(
            f"expected an environment with `render` for `video_interval` {video_interval}, got "
            f"{type(env).__name__}. Leave `video_interval` out."
        )


def record_gif(
    policy: PolicyCallable,
    env: EnvBase,
    path: str | Path,
    *,
    max_steps: int,
    seed: int = 0,
    frames_per_second: int = 10,
) -> Path:
    """Write an animation of the first environment's episode as a GIF.

    Args:
        policy (callable): acts on the environment's tensordict.
        env (EnvBase): an environment whose ``render()`` returns an RGB image.
        path (str or Path): of the GIF.

    Keyword Args:
        max_steps (int): time limit of the episode.
        seed (int): seed of the environment and the generators, which are restored afterwards.
        frames_per_second (int): speed.

    Raises:
        ImportError: without Pillow, with the command that installs it.
        ValueError: for an environment of another batch size than ``[num_envs]``.
    """
    require_pillow()
    check_batch_size(env=env)
    from PIL import Image

    env = _with_memory(env, policy)
    with _episode(env, seed, deterministic=True) as data:
        images = [env.render()]
        for _ in range(max_steps):
            data = env.step(policy(data))
            images.append(env.render())
            if data["next", "done"][0].any():
                break
            data = step_mdp(data)
    first, *others = [Image.fromarray(image) for image in images]
    duration = int(1000 / frames_per_second)
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)
    return Path(path)
