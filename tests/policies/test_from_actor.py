"""AgentMixerPolicy on an existing actor."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MultiAgentMLP, ProbabilisticActor

from torchrl_agentmixer.distributions import IGCNormal
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.groups import agent_groups
from torchrl_agentmixer.policies import AgentMixerPolicy, actor_module

from .groups_env import STATE, GroupsEnv


def test_from_actor_around_a_torchrl_actor():
    env = make_env("grid/predator_prey", num_envs=4)
    (group,) = agent_groups(env)
    net = MultiAgentMLP(
        group.observation_dim,
        group.action_dim,
        group.n_agents,
        centralized=False,
        share_params=False,
        depth=1,
        num_cells=8,
    )
    keys = {"in_keys": [group.key("observation")], "out_keys": [group.key("logits")]}
    actor = ProbabilisticActor(
        TensorDictModule(net, **keys),
        in_keys=[group.key("logits")],
        out_keys=[group.key("action")],
        distribution_class=Categorical,
    )
    policy = AgentMixerPolicy.from_actor(actor, env)
    assert policy.modifier.features_dims == [0]
    owned = {id(p) for p in policy.parameters()}
    assert {id(p) for p in net.parameters()} <= owned
    rollout = env.rollout(3, policy, break_when_any_done=False)
    logits = net(rollout["agents", "observation"])
    torch.testing.assert_close(rollout["agents", "logits"], logits)
    deployed = policy.decentralized()(rollout.clone())
    assert torch.equal(deployed["agents", "action"], logits.argmax(-1))
    out = actor(rollout.clone())  # the actor itself is unchanged
    assert out["agents", "action"].shape == (4, 3, 2)


def test_from_actor_around_a_continuous_actor_of_several_modules():
    env = GroupsEnv(groups=("tanks",))
    (group,) = agent_groups(env)
    body = TensorDictModule(
        nn.Linear(group.observation_dim, 6),
        in_keys=[group.key("observation")],
        out_keys=[group.key("hidden")],
    )
    head = TensorDictModule(
        nn.Sequential(nn.Linear(6, 4), NormalParamExtractor()),
        in_keys=[group.key("hidden")],
        out_keys=[group.key("loc"), group.key("scale")],
    )
    actor = ProbabilisticActor(
        TensorDictSequential(body, head),
        in_keys={"loc": group.key("loc"), "scale": group.key("scale")},
        out_keys=[group.key("action")],
        distribution_class=IGCNormal,
    )
    policy = AgentMixerPolicy.from_actor(actor, env, state_key=STATE)
    td = policy(env.reset())
    torch.testing.assert_close(td["tanks", "loc"], head.module[0](td["tanks", "hidden"])[..., :2])
    assert torch.equal(
        policy.decentralized()(td)["tanks", "action"], td["tanks", "loc"].clamp(-2, 1)
    )


def test_from_actor_that_writes_something_else():
    env = make_env("matrix/climbing")
    net = TensorDictModule(
        nn.Linear(1, 3), in_keys=[("agents", "observation")], out_keys=[("agents", "q")]
    )
    with pytest.raises(ValueError, match=r"'logits'.*'q'.*missing"):
        AgentMixerPolicy.from_actor(net, env)


@pytest.mark.parametrize("groups", [("tanks",), ("tanks", "scouts")])
def test_from_actor_around_an_execution_policy_samples(groups):
    env = GroupsEnv(groups=groups)
    executed = AgentMixerPolicy.from_env(env, state_key=STATE).decentralized()
    policy = AgentMixerPolicy.from_actor(executed, env, state_key=STATE)
    td = env.reset()
    with set_exploration_type(ExplorationType.RANDOM):
        first, second = (policy(td.clone())["tanks", "action"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(
        policy.decentralized()(td)["tanks", "action"], td["tanks", "loc"].clamp(-2, 1)
    )


def test_from_actor_that_chooses_before_its_end():
    env = make_env("matrix/climbing")
    executed = AgentMixerPolicy.from_env(env).decentralized()
    after = TensorDictModule(nn.Identity(), in_keys=["state"], out_keys=["other"])
    with pytest.raises(ValueError, match=r"also writes \[\('agents', 'action'\)\], not at its end"):
        AgentMixerPolicy.from_actor(TensorDictSequential(executed, after), env)


def test_from_actor_without_an_actor():
    env = make_env("matrix/climbing")
    choice = AgentMixerPolicy.from_env(env).decentralized()[-1]
    with pytest.raises(ValueError, match="missing"):
        AgentMixerPolicy.from_actor(TensorDictSequential(choice), env)


def test_scales_of_an_existing_actor_stay_trainable():
    """Only ``from_env`` freezes scales: an existing actor is used as it is."""
    env = GroupsEnv(groups=("tanks",))
    actor = actor_module(*agent_groups(env))
    policy = AgentMixerPolicy.from_actor(actor, env, state_key=STATE)
    assert all(p.requires_grad for p in policy.parameters())
    assert policy.modifier.features_dims == [64]


def test_features_without_a_width():
    env = make_env("matrix/climbing")
    net = TensorDictModule(
        nn.Linear(1, 3),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "logits"), ("agents", "features")],
    )
    with pytest.raises(ValueError, match=r"'features'.*`features_dim`"):
        AgentMixerPolicy.from_actor(net, env)
