"""Mixture of joint policies: parts, one or several groups, execution."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import kl_divergence
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer.distributions import GroupedMixture, IGCMixture
from torchrl_agentmixer.envs import make_env, with_memory
from torchrl_agentmixer.groups import agent_groups
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.policies import AgentMixerPolicy, actor_module, consistency_metrics

from .groups_env import STATE, GroupsEnv, scouts, scramble, two_discrete

WEIGHTS = "component_logits"


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes_and_keys(batch):
    policy, td = scouts(batch)
    policy.reset_out_keys()
    out = policy(td.clone())
    expected = {
        ("scouts", "logits"): (*batch, 2, 4),
        ("scouts", "perturbation"): (*batch, 2, 3, 4),
        ("scouts", "modified_share"): (*batch, 2, 1),
        ("scouts", "action"): (*batch, 2),
        WEIGHTS: (*batch, 3),
        "action_log_prob": batch,
    }
    for key, shape in expected.items():
        assert out.get(key).shape == shape, key
        assert key in policy.out_keys
    dist = policy.get_dist(out)
    assert type(dist) is IGCMixture
    torch.testing.assert_close(dist.log_prob(out["scouts", "action"]), out["action_log_prob"])


def test_is_built_from_its_parts():
    coefficients = {"temperature": 0.6, "strength": 0.7, "consistency": 0.4, "modified_share": 0.8}
    policy, td = scouts(**coefficients)
    (actor,) = policy.actors
    own = actor(td.clone())["scouts"]
    logits, mask = own["logits"], td["scouts", "action_mask"]
    noise, weights = policy.modifier.modify(td[STATE], [logits], [own["features"]])
    expected = IGCMixture(logits, noise, weights, mask, **coefficients)
    dist, action = policy.get_dist(td.clone()), expected.sample((10,))
    torch.testing.assert_close(dist.log_prob(action), expected.log_prob(action))


def test_does_not_change_what_is_deployed():
    """Executed actors read no state, Modifier or component weight; parameters are their own."""
    policy, td = scouts((64,))
    deployed = policy.decentralized()
    assert set(deployed.in_keys) == {("scouts", "observation"), ("scouts", "action_mask")}
    action = deployed(td.clone())["scouts", "action"]
    scramble(policy.modifier, seed=1)
    assert torch.equal(deployed(td.exclude("info"))["scouts", "action"], action)
    assert {id(p) for p in deployed.parameters()} == {id(p) for p in policy.actors[0].parameters()}
    plain, _ = scouts((64,), num_components=0)
    plain.actors[0].load_state_dict(policy.actors[0].state_dict())
    assert torch.equal(plain.decentralized()(td.clone())["scouts", "action"], action)


def test_coefficients():
    policy, td = scouts((200,), modified_share=0.9)
    product = policy.decentralized(deterministic=False).get_dist(td.clone())

    def joint():
        return policy.get_dist(td.clone())

    assert not torch.equal(joint().mode, product.mode)
    policy.set_coefficients(consistency=1.0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(policy(td.clone())["scouts", "action"], product.mode)
    policy.set_coefficients(consistency=0.0, modified_share=0.0)
    action = joint().sample()
    torch.testing.assert_close(joint().log_prob(action), product.log_prob(action))
    policy.set_coefficients(modified_share=1.0, strength=0.0)
    torch.testing.assert_close(joint().log_prob(action), product.log_prob(action))


def information(table):
    """Mutual information of the two axes of joint probabilities ``[rows, columns]``, in nats."""
    independent = table.sum(1, keepdim=True) * table.sum(0, keepdim=True)
    return (table * (table / independent).log()).nansum().item()


def test_default_correlates_a_one_state_game():
    """By default discrete actions have a mixture of 16 components."""
    env = make_env("matrix/climbing", num_envs=2)
    policy = scramble(AgentMixerPolicy.from_env(env))
    assert policy.modifier.num_components == 16
    dist = policy.get_dist(env.reset())
    joint = torch.tensor(list(itertools.product(range(3), repeat=2)))
    table = dist.log_prob(joint.unsqueeze(1).expand(-1, 2, -1)).exp()[:, 0].double()
    assert information(table.reshape(3, 3)) > 1e-3
    product = AgentMixerPolicy.from_env(env, modifier_kwargs={"num_components": 0})
    probs = scramble(product).get_dist(env.reset()).probs.double()
    assert information(torch.outer(*probs[0])) == pytest.approx(0.0, abs=1e-6)


def test_around_an_actor():
    env = make_env("grid/predator_prey", num_envs=4)
    (group,) = agent_groups(env)
    actor = actor_module(group)
    policy = AgentMixerPolicy.from_actor(actor, env, modifier_kwargs={"num_components": 2})
    assert policy.actors == [actor]
    policy.reset_out_keys()
    rollout = env.rollout(3, policy, break_when_any_done=False)
    assert rollout[WEIGHTS].shape == (4, 3, 2)
    assert rollout["agents", "perturbation"].shape[-2:] == (2, group.action_dim)


# -- several groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_spans_groups_of_discrete_actions(batch):
    """One set of component weights per team, and one log-probability."""
    policy, td = two_discrete(batch)
    out = policy.reset_out_keys()(td.clone())
    expected = {
        ("scouts", "perturbation"): (*batch, 2, 3, 4),
        ("ships", "perturbation"): (*batch, 1, 3, 3),
        ("scouts", "action"): (*batch, 2),
        ("ships", "action"): (*batch, 1),
        WEIGHTS: (*batch, 3),
        "action_log_prob": batch,
    }
    for key, shape in expected.items():
        assert out.get(key).shape == shape, key
    dist = policy.get_dist(out)
    assert type(dist) is GroupedMixture
    torch.testing.assert_close(dist.log_prob(out), out["action_log_prob"])


def test_groups_are_correlated_by_the_component():
    """Actions of scouts and ship have mutual information given the state."""
    policy, td = two_discrete((8,), strength=3.0)
    td["scouts", "action_mask"].fill_(True)
    dist = policy.get_dist(td)
    joint = torch.tensor(list(itertools.product(range(4), range(4), range(3))))
    joint = joint.unsqueeze(1).expand(-1, 8, -1)
    probs = dist.log_prob(joint[..., :2], joint[..., 2:]).exp().double().T
    torch.testing.assert_close(probs.sum(-1), torch.ones(8, dtype=torch.float64))
    between = [information(table) for table in probs.reshape(8, 16, 3)]
    assert max(between) > 1e-2
    policy.set_coefficients(strength=0.0)
    probs = policy.get_dist(td).log_prob(joint[..., :2], joint[..., 2:]).exp().double().T
    for table in probs.reshape(8, 16, 3):
        assert information(table) == pytest.approx(0.0, abs=1e-5)


def test_kl_and_modes_of_several_groups():
    policy, td = two_discrete((100,))
    joint = policy.get_dist(td.clone())
    product = policy.decentralized(deterministic=False).get_dist(td.clone())
    metrics = consistency_metrics(policy, td)
    torch.testing.assert_close(metrics["divergence"], kl_divergence(joint, product).mean())
    assert metrics["divergence"] > 0.01
    assert 0 < metrics["team_mode_agreement"] < 1
    policy.set_coefficients(consistency=1.0)
    assert consistency_metrics(policy, td)["team_mode_agreement"] == 1
    policy.set_coefficients(consistency=0.0, modified_share=0.0)
    metrics = consistency_metrics(policy, td)
    torch.testing.assert_close(metrics["divergence"], torch.tensor(0.0), rtol=0, atol=1e-5)


def test_several_groups_end_to_end():
    """Rollout, TorchRL's ClipPPOLoss from a ratio of 1, and decentralized modes."""
    env = GroupsEnv((8,), groups=("scouts", "ships"))
    policy = scramble(AgentMixerPolicy.from_env(env, state_key=STATE))
    assert policy.modifier.num_components == 16
    with torch.no_grad():
        data = env.rollout(5, policy, break_when_any_done=False)
    assert data["action_log_prob"].shape == (8, 5)
    critic = value_module(CentralCritic(6), in_key=STATE)
    GAE(gamma=0.9, lmbda=0.9, value_network=critic)(data)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.01)
    loss.set_keys(action=policy.action_keys)
    out = loss(data)
    torch.testing.assert_close(out["kl_approx"], torch.tensor(0.0), rtol=0, atol=1e-5)
    assert out["clip_fraction"] == 0
    torch.testing.assert_close(
        out["loss_objective"], -data["advantage"].mean(), rtol=1e-4, atol=1e-5
    )
    (out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]).backward()
    for part in (*policy.actors, policy.modifier, critic):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0

    executed = env.rollout(5, policy.decentralized(), break_when_any_done=False)
    allowed = executed["scouts", "action_mask"]
    lowest = torch.finfo(torch.float32).min
    modes = executed["scouts", "logits"].masked_fill(~allowed, lowest).argmax(-1)
    assert torch.equal(executed["scouts", "action"], modes)
    assert torch.equal(executed["ships", "action"], executed["ships", "logits"].argmax(-1))


@pytest.mark.parametrize("length", [1, 3, 6])
def test_groups_with_memory(length):
    """Sequences of stored memories give the log-probabilities of collection."""
    env = GroupsEnv((4,), groups=("scouts", "ships"))
    options = {"hidden": (16,), "memory_dim": 8}
    policy = AgentMixerPolicy.from_env(env, state_key=STATE, actor_kwargs=options)
    env = with_memory(env, scramble(policy))
    data = env.rollout(6, policy, break_when_any_done=False)
    assert data["next", "ships", "memory"].shape == (4, 6, 1, 8)
    chunks = data.reshape(-1, length)
    with set_recurrent_mode(True):
        log_prob = policy.get_dist(chunks.copy()).log_prob(chunks)
    torch.testing.assert_close(log_prob, chunks["action_log_prob"], rtol=1e-4, atol=1e-5)
