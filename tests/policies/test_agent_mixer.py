"""The joint policy: data flow, construction, coefficients and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.distributions import IGCCategorical, IGCNormal, IGCTanhNormal
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import JointScaleOptions, PolicyModifier
from torchrl_agentmixer.policies import AgentMixerPolicy, actor_module, mode_agreement
from torchrl_agentmixer.schedules import Schedule

from .groups_env import STATE, GroupsEnv, both_kinds, build, scouts, scramble

# -- data flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes_and_keys_of_groups_of_both_kinds(batch):
    policy, td = both_kinds(batch)
    policy.reset_out_keys()
    out = policy(td.clone())
    expected = {
        ("scouts", "logits"): (*batch, 2, 4),
        ("scouts", "features"): (*batch, 2, 16),
        ("scouts", "perturbation"): (*batch, 2, 4),
        ("scouts", "strength"): (*batch, 2, 1),
        ("scouts", "action"): (*batch, 2),
        ("tanks", "loc"): (*batch, 3, 2),
        ("tanks", "scale"): (*batch, 3, 2),
        ("tanks", "joint_scale"): (*batch, 3, 2),
        ("tanks", "action"): (*batch, 3, 2),
        "action_log_prob": batch,
    }
    for key, shape in expected.items():
        assert out.get(key).shape == shape, key
        assert key in policy.out_keys
    assert policy.action_keys == [("scouts", "action"), ("tanks", "action")]
    torch.testing.assert_close(policy.get_dist(out).log_prob(out), out["action_log_prob"])
    assert STATE in policy.in_keys


def test_groups_of_both_kinds_have_a_joint_scale_and_no_mixture():
    policy, td = both_kinds()
    assert isinstance(policy.modifier.options, JointScaleOptions)
    assert policy.modifier.num_components == 0
    out = policy.reset_out_keys()(td)
    assert "component_logits" not in out
    assert ("scouts", "modified_share") not in out.keys(True)
    with pytest.raises(ValueError, match="`num_components` 0"):
        both_kinds(modifier_kwargs={"num_components": 2})


def test_joint_distribution_is_built_from_its_parts():
    """By hand: actors, Modifier, then one IGC distribution per group."""
    policy, td = both_kinds(temperature=0.6, strength=0.7, consistency=0.4)
    inputs = td.clone()
    for actor in policy.actors:
        actor(inputs)
    own, tanks = inputs["scouts"], inputs["tanks"]
    noise, scale = policy.modifier.modify(
        td[STATE],
        [own["logits"], torch.cat([tanks["loc"], tanks["scale"]], -1)],
        [own["features"], tanks["features"]],
    )
    first = IGCCategorical(own["logits"], noise, td["scouts", "action_mask"], 0.6, 0.7, 0.4)
    second = IGCNormal(tanks["loc"], scale)
    dist = policy.get_dist(td.clone())
    torch.testing.assert_close(dist.distributions["scouts"].logits, first.logits)
    torch.testing.assert_close(dist.distributions["tanks"].loc, second.loc)
    torch.testing.assert_close(dist.distributions["tanks"].scale, second.scale)
    actions = (first.sample(), second.sample())
    log_prob = first.log_prob(actions[0]) + second.log_prob(actions[1])
    torch.testing.assert_close(dist.log_prob(*actions), log_prob)


def test_bounds_come_from_the_environment():
    policy, td = both_kinds((300,), distribution="tanh_normal")
    dist = policy.get_dist(td.clone()).distributions["tanks"]
    assert type(dist) is IGCTanhNormal
    out = policy(td.clone())["tanks", "action"]
    assert (out >= -2).all()
    assert (out <= 1).all()
    action = policy.decentralized()(td.clone())["tanks", "action"]
    torch.testing.assert_close(action, -0.5 + 1.5 * dist.loc.tanh(), rtol=0, atol=1e-5)
    torch.testing.assert_close(action, dist.deterministic_sample)


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
def test_consistency_one_deploys_the_modes_that_were_trained(distribution):
    def modes(policy, td):
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            joint = policy(td.clone())
        tanks = joint["tanks", "action"]
        joint["tanks", "action"] = tanks.clamp(-2.0, 1.0)  # as the environment executes it
        executed = policy.decentralized()(td.clone())
        return [tuple(run[key] for key in policy.action_keys) for run in (joint, executed)]

    joint, executed = modes(*both_kinds((64,), distribution=distribution, consistency=1.0))
    assert mode_agreement(joint, executed) == (1.0, 1.0)
    joint, executed = modes(*both_kinds((64,), distribution=distribution))
    assert not torch.equal(joint[0], executed[0])
    assert torch.equal(joint[1], executed[1])  # continuous modes are equal by construction


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
@pytest.mark.parametrize("group", ["scouts", "tanks"])
def test_per_agent_factors_of_the_joint_policy(group, distribution):
    """One log-probability per agent; their sum is the team's."""
    options = {} if group == "tanks" else {"num_components": 0}
    team, agents = (
        build((group,), (4,), options, joint=joint, distribution=distribution)[0]
        for joint in (True, False)
    )
    td = GroupsEnv((4,), groups=(group,)).reset()
    torch.manual_seed(0)
    one = team(td.clone())
    torch.manual_seed(0)
    each = agents(td.clone())
    assert torch.equal(each[group, "action"], one[group, "action"])
    assert "action_log_prob" not in each
    per_agent = each[group, "action_log_prob"]
    assert per_agent.shape == each[group, "action"].shape[:2]
    torch.testing.assert_close(per_agent.sum(-1), one["action_log_prob"])
    whole, parts = team.get_dist(td.clone()), agents.get_dist(td.clone())
    torch.testing.assert_close(parts.entropy().sum(-1), whole.entropy())


# -- gradients -----------------------------------------------------------------------------------


def test_actors_learn_through_the_log_prob_but_not_through_the_modifiers_input():
    """d log pi / d phi is that of Eq. 12 with the Modifier's output held constant."""
    env = make_env("matrix/climbing", num_envs=6)
    policy = scramble(
        AgentMixerPolicy.from_env(
            env,
            actor_kwargs={"hidden": (8,)},
            modifier_kwargs={"num_components": 0},
            strength=1.0,
        )
    )
    td = env.reset()
    td["state"] = torch.randn(6, 1)
    td["agents", "observation"] = torch.randn(6, 2, 1) * 3
    action = torch.randint(3, (6, 2))
    actor = policy.actors[0]
    parameters = list(actor.parameters())

    policy.get_dist(td.clone()).log_prob(action).sum().backward()
    got = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    out = actor(td.clone())
    logits, features = out["agents", "logits"], out["agents", "features"]
    with torch.no_grad():
        (x,) = policy.modifier.modify(td["state"], [logits], [features])
    noise = -(-(0.95 * torch.sigmoid(x)).log()).log()
    z = logits.log_softmax(-1) + noise
    log_prob = z.log_softmax(-1).gather(-1, action.unsqueeze(-1)).sum()
    wanted = torch.autograd.grad(log_prob, parameters, allow_unused=True)
    assert any(g.abs().sum() > 0 for g in got)
    for one, other in zip(got, wanted, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert all(p.grad is not None for p in policy.modifier.parameters())


def test_individual_scales_are_frozen_and_the_means_learn():
    """The joint scale replaces the individual one in training."""
    policy, td = both_kinds()
    out = policy(td.clone())
    policy.get_dist(td.clone()).log_prob(out).sum().backward()
    tanks = policy.actors[1].module
    assert not tanks.scale_param.requires_grad
    assert tanks.scale_param.grad is None
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad]
    assert len(frozen) == 1
    assert frozen[0].endswith("scale_param")
    assert all(p.grad.abs().sum() > 0 for p in tanks.head.parameters())


# -- construction --------------------------------------------------------------------------------


@pytest.mark.parametrize("state_key", ["state", STATE, ("a", "b", "c")])
@pytest.mark.parametrize("noise_key", ["perturbation", ("joint", "noise")])
def test_nested_keys_of_the_modifier(state_key, noise_key):
    group = AgentGroup("units", 2, 5, 3, discrete=True)
    modifier = PolicyModifier([group], 4, features_dim=64)
    modifier.set_keys(state=state_key, perturbation=noise_key, component_logits=("deep", "w"))
    policy = scramble(AgentMixerPolicy([group], [actor_module(group)], modifier))
    td = TensorDict({"units": {"observation": torch.randn(6, 2, 5)}}, [6])
    td[state_key] = torch.randn(6, 4)
    out = policy.reset_out_keys()(td.clone())
    assert out["action_log_prob"].shape == (6,)
    assert out["deep", "w"].shape == (6, 16)
    noise = modifier.key(group, "perturbation")
    changed = td.clone()
    changed[state_key] = td[state_key] + 1
    assert not torch.equal(policy(changed)[noise], out[noise])


def test_from_env_reads_the_state_under_its_key():
    policy, td = scouts()
    assert policy.modifier.tensor_keys.state == STATE
    changed = td.clone()
    changed[STATE] = td[STATE] + 1
    noise = ("scouts", "perturbation")
    policy.reset_out_keys()
    assert not torch.equal(policy(changed)[noise], policy(td)[noise])


def test_construction_errors():
    group = AgentGroup("agents", 2, 5, 3, discrete=True)
    modifier = PolicyModifier([group], 4, features_dim=64)
    with pytest.raises(ValueError, match="at least one group"):
        AgentMixerPolicy([], [], modifier)
    with pytest.raises(ValueError, match=r"'logits'.*missing"):
        AgentMixerPolicy([group], [], modifier)
    wrong = PolicyModifier([AgentGroup("agents", 3, 5, 3, discrete=True)], 4, features_dim=64)
    with pytest.raises(ValueError, match=r"\('agents', 2, 3\).*got one for.*\('agents', 3, 3\)"):
        AgentMixerPolicy([group], [actor_module(group)], wrong)
    env = make_env("matrix/climbing")
    with pytest.raises(KeyError, match="global"):
        AgentMixerPolicy.from_env(env, state_key="global")
    with pytest.raises(ValueError, match=r"'normal', 'tanh_normal'\], got 'beta'"):
        both_kinds(distribution="beta")
    with pytest.raises(ValueError, match=r"one group and no mixture.*\['scouts', 'tanks'\] and 0"):
        both_kinds(joint=False)
    with pytest.raises(ValueError, match=r"one group and no mixture.*\['agents'\] and 16 comp"):
        AgentMixerPolicy.from_env(env, joint=False)
    for name in ("n_agents", "observation_dim", "action_dim"):
        sizes = {"n_agents": 2, "observation_dim": 5, "action_dim": 3, name: 0}
        with pytest.raises(ValueError, match=f"'agents': expected `{name}` >= 1, got 0"):
            AgentGroup("agents", **sizes, discrete=True)


def test_groups_are_read_from_the_specs():
    first, tanks = agent_groups(GroupsEnv())
    assert (first.n_agents, first.observation_dim, first.action_dim) == (2, 7, 4)
    assert first.discrete
    assert first.masked
    assert (tanks.n_agents, tanks.observation_dim, tanks.action_dim) == (3, 8, 2)
    assert not tanks.discrete
    assert not tanks.masked
    assert tanks.params_dim == 4
    assert (tanks.low == -2).all()
    assert (tanks.high == 1).all()
    assert state_dim(GroupsEnv(), STATE) == 6


# -- coefficients --------------------------------------------------------------------------------


def values(policy):
    return {name: value.item() for name, value in policy.coefficients.named_buffers()}


def test_default_schedules():
    """Correlation falls to zero in the first quarter, the temperature in the second half."""
    policy, td = scouts()
    names = ("temperature", "strength", "consistency", "modified_share")
    rows = {0.0: (1, 3, 0, 1), 0.125: (1, 1.5, 0, 1), 0.25: (1, 0, 0, 1), 0.7: (0.55, 0, 0, 1)}
    rows[1.0] = (0.1, 0, 0, 1)
    assert values(policy) == pytest.approx(dict(zip(names, rows[0.0], strict=True)))
    for progress, row in rows.items():
        policy.anneal(progress)
        assert values(policy) == pytest.approx(dict(zip(names, row, strict=True)))
    policy.anneal(0.25)
    product = policy.decentralized(deterministic=False).get_dist(td.clone())
    joint = policy.get_dist(td.clone())
    action = joint.sample((50,))
    torch.testing.assert_close(joint.log_prob(action), product.log_prob(action))


def test_schedules_are_numbers_mappings_or_schedules():
    policy, td = scouts(
        temperature=0.7,
        strength={"start": 2.0, "end": 1.0},
        consistency=Schedule(0.0, 1.0, since=0.5),
    )
    assert values(policy) == pytest.approx(
        {"temperature": 0.7, "strength": 2.0, "consistency": 0.0, "modified_share": 1.0}
    )
    policy.anneal(0.75)
    assert values(policy) == pytest.approx(
        {"temperature": 0.7, "strength": 1.25, "consistency": 0.5, "modified_share": 1.0}
    )
    assert (policy.reset_out_keys()(td)["scouts", "strength"] == 1.25).all()
    with pytest.raises(ValueError, match=r"'strenght'.*'strength'"):
        scouts(strenght=1.0)


def test_eq_12_alone_has_no_share():
    policy, td = scouts(num_components=0)
    assert set(policy.coefficients.schedules) == {"temperature", "strength", "consistency"}
    assert type(policy.get_dist(td)) is IGCCategorical


def test_set_coefficients():
    policy, td = both_kinds((200,))

    def joint():
        return policy.get_dist(td.clone()).distributions["scouts"]

    assert not torch.equal(joint().mode, joint().individual_mode)
    policy.set_coefficients(consistency=1.0)
    assert torch.equal(joint().mode, joint().individual_mode)
    policy.set_coefficients(consistency=0.0, strength=0.0)
    torch.testing.assert_close(joint().logits, joint().individual_logits)
    policy.set_coefficients(temperature=2.0)
    halved = joint().individual_logits / 2
    allowed = td["scouts", "action_mask"]
    expected = halved.masked_fill(~allowed, -math.inf).softmax(-1)
    torch.testing.assert_close(joint().probs, expected)
    with pytest.raises(ValueError, match=r"'tau'.*consistency, strength, temperature"):
        policy.set_coefficients(tau=1.0)


def test_a_joint_scale_has_no_coefficients():
    joint_scale = {"modifier_kwargs": {"num_components": 0}}
    policy, _ = build(("tanks",), **joint_scale)
    assert policy.coefficients is None
    policy.anneal(0.5)
    policy.set_coefficients()
    with pytest.raises(ValueError, match=r"\['strength'\], but the joint policy has none"):
        policy.set_coefficients(strength=0.5)
    with pytest.raises(ValueError, match=r"no schedules.*\['strength'\]"):
        build(("tanks",), strength=0.5, **joint_scale)


def test_a_script_has_joint_plans_and_the_method_for_sequential_tasks_none():
    env = make_env("vmas/predator_prey", num_envs=2)
    script = AgentMixerPolicy.from_env(env)
    method = make_algorithm("agent_mixer_continuous", env, 1000).policy
    assert script.modifier.options == method.modifier.options
    assert script.coefficients.schedules["strength"] == Schedule(1.0, 0.0, until=0.25)
    assert method.coefficients.schedules["strength"] == Schedule(0.0, 0.0)


def test_coefficients_travel_with_the_state_dict():
    one, _ = both_kinds()
    other, _ = both_kinds()
    one.set_coefficients(strength=0.3)
    other.load_state_dict(one.state_dict())
    assert values(other) == values(one)
    assert values(other)["strength"] == pytest.approx(0.3)
