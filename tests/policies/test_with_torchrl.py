"""TorchRL's PPO loss, unmodified, and torch.compile on the joint policy (Eq. 13)."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.groups import state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.policies import AgentMixerPolicy, mode_policy

from .groups_env import STATE, GroupsEnv, both_kinds, two_discrete


def collect(env, policy, critic):
    """A rollout with advantages."""
    with torch.no_grad():  # as in TorchRL's collectors
        rollout = env.rollout(5, policy, break_when_any_done=False)
    return GAE(gamma=0.9, lmbda=0.9, value_network=critic)(rollout)


@pytest.mark.parametrize("num_components", [0, 16])
@pytest.mark.parametrize("name", ["matrix/climbing", "grid/predator_prey"])
def test_clip_ppo_loss_on_one_group(name, num_components):
    env = make_env(name, num_envs=8)
    policy = AgentMixerPolicy.from_env(env, modifier_kwargs={"num_components": num_components})
    critic = value_module(CentralCritic(state_dim(env)))
    data = collect(env, policy, critic)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.01)
    loss.set_keys(action=policy.action_keys)
    out = loss(data)
    torch.testing.assert_close(out["kl_approx"], torch.tensor(0.0), rtol=0, atol=1e-5)
    assert out["clip_fraction"] == 0
    total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
    assert total.shape == ()
    assert total.isfinite()
    total.backward()
    for part in (policy.actors[0], policy.modifier, critic):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0
    # The team has one ratio, which is 1: the objective is the mean of -A over the batch.
    expected = -data["advantage"].mean()
    torch.testing.assert_close(out["loss_objective"], expected, rtol=1e-4, atol=1e-5)


def test_clip_ppo_loss_on_groups_of_both_kinds():
    env = GroupsEnv()
    policy = AgentMixerPolicy.from_env(env, state_key=STATE)
    critic = value_module(CentralCritic(6), in_key=STATE)
    data = collect(env, policy, critic)
    loss = ClipPPOLoss(policy, critic)
    loss.set_keys(action=[("scouts", "action"), ("tanks", "action")])
    out = loss(data)
    torch.testing.assert_close(out["kl_approx"], torch.tensor(0.0), rtol=0, atol=1e-4)
    (out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]).backward()
    for part in (*policy.actors, policy.modifier, critic):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0


@pytest.mark.slow
@pytest.mark.parametrize("build", [both_kinds, two_discrete])
def test_compiled_policy(build):
    torch.compiler.reset()
    policy, td = build()
    forward = torch.compile(lambda td: policy(td), fullgraph=True, backend="aot_eager")
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        eager, out = policy(td.clone()), forward(td.clone())
        policy.set_coefficients(consistency=1.0)
        consistent = forward(td.clone())  # the compiled graph reads the new value
    for key in (*policy.action_keys, "action_log_prob"):
        torch.testing.assert_close(out.get(key), eager.get(key))
    deployed = mode_policy(policy.groups, policy.actors)(td.clone())
    if ("tanks", "action") in policy.action_keys:  # the mode policy clamps, as the environment does
        consistent["tanks", "action"] = consistent["tanks", "action"].clamp(-2.0, 1.0)
    for key in policy.action_keys:
        assert torch.equal(consistent[key], deployed[key])
    torch.compiler.reset()
