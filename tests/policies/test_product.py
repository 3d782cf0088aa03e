"""Decentralized policies: modes, samples, inputs per agent, and frozen scales."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical, Normal
from torchrl.envs import ExplorationType, exploration_type, set_exploration_type

from torchrl_agentmixer.envs import RecallEnv, with_memory
from torchrl_agentmixer.export import agent_actors
from torchrl_agentmixer.groups import AgentGroup, agent_groups
from torchrl_agentmixer.modules import GaussianActor
from torchrl_agentmixer.policies import Sampled, actor_module, mode_policy, product_policy
from torchrl_agentmixer.policies.agent_mixer import freeze_scales

from .groups_env import AGENTS, STATE, GroupsEnv, both_kinds, scouts, scramble, two_discrete

BUILDERS = {"both kinds": both_kinds, "mixture": scouts, "mixture of groups": two_discrete}


def masked_logits(td):
    return td["scouts", "logits"].masked_fill(~td["scouts", "action_mask"], -math.inf)


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
@pytest.mark.parametrize("share_params", [False, True])
def test_an_agent_reads_its_own_observation_only(distribution, share_params):
    env = GroupsEnv((16,), groups=tuple(AGENTS))
    groups = agent_groups(env)
    actors = [scramble(actor_module(group, share_params=share_params)) for group in groups]
    deployed = mode_policy(groups, actors, distribution)
    observations = [(name, "observation") for name in AGENTS]
    assert set(deployed.in_keys) == {("scouts", "action_mask"), *observations}
    td = env.reset()
    with set_exploration_type(ExplorationType.RANDOM):
        clean = deployed(td.clone())
        for group in groups:
            for i in range(group.n_agents):
                poisoned = td.clone()
                for key in (STATE, *observations):
                    poisoned[key] = torch.full_like(td[key], math.nan)
                own = td[group.key("observation")][:, i]
                poisoned[group.key("observation")][:, i] = own
                action = deployed(poisoned)[group.key("action")]
                assert torch.equal(action[:, i], clean[group.key("action")][:, i])
        missing = deployed(td.exclude("info"))
    for group in groups:
        assert torch.equal(missing[group.key("action")], clean[group.key("action")])


def test_modes_do_not_depend_on_the_exploration_type():
    policy, td = both_kinds((16,))
    deployed = policy.decentralized()
    runs = []
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MEAN):
        with set_exploration_type(kind):
            runs += [deployed(td.clone()), deployed(td.clone())]
    for run in runs[1:]:
        for key in policy.action_keys:
            assert torch.equal(run[key], runs[0][key])
    assert torch.equal(runs[0]["scouts", "action"], masked_logits(runs[0]).argmax(-1))
    assert torch.equal(runs[0]["tanks", "action"], runs[0]["tanks", "loc"])


def test_samples_are_of_the_product_of_the_individual_policies():
    policy, td = both_kinds((16,))
    deployed = policy.decentralized(deterministic=False)
    torch.manual_seed(0)
    clean = deployed(td.clone())
    torch.manual_seed(0)
    blind = deployed(td.exclude("info"))
    for key in policy.action_keys:
        assert torch.equal(clean[key], blind[key])
    expected = Categorical(logits=masked_logits(clean)).log_prob(clean["scouts", "action"]).sum(-1)
    tanks = Normal(clean["tanks", "loc"], clean["tanks", "scale"])
    expected = expected + tanks.log_prob(clean["tanks", "action"]).sum((-1, -2))
    torch.testing.assert_close(clean["action_log_prob"], expected)
    assert not torch.equal(deployed(td.clone())["tanks", "action"], clean["tanks", "action"])


@pytest.mark.parametrize("name", list(BUILDERS))
def test_forbidden_actions_are_never_taken(name):
    policy, td = BUILDERS[name]((500,))
    mask = td["scouts", "action_mask"]
    for module in (policy, policy.decentralized(), policy.decentralized(deterministic=False)):
        action = module(td.clone())["scouts", "action"]
        assert mask.gather(-1, action.unsqueeze(-1)).all()


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("deterministic", [True, False])
def test_parameters_are_shared_with_the_joint_policy(name, deterministic):
    policy, td = BUILDERS[name]()
    deployed = policy.decentralized(deterministic)
    own = {id(p) for p in deployed.parameters()}
    assert own == {id(p) for actor in policy.actors for p in actor.parameters()}
    assert not own & {id(p) for p in policy.modifier.parameters()}
    before = deployed(td.clone())["scouts", "logits"]
    scramble(policy, seed=1)
    assert not torch.equal(before, deployed(td.clone())["scouts", "logits"])


@pytest.mark.parametrize("joint", [True, False])
def test_log_probs_of_the_product_policy(joint):
    env = GroupsEnv(groups=("scouts",))
    (group,) = agent_groups(env)
    policy = product_policy([group], [scramble(actor_module(group))], joint=joint)
    td = policy(env.reset())
    expected = Categorical(logits=masked_logits(td)).log_prob(td["scouts", "action"])
    if joint:
        torch.testing.assert_close(td["action_log_prob"], expected.sum(-1))
    else:
        torch.testing.assert_close(td["scouts", "action_log_prob"], expected)


def test_per_agent_log_probs_need_one_group():
    two = [AgentGroup(name, 2, 5, 3, discrete=True) for name in "ab"]
    with pytest.raises(ValueError, match=r"one group for `joint=False`, got \['a', 'b'\]"):
        product_policy(two, [actor_module(g) for g in two], joint=False)


# -- Sampled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN]
)
def test_sampled_also_where_exploration_is_deterministic(kind):
    policy, td = both_kinds((200,))
    product = policy.decentralized(deterministic=False)
    sampled = Sampled(product)
    assert (sampled.in_keys, sampled.out_keys) == (product.in_keys, product.out_keys)
    assert {id(p) for p in sampled.parameters()} == {id(p) for p in product.parameters()}
    torch.manual_seed(0)
    with set_exploration_type(ExplorationType.RANDOM):
        expected = product(td.clone())
    torch.manual_seed(0)
    with set_exploration_type(kind):
        got = sampled(td.clone())
        assert exploration_type() is kind  # restored
        again = sampled(td.clone())
    for key in (*policy.action_keys, "action_log_prob"):
        assert torch.equal(got.get(key), expected.get(key))
    assert not torch.equal(got["scouts", "action"], again["scouts", "action"])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        modes = product(td.clone())
    assert torch.equal(modes["tanks", "action"], modes["tanks", "loc"])


def test_sampled_frequencies_are_the_individual_probabilities():
    policy, td = scouts((1,))
    product = policy.decentralized(deterministic=False)
    many = td.expand(4000).clone()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = Sampled(product)(many)["scouts", "action"]
    probs = masked_logits(product(td.clone())).softmax(-1)[0]
    frequency = torch.nn.functional.one_hot(action, 4).float().mean(0)
    assert ((frequency - probs).abs() <= 5 * (probs * (1 - probs) / 4000).sqrt() + 1e-6).all()


def test_sampled_carries_memory():
    env = RecallEnv(num_envs=4, delay=2, seed=0)
    groups = agent_groups(env)
    sampled = Sampled(product_policy(groups, [actor_module(groups[0], memory_dim=8)]))
    data = with_memory(env, sampled).rollout(4, sampled, break_when_any_done=False)
    memory, after = data["agents", "memory"], data["next", "agents", "memory"]
    torch.testing.assert_close(memory[:, 1:], after[:, :-1])
    assert (after != 0).any()


# -- freeze_scales -------------------------------------------------------------------------------


def test_freeze_scales_excludes_only_the_scales():
    tanks = AgentGroup("tanks", 3, 5, 2, discrete=False)
    group = AgentGroup("scouts", 2, 5, 4, discrete=True)
    nested = TensorDictModule(
        torch.nn.ModuleList([GaussianActor(3, 5, 2)]), in_keys=["x"], out_keys=["y"]
    )
    head = actor_module(tanks, scale_head=True)
    actors = [actor_module(tanks), actor_module(group), nested, head]
    freeze_scales(actors)
    frozen = {
        name
        for index, actor in enumerate(actors)
        for name, p in actor.named_parameters(prefix=str(index))
        if not p.requires_grad
    }
    params = {f"3.module.scale_head.params.0.{name}" for name in ("weight", "bias")}
    assert frozen == {"0.module.scale_param", "2.module.0.scale_param", *params}
    loc, scale, _ = actors[0].module(torch.randn(4, 3, 5))
    assert loc.requires_grad
    assert not scale.requires_grad


def bounded_group(low, high):
    shape = (2, 3)
    return AgentGroup(
        "agents",
        n_agents=2,
        observation_dim=4,
        action_dim=3,
        discrete=False,
        low=torch.as_tensor(low).expand(shape),
        high=torch.as_tensor(high).expand(shape),
    )


@pytest.mark.parametrize("high", [1.0, [1.0, 2.0, float("inf")]])
def test_the_mode_is_within_the_action_bounds(high):
    """What is executed is what an exported file writes."""
    group = bounded_group(-1.0, high)
    actor = scramble(actor_module(group))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter *= 10
    policy = mode_policy([group], [actor])
    data = TensorDict({"agents": {"observation": 10 * torch.randn(50, 2, 4)}}, [50])
    out = policy(data)
    loc, action = out["agents", "loc"], out["agents", "action"]
    assert (loc > group.high).any() or (loc < group.low).any()
    assert torch.equal(action, loc.clamp(group.low, group.high))
    for index, own in enumerate(agent_actors(policy)):
        written = own(data["agents", "observation"][:, index])["action"]
        torch.testing.assert_close(written, action[:, index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, float("inf")), (-float("inf"), 1.0), (-1.0, [1.0, 1.0, float("inf")])]
)
def test_squashed_actions_need_finite_bounds(low, high):
    group = bounded_group(low, high)
    actor = actor_module(group)
    for build in (mode_policy, product_policy):
        with pytest.raises(ValueError, match=r"finite bounds.*'tanh_normal'.*use 'normal'"):
            build([group], [actor], "tanh_normal")
        build([group], [actor], "normal")
