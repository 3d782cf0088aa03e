"""Base class of the PPO algorithms."""

from __future__ import annotations

import pytest
import torch
from torchrl.modules import set_recurrent_mode

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import RecallEnv, make_env, with_memory


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


def test_groups_count_by_their_agents():
    """MAPPO's losses on two groups: means over all agents, and the shared critic's loss once."""
    env = make_env("vmas/simple_tag", reward="mean", num_envs=4, seed=0)
    torch.manual_seed(0)
    algorithm = make_algorithm("mappo", env, 10_000)
    batch = collect(env, algorithm.policy)
    with torch.no_grad():
        algorithm.advantage(batch)
    together = algorithm.loss(batch.reshape(-1))
    sizes = [len(agents) for agents in env.group_map.values()]
    assert sizes == [3, 1]
    parts = [loss(batch.reshape(-1)) for loss in algorithm.loss.losses]
    for key in ("loss_objective", "entropy"):
        expected = sum(n * part[key].mean() for n, part in zip(sizes, parts, strict=True)) / 4
        torch.testing.assert_close(together[key], expected)
    assert "loss_critic" not in parts[1]
    assert together["loss_critic"] > 0


def test_sequences_divide_a_batch():
    env = make_env("matrix/climbing", num_envs=2)
    algorithm = make_algorithm("mappo", env, 100, {"memory_dim": 4, "sequence_length": 3})
    with pytest.raises(ValueError, match="multiple of `sequence_length` 3, got 8"):
        algorithm.update(collect(env, algorithm.policy))


def test_gradients_reach_back_to_the_cue():
    """Backpropagation through time: an action's gradient reaches earlier observations."""
    env = RecallEnv(num_envs=5, delay=2, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 100, {"memory_dim": 4})
    data = collect(env, algorithm.policy, steps=4)
    seen = data["agents", "observation"].requires_grad_()
    with set_recurrent_mode(True):
        logits = algorithm.policy.actors[0](data.set(("agents", "observation"), seen))
    last = logits["agents", "logits"][:, -1, 0].square().sum()
    (grad,) = torch.autograd.grad(last, seen)
    assert (grad[:, 0, 0] != 0).any()  # the first step of this agent
    assert (grad[:, :, 1] == 0).all()  # the other agent
