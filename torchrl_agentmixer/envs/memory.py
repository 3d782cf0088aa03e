"""Environments for recurrent policies."""

from __future__ import annotations

from torch import nn
from torchrl.envs import EnvBase, InitTracker, Transform, TransformedEnv
from torchrl.modules.utils import get_primers_from_module


def with_memory(env: EnvBase, policy: nn.Module) -> EnvBase:
    """Add the memory of a recurrent policy to an environment.

    Appends TorchRL's ``InitTracker``, which writes ``"is_init"`` ``[*B, 1]``, true at the first
    step of an episode, and the policy's primers, which carry its memory from step to step. The
    memory is zero where an episode starts.

    Args:
        env (EnvBase): a batch of environments.
        policy (nn.Module): a policy, recurrent (with ``make_tensordict_primer``) or not.

    Returns:
        EnvBase: ``env`` itself if the policy is not recurrent or the environment has ``"is_init"``.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> policy = AgentMixerPolicy.from_env(env, actor_kwargs={"memory_dim": 8})
        >>> env = with_memory(env, policy)
        >>> env.rollout(3, policy)["agents", "memory"].shape
        torch.Size([4, 1, 2, 8])
    """
    return with_primers(env, get_primers_from_module(policy, warn=False))


def with_primers(env: EnvBase, primers: Transform | None) -> EnvBase:
    """As :func:`with_memory`, from the policy's primers, which can be sent to a worker process."""
    if primers is None or "is_init" in env.observation_spec.keys():  # noqa: SIM118
        return env
    env = TransformedEnv(env, InitTracker(), auto_unwrap=False)
    env.append_transform(primers)
    return env
