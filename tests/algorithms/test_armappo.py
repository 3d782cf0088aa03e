"""ARMAPPO: the autoregressive joint policy against enumeration."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env
from torchrl_agentmixer.groups import AgentGroup, agent_groups
from torchrl_agentmixer.policies import AutoregressivePolicy, Greedy
from torchrl_agentmixer.policies.product import actor_module

AGENTS = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=3, discrete=True)
MASKED = AgentGroup(
    "agents", n_agents=3, observation_dim=4, action_dim=3, discrete=True, masked=True
)
MOVERS = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=False)
MASK = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])


def make_policy(group, before=(), **kwargs):
    """Scale parameters, so that the conditionals differ."""
    torch.manual_seed(0)
    policy = AutoregressivePolicy.build(group, before, input_norm=False, **kwargs)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if ".head." in key:
                parameter.normal_(std=0.3)
    return policy


def observed(group, *batch):
    agents = {"observation": torch.randn(*batch, group.n_agents, group.observation_dim)}
    if group.masked:
        agents["action_mask"] = MASK.expand(*batch, -1, -1)
    return TensorDict({group.name: agents}, batch)


def every_joint_action(group):
    """One observation, with each joint action once: ``[K^n]``."""
    actions = torch.tensor(list(product(range(group.action_dim), repeat=group.n_agents)))
    data = observed(group, 1).expand(len(actions)).clone()
    return data.set((group.name, "action"), actions)


def conditional_by_hand(policy, data, agent):
    """Parameters of one agent's conditional, from an input built entry by entry."""
    group = policy.group
    action = data[group.name, "action"]
    entries = [data[group.name, "observation"][:, agent]]
    for other in range(group.n_agents):
        if other >= agent:
            entries.append(torch.zeros(len(data), group.action_dim))
        elif group.discrete:
            entries.append(torch.eye(group.action_dim)[action[:, other]])
        else:
            entries.append(action[:, other])
    inputs = torch.cat(entries, -1)[:, None].expand(-1, group.n_agents, -1)
    with torch.no_grad():
        *params, _ = policy.individual.module[0].module(inputs)
    return [p[:, agent] for p in params]


@pytest.mark.parametrize("group", [AGENTS, MASKED], ids=["free", "masked"])
@pytest.mark.parametrize("share_params", [False, True])
class TestJointProbability:
    def test_is_the_chain_rule_over_all_joint_actions(self, group, share_params):
        policy = make_policy(group, share_params=share_params)
        data = every_joint_action(group)
        action = data["agents", "action"]
        log_prob = policy.get_dist(data).log_prob(action)
        assert log_prob.shape == (27, 3)
        probability = log_prob.sum(-1).exp()
        assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
        expected = torch.zeros(27)
        for agent in range(3):
            (logits,) = conditional_by_hand(policy, data, agent)
            if group.masked:
                logits = logits.masked_fill(~MASK[agent], -torch.inf)
            expected += Categorical(logits=logits).log_prob(action[:, agent])
        torch.testing.assert_close(probability, expected.exp())
        if group.masked:
            allowed = MASK[torch.arange(3), action].all(-1)
            assert (probability[~allowed] == 0).all()
            assert (probability[allowed] > 0).all()

    def test_no_product_of_individual_policies_has_it(self, group, share_params):
        policy = make_policy(group, share_params=share_params)
        data = every_joint_action(group)
        probability = policy.get_dist(data).log_prob(data["agents", "action"]).sum(-1).exp()
        joint = probability.reshape(3, 3, 3)
        marginals = [joint.sum(dim=[d for d in range(3) if d != i]) for i in range(3)]
        independent = torch.einsum("i,j,k->ijk", *marginals)
        assert (joint - independent).abs().sum() > 0.02

    def test_sampling_frequencies_match_enumeration(self, group, share_params):
        policy = make_policy(group, share_params=share_params)
        data = every_joint_action(group)
        with torch.no_grad():
            probability = policy.get_dist(data).log_prob(data["agents", "action"]).sum(-1).exp()
            drawn = policy(data[:1].expand(40_000).exclude(("agents", "action")).clone())
        code = (drawn["agents", "action"] * torch.tensor([9, 3, 1])).sum(-1)
        frequency = torch.bincount(code, minlength=27) / 40_000
        deviation = (frequency - probability).abs()
        assert (deviation < 5 * (probability * (1 - probability) / 40_000).sqrt() + 1e-9).all()
        written = drawn["agents", "action_log_prob"].sum(-1).exp()
        torch.testing.assert_close(written, probability[code])

    def test_entropy_is_the_joint_one_in_expectation(self, group, share_params):
        policy = make_policy(group, share_params=share_params)
        data = every_joint_action(group)
        dist = policy.get_dist(data)
        log_joint = dist.log_prob(data["agents", "action"]).sum(-1)
        joint = -(log_joint.exp() * log_joint.clamp(min=-1e3)).sum()
        estimated = (log_joint.exp() * dist.entropy().sum(-1)).sum()
        torch.testing.assert_close(estimated, joint)

    def test_execution_takes_the_conditionals_modes_in_order(self, group, share_params):
        policy = make_policy(group, share_params=share_params)
        data = observed(group, 50)
        chosen = Greedy(policy)(data.copy())["agents", "action"]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            assert torch.equal(policy(data.copy())["agents", "action"], chosen)
        data["agents", "action"] = torch.zeros(50, 3, dtype=torch.int64)
        for agent in range(3):
            (logits,) = conditional_by_hand(policy, data, agent)
            if group.masked:
                logits = logits.masked_fill(~MASK[agent], -torch.inf)
            data["agents", "action"][:, agent] = logits.argmax(-1)
        assert torch.equal(chosen, data["agents", "action"])
        assert len(chosen.unique(dim=0)) > 1


@pytest.mark.parametrize("group", [AGENTS, MOVERS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("agent", range(3))
def test_an_agent_sees_the_actions_before_it_and_no_others(group, agent):
    policy = make_policy(group)
    data = policy(observed(group, 20)).detach()
    key = group.param_keys[0]

    def parameters(changed):
        other = data.clone()
        if group.discrete:
            other["agents", "action"][:, changed] = (data["agents", "action"][:, changed] + 1) % 3
        else:
            other["agents", "action"][:, changed] += 1.0
        base = policy.individual.get_dist(policy._inputs(data, data["agents", "action"]))
        dist = policy.individual.get_dist(policy._inputs(other, other["agents", "action"]))
        leaf = key[-1]
        return getattr(base, leaf)[:, agent], getattr(dist, leaf)[:, agent]

    for changed in range(3):
        base, now = parameters(changed)
        if changed < agent:
            assert (base != now).flatten(1).any(1).all()
        else:
            assert torch.equal(base, now)


def test_continuous_log_probability_is_the_chain_rule():
    policy = make_policy(MOVERS)
    data = policy(observed(MOVERS, 20)).detach()
    action = data["agents", "action"]
    assert action.shape == (20, 3, 2)
    for agent in range(3):
        loc, scale = conditional_by_hand(policy, data, agent)
        expected = Normal(loc, scale).log_prob(action[:, agent]).sum(-1)
        torch.testing.assert_close(data["agents", "action_log_prob"][:, agent], expected)
        torch.testing.assert_close(policy.get_dist(data).log_prob(action)[:, agent], expected)
    modes = Greedy(policy)(data.clone()).detach()
    for agent in range(3):
        loc, _ = conditional_by_hand(policy, modes, agent)
        torch.testing.assert_close(modes["agents", "action"][:, agent], loc)


def test_squashed_actions_keep_their_bounds():
    bounds = {"low": -2 * torch.ones(3, 2), "high": 2 * torch.ones(3, 2)}
    group = AgentGroup("agents", 3, observation_dim=4, action_dim=2, discrete=False, **bounds)
    policy = make_policy(group, distribution="tanh_normal")
    data = policy(observed(group, 500)).detach()
    action = data["agents", "action"]
    assert action.abs().max() <= 2.0
    log_prob = policy.get_dist(data).log_prob(action)
    torch.testing.assert_close(log_prob, data["agents", "action_log_prob"], rtol=1e-3, atol=1e-3)


def test_groups_act_one_after_another():
    """The second group reads the first group's actions; the first does not read the second's."""
    env = make_env("vmas/simple_tag", reward="mean", num_envs=5, seed=0)
    algorithm = make_algorithm("armappo", env, 1000)
    first, second = agent_groups(env)
    assert (first.name, "action") in algorithm.policy.module[1].in_keys
    data = env.rollout(2, algorithm.policy).detach().reshape(-1)
    dists = [policy.get_dist(data.clone()) for policy in algorithm.policy.module]
    changed = data.clone()
    changed[first.name, "action"] += 0.5
    leaf = second.param_keys[0][-1]
    seen = algorithm.policy.module[1].get_dist(changed)
    assert (getattr(seen, leaf) != getattr(dists[1], leaf)).any()
    changed = data.clone()
    changed[second.name, "action"] += 0.5
    seen = algorithm.policy.module[0].get_dist(changed)
    assert torch.equal(getattr(seen, leaf), getattr(dists[0], leaf))


def test_actors_are_wider_by_the_actions_they_read():
    """Otherwise they equal MAPPO's."""
    env = make_env("grid/predator_prey", num_envs=2)
    (group,) = agent_groups(env)
    wider = group.n_agents * group.action_dim
    shapes = {}
    for name in ("mappo", "armappo"):
        policy = make_algorithm(name, env, 100).execution_policy
        shapes[name] = [tuple(p.shape) for p in policy.parameters()]
    o = group.observation_dim
    widened = [tuple(o + wider if size == o else size for size in s) for s in shapes["mappo"]]
    assert shapes["armappo"] == widened
    assert len(shapes["mappo"]) == len(list(actor_module(group, input_norm=False).parameters()))


def test_coordinates_without_settling_on_one_way():
    """With an entropy bonus the team plays all equal pairs of actions, which no product can."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    config = {"lr": 5e-3, "epochs": 4, "num_minibatches": 1, "entropy_coeff": 0.05}
    algorithm = make_algorithm("armappo", env, 60 * 200, config)
    for _ in range(60):
        algorithm.update(env.rollout(1, algorithm.policy).detach())
    played = torch.cat([env.rollout(1, algorithm.policy) for _ in range(5)])
    assert played["next", "reward"].mean() > 0.95
    first = played["agents", "action"][:, 0, 0].bincount(minlength=3) / len(played)
    assert Categorical(probs=first).entropy() > 0.7 * math.log(3)


def test_missing_actions_are_explained():
    policy = make_policy(AGENTS)
    with pytest.raises(
        KeyError, match=r"earlier actions under \('agents', 'action'\), got entries"
    ):
        policy.get_dist(observed(AGENTS, 2))
