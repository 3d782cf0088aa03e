"""What a policy with memory needs of its environment."""

from __future__ import annotations

from torch import nn
from torchrl.envs import EnvBase, InitTracker, Transform, TransformedEnv
from torchrl.modules.utils import get_primers_from_module


def with_memory(env: EnvBase, policy: nn.Module) -> EnvBase:
    """The environment, carrying the memory of a recurrent policy from step to step.

    TorchRL's ``InitTracker`` and the policy's own primers: ``"is_init"`` ``[*B, 1]`` is true where
    an episode starts, and memories are zero there.

    Args:
        env (EnvBase): a batch of environments.
        policy (nn.Module): with or without memory; its modules' ``make_tensordict_primer`` say.

    Returns:
        EnvBase: ``env`` itself if the policy has no memory, or the environment carries it already.

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
    """The same, by what the policy's modules ask for, which a worker process can be sent."""
    if primers is None or "is_init" in env.observation_spec.keys():  # noqa: SIM118
        return env
    env = TransformedEnv(env, InitTracker(), auto_unwrap=False)
    env.append_transform(primers)
    return env
