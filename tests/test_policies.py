"""The joint policy, what is deployed of it, and TorchRL's loss on it."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.data import Categorical as CategoricalSpec
from torchrl.envs import EnvBase, ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import MultiAgentMLP, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer.distributions import (
    IGCCategorical,
    IGCMixture,
    IGCNormal,
    IGCTanhNormal,
)
from torchrl_agentmixer.envs import CorrelationSeed, make_env
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, ModifierGroup, PolicyModifier, value_module
from torchrl_agentmixer.policies import AgentMixerPolicy, consistency_metrics
from torchrl_agentmixer.policies.agent_mixer import COMPONENT_LOGITS_KEY
from torchrl_agentmixer.policies.product import actor_module, mode_policy, product_policy

STATE = ("info", "state")
SEED = ("info", "seed")


class TwoGroupsEnv(EnvBase):
    """Two discrete, masked scouts and three continuous, bounded tanks; noise for observations."""

    def __init__(self, batch=(4,), groups=("scouts", "tanks"), low=-2.0, high=1.0, seed=None):
        super().__init__(batch_size=batch)
        b = self.batch_size
        agents = {"scouts": 2, "tanks": 3}
        self.group_map = {g: [f"{g}_{i}" for i in range(agents[g])] for g in groups}
        observations, actions = {}, {}
        for g in groups:
            n = agents[g]
            leaves = {"observation": Unbounded((*b, n, 5 + n))}
            if g == "scouts":
                leaves["action_mask"] = Binary(shape=(*b, n, 4), dtype=torch.bool)
                action = CategoricalSpec(4, shape=(*b, n))
            else:
                action = Bounded(low, high, shape=(*b, n, 2))
            observations[g] = Composite(leaves, shape=(*b, n))
            actions[g] = Composite(action=action, shape=(*b, n))
        info = Composite(state=Unbounded((*b, 6)), shape=b)
        self.observation_spec = Composite(**observations, info=info, shape=b)
        self.action_spec = Composite(**actions, shape=b)
        self.reward_spec = Unbounded((*b, 1))
        flag = CategoricalSpec(2, shape=(*b, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=b)

    def _reset(self, tensordict=None, **kwargs):
        td = self.observation_spec.rand()
        if "scouts" in self.group_map:
            td["scouts", "action_mask"][..., 0] = True
        return td.update(self.done_spec.zero())

    def _step(self, tensordict):
        return self._reset().set("reward", torch.randn(*self.batch_size, 1))

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


def scramble(module, seed=0):
    """Random parameters, so that no test passes on an initialization near zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.05, 0.4)
    return module


def two_groups(batch=(4,), seed_dim=0, **kwargs):
    env = TwoGroupsEnv(batch)
    policy = AgentMixerPolicy.from_env(
        env,
        state_key=STATE,
        seed_key=SEED,
        actor_kwargs={"hidden": (16,)},
        modifier_kwargs={"channels": 8, "seed_dim": seed_dim},
        **kwargs,
    )
    td = env.reset()
    if seed_dim:
        td[SEED] = torch.randn(*batch, seed_dim)
    return scramble(policy), td


# -- data flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes_and_keys_of_two_groups(batch):
    policy, td = two_groups(batch, seed_dim=3)
    out = policy(td.clone())
    expected = {
        ("scouts", "logits"): (*batch, 2, 4),
        ("scouts", "features"): (*batch, 2, 16),
        ("scouts", "perturbation"): (*batch, 2, 4),
        ("scouts", "action"): (*batch, 2),
        ("tanks", "loc"): (*batch, 3, 2),
        ("tanks", "scale"): (*batch, 3, 2),
        ("tanks", "joint_scale"): (*batch, 3, 2),
        ("tanks", "action"): (*batch, 3, 2),
        "action_log_prob": batch,
    }
    for key, shape in expected.items():
        assert out.get(key).shape == shape, key
    assert policy.action_keys == [("scouts", "action"), ("tanks", "action")]
    torch.testing.assert_close(policy.get_dist(out).log_prob(out), out["action_log_prob"])
    assert STATE in policy.in_keys
    assert SEED in policy.in_keys


def test_joint_distribution_is_built_from_its_parts():
    """By hand: actors, coefficients, Modifier, then one IGC distribution for each group."""
    options = {"noise_bound": 0.8, "noise_gain": 1.7, "margin": 0.3}
    policy, td = two_groups(temperature=0.6, strength=0.7, consistency=0.4, **options)
    scouts, tanks = (actor(td.select(("info", "state"), *actor.in_keys)) for actor in policy.actors)
    noise, scale = policy.modifier(
        td[STATE],
        scouts["scouts", "logits"],
        scouts["scouts", "features"],
        tanks["tanks", "loc"],
        tanks["tanks", "scale"],
        tanks["tanks", "features"],
    )
    mask = td["scouts", "action_mask"]
    first = IGCCategorical(scouts["scouts", "logits"], noise, mask, 0.6, 0.7, 0.4, **options)
    second = IGCNormal(tanks["tanks", "loc"], scale)
    dist = policy.get_dist(td.clone())
    torch.testing.assert_close(dist.distributions["scouts"].logits, first.logits)
    torch.testing.assert_close(dist.distributions["tanks"].loc, second.loc)
    torch.testing.assert_close(dist.distributions["tanks"].scale, second.scale)
    actions = (first.sample(), second.sample())
    log_prob = first.log_prob(actions[0]) + second.log_prob(actions[1])
    torch.testing.assert_close(dist.log_prob(*actions), log_prob)


def test_forbidden_actions_are_never_taken():
    policy, td = two_groups((500,))
    mask = td["scouts", "action_mask"]
    for module in (policy, policy.decentralized(), policy.decentralized(deterministic=False)):
        action = module(td.clone())["scouts", "action"]
        assert mask.gather(-1, action.unsqueeze(-1)).all()


def test_bounds_come_from_the_environment():
    policy, td = two_groups((300,), distribution="tanh_normal")
    dist = policy.get_dist(td.clone()).distributions["tanks"]
    assert type(dist) is IGCTanhNormal
    out = policy(td.clone())["tanks", "action"]
    assert (out >= -2).all()
    assert (out <= 1).all()
    action = policy.decentralized()(td.clone())["tanks", "action"]
    torch.testing.assert_close(action, -0.5 + 1.5 * dist.loc.tanh(), rtol=0, atol=1e-5)
    torch.testing.assert_close(action, dist.deterministic_sample)


@pytest.mark.parametrize("form", ["perturbation", "temperature"])
@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
def test_exact_forms_deploy_the_mode_that_was_trained(form, distribution):
    consistency = 1.0 if form == "perturbation" else 0.0
    policy, td = two_groups((64,), form=form, distribution=distribution, consistency=consistency)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        joint = policy(td.clone())
    deployed = policy.decentralized()(td.clone())
    for key in policy.action_keys:
        assert torch.equal(joint[key], deployed[key])
    published, _ = two_groups((64,))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        joint = published(td.clone())
    deployed = published.decentralized()(td.clone())
    assert not torch.equal(joint["scouts", "action"], deployed["scouts", "action"])


# -- a mixture of joint policies -----------------------------------------------------------------


def scouts_mixture(batch=(4,), num_components=3, seed_dim=0, **kwargs):
    env = TwoGroupsEnv(batch, groups=("scouts",))
    modifier_kwargs = {"channels": 8, "num_components": num_components, "seed_dim": seed_dim}
    policy = AgentMixerPolicy.from_env(
        env,
        form="mixture",
        state_key=STATE,
        seed_key=SEED,
        modifier_kwargs=modifier_kwargs,
        **kwargs,
    )
    td = env.reset()
    if seed_dim:
        td[SEED] = torch.randn(*batch, seed_dim)
    return scramble(policy), td


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("seed_dim", [0, 2])
def test_mixture_shapes_and_keys(batch, seed_dim):
    policy, td = scouts_mixture(batch, seed_dim=seed_dim)
    out = policy(td.clone())
    expected = {
        ("scouts", "logits"): (*batch, 2, 4),
        ("scouts", "perturbation"): (*batch, 2, 3, 4),
        ("scouts", "modified_share"): (*batch, 2, 1),
        ("scouts", "action"): (*batch, 2),
        COMPONENT_LOGITS_KEY: (*batch, 3),
        "action_log_prob": batch,
    }
    for key, shape in expected.items():
        assert out.get(key).shape == shape, key
        assert key in policy.out_keys
    names = {"strength", "consistency", "temperature", "modified_share"}
    assert set(policy.coefficient_names) == names
    dist = policy.get_dist(out)
    assert type(dist) is IGCMixture
    torch.testing.assert_close(dist.log_prob(out["scouts", "action"]), out["action_log_prob"])


def test_mixture_is_built_from_its_parts():
    options = {"noise_bound": 0.8, "noise_gain": 1.7, "margin": 0.3}
    coefficients = {"temperature": 0.6, "strength": 0.7, "consistency": 0.4, "modified_share": 0.8}
    policy, td = scouts_mixture(**coefficients, **options)
    (actor,) = policy.actors
    out = actor(td.clone())
    logits, mask = out["scouts", "logits"], td["scouts", "action_mask"]
    noise, weights = policy.modifier(td[STATE], logits, out["scouts", "features"])
    expected = IGCMixture(logits, noise, weights, mask, **coefficients, **options)
    dist, action = policy.get_dist(td.clone()), expected.sample((10,))
    torch.testing.assert_close(dist.log_prob(action), expected.log_prob(action))


def test_mixture_leaves_what_is_deployed_alone():
    """No state, seed, Modifier or component weight is read; parameters are the actors' own."""
    policy, td = scouts_mixture((64,), seed_dim=2)
    deployed = policy.decentralized()
    assert set(deployed.in_keys) == {("scouts", "observation"), ("scouts", "action_mask")}
    action = deployed(td.clone())["scouts", "action"]
    scramble(policy.modifier, seed=1)
    assert torch.equal(deployed(td.exclude("info"))["scouts", "action"], action)
    assert {id(p) for p in deployed.parameters()} == {id(p) for p in policy.actors[0].parameters()}
    plain = AgentMixerPolicy.from_env(
        TwoGroupsEnv((64,), groups=("scouts",)),
        state_key=STATE,
    )
    plain.actors[0].load_state_dict(policy.actors[0].state_dict())
    assert torch.equal(plain.decentralized()(td.clone())["scouts", "action"], action)
    mask = td["scouts", "action_mask"]
    for module in (policy, policy.decentralized(deterministic=False)):
        sample = module(td.clone())["scouts", "action"]
        assert mask.gather(-1, sample.unsqueeze(-1)).all()


def test_mixture_coefficients():
    policy, td = scouts_mixture((200,), modified_share=0.9)
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


def test_mixture_correlates_a_one_state_game_without_a_seed():
    env = make_env("matrix/climbing", num_envs=2)
    policy = AgentMixerPolicy.from_env(env, form="mixture", modifier_kwargs={"head_gain": 2.0})
    assert policy.modifier.num_components == 16
    dist = policy.get_dist(scramble(policy) and env.reset())
    joint = dist._joint_probs()[0].double().reshape(3, 3)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    assert (joint * (joint / independent).log()).sum() > 1e-3


def test_mixture_around_an_actor():
    env = make_env("grid/predator_prey", num_envs=4)
    (group,) = agent_groups(env)
    actor = actor_module(group)
    policy = AgentMixerPolicy.from_actor(
        actor, env, form="mixture", modifier_kwargs={"num_components": 2}
    )
    assert policy.actors == [actor]
    rollout = env.rollout(3, policy, break_when_any_done=False)
    assert rollout[COMPONENT_LOGITS_KEY].shape == (4, 3, 2)
    assert rollout["agents", "perturbation"].shape[-2:] == (2, group.action_dim)


def test_mixture_needs_one_group():
    with pytest.raises(ValueError, match=r"one group with output 'perturbation'.*'scale'"):
        AgentMixerPolicy.from_env(TwoGroupsEnv(), form="mixture", state_key=STATE)


def test_forms_of_discrete_actions_leave_continuous_ones_alone():
    policy = AgentMixerPolicy.from_env(
        TwoGroupsEnv(groups=("tanks",)), form="mixture", state_key=STATE
    )
    assert policy.modifier.num_components == 0


# -- execution (section 7) -----------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
@pytest.mark.parametrize("share_params", [False, True])
def test_execution_reads_the_agents_own_observation_only(distribution, share_params):
    env = TwoGroupsEnv((16,))
    policy = scramble(
        AgentMixerPolicy.from_env(
            env,
            state_key=STATE,
            seed_key=SEED,
            distribution=distribution,
            actor_kwargs={"share_params": share_params},
            modifier_kwargs={"seed_dim": 3},
        )
    )
    td = env.reset().set(SEED, torch.randn(16, 3))
    deployed = policy.decentralized()
    assert set(deployed.in_keys) == {
        ("scouts", "observation"),
        ("scouts", "action_mask"),
        ("tanks", "observation"),
    }
    with set_exploration_type(ExplorationType.RANDOM):
        clean = deployed(td.clone())
        for group, n_agents in (("scouts", 2), ("tanks", 3)):
            for i in range(n_agents):
                poisoned = td.clone()
                for key in (STATE, SEED, ("scouts", "observation"), ("tanks", "observation")):
                    poisoned[key] = torch.full_like(td[key], math.nan)
                poisoned[group, "observation"][:, i] = td[group, "observation"][:, i]
                action = deployed(poisoned)[group, "action"]
                assert torch.equal(action[:, i], clean[group, "action"][:, i])
        missing = deployed(td.exclude("info", SEED))
    for key in policy.action_keys:
        assert torch.equal(missing[key], clean[key])


def test_execution_is_deterministic_whatever_the_exploration_type():
    policy, td = two_groups((16,))
    deployed = policy.decentralized()
    runs = []
    for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, ExplorationType.MEAN):
        with set_exploration_type(kind):
            runs += [deployed(td.clone()), deployed(td.clone())]
    for run in runs[1:]:
        for key in policy.action_keys:
            assert torch.equal(run[key], runs[0][key])
    masked = runs[0]["scouts", "logits"].masked_fill(~td["scouts", "action_mask"], -math.inf)
    assert torch.equal(runs[0]["scouts", "action"], masked.argmax(-1))
    assert torch.equal(runs[0]["tanks", "action"], runs[0]["tanks", "loc"])


def test_stochastic_execution_is_the_product_of_the_individual_policies():
    policy, td = two_groups((16,), seed_dim=3)
    deployed = policy.decentralized(deterministic=False)
    torch.manual_seed(0)
    clean = deployed(td.clone())
    torch.manual_seed(0)
    blind = deployed(td.exclude("info"))
    for key in policy.action_keys:
        assert torch.equal(clean[key], blind[key])
    mask = td["scouts", "action_mask"]
    scouts = Categorical(logits=clean["scouts", "logits"].masked_fill(~mask, -math.inf))
    tanks = torch.distributions.Normal(clean["tanks", "loc"], clean["tanks", "scale"])
    expected = scouts.log_prob(clean["scouts", "action"]).sum(-1)
    expected = expected + tanks.log_prob(clean["tanks", "action"]).sum((-1, -2))
    torch.testing.assert_close(clean["action_log_prob"], expected)
    assert not torch.equal(deployed(td.clone())["tanks", "action"], clean["tanks", "action"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_parameters_are_shared_with_what_is_deployed(deterministic):
    policy, td = two_groups()
    deployed = policy.decentralized(deterministic)
    own = {id(p) for p in deployed.parameters()}
    assert own == {id(p) for actor in policy.actors for p in actor.parameters()}
    assert not own & {id(p) for p in policy.modifier.parameters()}
    before = deployed(td.clone())["tanks", "loc"]
    scramble(policy, seed=1)
    assert not torch.equal(before, deployed(td.clone())["tanks", "loc"])


@pytest.mark.parametrize("joint", [True, False])
def test_product_policy_log_probs(joint):
    env = TwoGroupsEnv(groups=("scouts",))
    (group,) = agent_groups(env)
    policy = product_policy([group], [scramble(actor_module(group))], joint=joint)
    td = policy(env.reset())
    mask = td["scouts", "action_mask"]
    expected = Categorical(logits=td["scouts", "logits"].masked_fill(~mask, -math.inf))
    expected = expected.log_prob(td["scouts", "action"])
    if joint:
        torch.testing.assert_close(td["action_log_prob"], expected.sum(-1))
    else:
        torch.testing.assert_close(td["scouts", "action_log_prob"], expected)


@pytest.mark.parametrize("options", [{"seed_dim": 3}, {}], ids=["seed", "no seed"])
@pytest.mark.parametrize(
    ("group", "form", "distribution"),
    [
        ("scouts", "perturbation", "normal"),
        ("scouts", "temperature", "normal"),
        ("tanks", "perturbation", "normal"),
        ("tanks", "perturbation", "tanh_normal"),
    ],
)
def test_agents_factors_of_the_joint_policy(group, form, distribution, options):
    """One log-probability for each agent, which are the team's together."""
    env = TwoGroupsEnv(groups=(group,))
    forms = {"form": form, "distribution": distribution, "state_key": STATE, "seed_key": SEED}
    team, agents = (
        scramble(AgentMixerPolicy.from_env(env, modifier_kwargs=options, joint=joint, **forms))
        for joint in (True, False)
    )
    td = env.reset()
    if options:
        td[SEED] = torch.randn(4, 3)
    torch.manual_seed(0)
    one = team(td.clone())
    torch.manual_seed(0)
    each = agents(td.clone())
    assert torch.equal(each[group, "action"], one[group, "action"])
    assert "action_log_prob" not in each
    per_agent = each[group, "action_log_prob"]
    assert per_agent.shape == (4, env.action_spec[group].shape[1])
    torch.testing.assert_close(per_agent.sum(-1), one["action_log_prob"])
    whole, parts = team.get_dist(td.clone()), agents.get_dist(td.clone())
    torch.testing.assert_close(parts.entropy().sum(-1), whole.entropy())
    measured, expected = consistency_metrics(agents, td), consistency_metrics(team, td)
    for name in ("mode_agreement", "team_mode_agreement", "divergence"):
        torch.testing.assert_close(measured[name], expected[name], msg=name)
    assert expected["divergence"] > 0.01


# -- gradients -----------------------------------------------------------------------------------


def test_actors_learn_through_the_log_prob_but_not_through_the_modifiers_input():
    """d log pi / d phi is that of Eq. 12 with the Modifier's output held constant."""
    env = make_env("matrix/climbing", num_envs=6)
    policy = scramble(AgentMixerPolicy.from_env(env, actor_kwargs={"hidden": (8,)}))
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
        (x,) = policy.modifier(td["state"], logits, features)
    noise = -(-(0.95 * torch.sigmoid(x)).log()).log()
    z = logits.log_softmax(-1) + noise
    log_prob = z.log_softmax(-1).gather(-1, action.unsqueeze(-1)).sum()
    wanted = torch.autograd.grad(log_prob, parameters, allow_unused=True)
    assert any(g.abs().sum() > 0 for g in got)
    for one, other in zip(got, wanted, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert all(p.grad is not None for p in policy.modifier.parameters())


def test_gaussian_actors_learn_their_means_only():
    """The joint scale replaces the individual one, so the joint log-prob never trains it."""
    policy, td = two_groups()
    out = policy(td.clone())
    policy.get_dist(td.clone()).log_prob(out).sum().backward()
    tanks = policy.actors[1].module
    assert tanks.scale_param.grad is None or (tanks.scale_param.grad == 0).all()
    assert all(p.grad.abs().sum() > 0 for p in tanks.head.parameters())


# -- construction --------------------------------------------------------------------------------


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
    assert policy.modifier.groups[0].features_dim == 0
    owned = {id(p) for p in policy.parameters()}
    assert {id(p) for p in net.parameters()} <= owned
    rollout = env.rollout(3, policy, break_when_any_done=False)
    logits = net(rollout["agents", "observation"])
    torch.testing.assert_close(rollout["agents", "logits"], logits)
    deployed = policy.decentralized()(rollout.clone())
    assert torch.equal(deployed["agents", "action"], logits.argmax(-1))
    out = actor(rollout.clone())  # the actor itself is left as it was
    assert out["agents", "action"].shape == (4, 3, 2)


def test_from_actor_around_a_continuous_actor_of_several_modules():
    env = TwoGroupsEnv(groups=("tanks",))
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
    assert torch.equal(policy.decentralized()(td)["tanks", "action"], td["tanks", "loc"])


def test_from_actor_that_writes_something_else():
    env = make_env("matrix/climbing")
    net = TensorDictModule(
        nn.Linear(1, 3), in_keys=[("agents", "observation")], out_keys=[("agents", "q")]
    )
    with pytest.raises(ValueError, match=r"from_actor.*'logits'.*'q'.*missing"):
        AgentMixerPolicy.from_actor(net, env)


@pytest.mark.parametrize("groups", [("tanks",), ("tanks", "scouts")])
def test_from_actor_around_an_execution_policy_samples(groups):
    env = TwoGroupsEnv(groups=groups)
    executed = AgentMixerPolicy.from_env(env, state_key=STATE).decentralized()
    policy = AgentMixerPolicy.from_actor(executed, env, state_key=STATE)
    td = env.reset()
    with set_exploration_type(ExplorationType.RANDOM):
        first, second = (policy(td.clone())["tanks", "action"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(policy.decentralized()(td)["tanks", "action"], td["tanks", "loc"])


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


@pytest.mark.parametrize("state_key", ["state", STATE, ("a", "b", "c")])
@pytest.mark.parametrize("seed_key", ["correlation_seed", ("deep", "down", "seed")])
def test_nested_state_and_seed_keys(state_key, seed_key):
    group = AgentGroup("units", 2, 5, 3, discrete=True)
    modifier = PolicyModifier([ModifierGroup(2, 3, 3, features_dim=64)], 4, seed_dim=2)
    policy = AgentMixerPolicy(
        [group], [actor_module(group)], modifier, state_key=state_key, seed_key=seed_key
    )
    td = TensorDict({"units": {"observation": torch.randn(6, 2, 5)}}, [6])
    td[state_key], td[seed_key] = torch.randn(6, 4), torch.randn(6, 2)
    out = policy(scramble(policy) and td.clone())
    assert out["action_log_prob"].shape == (6,)
    changed = td.clone()
    changed[state_key] = td[state_key] + 1
    assert not torch.equal(policy(changed)["units", "perturbation"], out["units", "perturbation"])
    changed = td.clone()
    changed[seed_key] = td[seed_key] + 1
    assert not torch.equal(policy(changed)["units", "perturbation"], out["units", "perturbation"])


def test_construction_errors():
    group = AgentGroup("agents", 2, 5, 3, discrete=True)
    modifier = PolicyModifier([ModifierGroup(2, 3, 3, features_dim=64)], 4)
    with pytest.raises(ValueError, match="at least one group"):
        AgentMixerPolicy([], [], modifier)
    with pytest.raises(ValueError, match=r"'logits'.*missing"):
        AgentMixerPolicy([group], [], modifier)
    wrong = PolicyModifier([ModifierGroup(3, 3, 3, features_dim=64)], 4)
    with pytest.raises(ValueError, match=r"\[\(2, 3\)\], got one for \[\(3, 3\)\]"):
        AgentMixerPolicy([group], [actor_module(group)], wrong)
    env = make_env("matrix/climbing")
    with pytest.raises(ValueError, match=r"`form` in \(.*'mixture'\), got 'gumbel'"):
        AgentMixerPolicy.from_env(env, form="gumbel")
    with pytest.raises(KeyError, match="global"):
        AgentMixerPolicy.from_env(env, state_key="global")
    with pytest.raises(ValueError, match=r"'normal', 'tanh_normal'\], got 'beta'"):
        AgentMixerPolicy.from_env(TwoGroupsEnv(), state_key=STATE, distribution="beta")
    two = [AgentGroup(name, 2, 5, 3, discrete=True) for name in "ab"]
    with pytest.raises(ValueError, match=r"one group for `joint=False`, got \['a', 'b'\]"):
        product_policy(two, [actor_module(g) for g in two], joint=False)
    with pytest.raises(ValueError, match=r"one group and no mixture.*\['scouts', 'tanks'\] and 0"):
        AgentMixerPolicy.from_env(TwoGroupsEnv(), state_key=STATE, joint=False)
    with pytest.raises(ValueError, match=r"one group and no mixture.*\['agents'\] and 16 comp"):
        AgentMixerPolicy.from_env(env, form="mixture", joint=False)
    for name in ("n_agents", "observation_dim", "action_dim"):
        sizes = {"n_agents": 2, "observation_dim": 5, "action_dim": 3, name: 0}
        with pytest.raises(ValueError, match=f"'agents': expected `{name}` >= 1, got 0"):
            AgentGroup("agents", **sizes, discrete=True)


def test_groups_are_read_from_the_specs():
    scouts, tanks = agent_groups(TwoGroupsEnv())
    assert (scouts.n_agents, scouts.observation_dim, scouts.action_dim) == (2, 7, 4)
    assert scouts.discrete
    assert scouts.masked
    assert (tanks.n_agents, tanks.observation_dim, tanks.action_dim) == (3, 8, 2)
    assert not tanks.discrete
    assert not tanks.masked
    assert tanks.params_dim == 4
    assert (tanks.low == -2).all()
    assert (tanks.high == 1).all()
    assert state_dim(TwoGroupsEnv(), STATE) == 6


# -- coefficients --------------------------------------------------------------------------------


def test_set_coefficients():
    policy, td = two_groups((200,))
    assert set(policy.coefficient_names) == {"strength", "consistency", "temperature"}

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
    with pytest.raises(ValueError, match=r"\['strength', 'consistency', 'temperature'\].*'tau'"):
        policy.set_coefficients(tau=1.0)
    with pytest.raises(TypeError):
        policy.set_coefficients(1.0)


def test_coefficients_without_discrete_actions():
    env = TwoGroupsEnv(groups=("tanks",))
    policy = AgentMixerPolicy.from_env(env, state_key=STATE)
    assert policy.coefficient_names == ()
    policy.set_coefficients()
    with pytest.raises(ValueError, match=r"\['strength'\], but no group has discrete actions"):
        policy.set_coefficients(strength=0.5)


def test_the_modifiers_temperature_is_no_coefficient():
    env = make_env("matrix/climbing")
    policy = AgentMixerPolicy.from_env(env, form="temperature")
    assert set(policy.coefficient_names) == {"strength", "consistency"}
    td = policy(scramble(policy) and env.reset())
    assert td["agents", "temperature"].shape == (1, 2, 1)


def test_coefficients_travel_with_the_state_dict():
    one, td = two_groups()
    other, _ = two_groups()
    one.set_coefficients(strength=0.3)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(
        other(td.clone())["scouts", "strength"], one(td.clone())["scouts", "strength"]
    )


# -- PPO on the joint policy (Eq. 13) ------------------------------------------------------------


def collect(env, policy):
    with torch.no_grad():  # as TorchRL's collectors
        return env.rollout(5, policy, break_when_any_done=False)


def advantage(rollout, critic):
    return GAE(gamma=0.9, lmbda=0.9, value_network=critic)(rollout)


@pytest.mark.parametrize("name", ["matrix/climbing", "grid/predator_prey"])
def test_clip_ppo_loss_unmodified_on_one_group(name):
    env = make_env(name, num_envs=8)
    policy = AgentMixerPolicy.from_env(env)
    critic = value_module(CentralCritic(state_dim(env)))
    data = advantage(collect(env, policy), critic)
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
    # Every agent counts in the one ratio of the team: the mean of -A over the batch.
    expected = -data["advantage"].mean()
    normalized = out["loss_objective"]
    torch.testing.assert_close(normalized, expected, rtol=1e-4, atol=1e-5)


def test_clip_ppo_loss_unmodified_on_two_groups():
    env = TwoGroupsEnv()
    policy = AgentMixerPolicy.from_env(env, state_key=STATE)
    critic = value_module(CentralCritic(6), in_key=STATE)
    data = advantage(collect(env, policy), critic)
    loss = ClipPPOLoss(policy, critic)
    loss.set_keys(action=[("scouts", "action"), ("tanks", "action")])
    out = loss(data)
    torch.testing.assert_close(out["kl_approx"], torch.tensor(0.0), rtol=0, atol=1e-4)
    (out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]).backward()
    for part in (*policy.actors, policy.modifier, critic):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0


# -- correlation seed (section 6) ----------------------------------------------------------------


def staggered_rollout(env, policy, steps=12):
    """Episodes of five steps that do not end together: half the environments are reset early."""
    td = env.rollout(2, policy, break_when_any_done=False)[:, -1]["next"]
    half = torch.arange(env.batch_size[0]) % 2 == 0
    td["_reset"] = half.unsqueeze(-1)
    td = env.reset(td).exclude("reward")
    return env.rollout(
        steps, policy, tensordict=td, auto_reset=False, break_when_any_done=False
    ), half


@pytest.mark.parametrize("per", ["step", "episode"])
def test_seeds_are_drawn_per_step_or_per_episode(per):
    env = TransformedEnv(
        make_env("grid/predator_prey", num_envs=8, max_steps=5), CorrelationSeed(3, per=per)
    )
    rollout, half = staggered_rollout(env, None)
    seed, done = rollout["correlation_seed"], rollout["next", "done"].squeeze(-1)
    same = (seed[:, 1:] == seed[:, :-1]).all(-1)
    assert (done.any(1)).all()
    assert not torch.equal(done[half][0], done[~half][0])  # they do not end together
    if per == "step":
        assert not same.any()
    else:
        assert torch.equal(same, ~done[:, :-1])
        inside = rollout["next", "correlation_seed"][:, :-1]
        assert torch.equal(inside[~done[:, :-1]], seed[:, 1:][~done[:, :-1]])
    assert abs(seed[:, 0].mean()) < 1
    first = seed[:, 0]
    assert torch.cdist(first, first).add(torch.eye(8)).min() > 1e-4  # environments differ


def test_a_partial_reset_keeps_the_other_environments_seeds():
    env = TransformedEnv(
        make_env("grid/predator_prey", num_envs=8), CorrelationSeed(3, per="episode", out_key=SEED)
    )
    td = env.reset()
    before = td[SEED].clone()
    half = torch.arange(8) % 2 == 0
    td["_reset"] = half.unsqueeze(-1)
    after = env.reset(td)[SEED]
    assert torch.equal(after[~half], before[~half])
    assert (after[half] != before[half]).all()


@pytest.mark.parametrize("per", ["step", "episode"])
def test_the_loss_sees_the_stored_seed(per):
    env = TransformedEnv(
        make_env("grid/predator_prey", num_envs=8, max_steps=5), CorrelationSeed(3, per=per)
    )
    policy = AgentMixerPolicy.from_env(env, modifier_kwargs={"seed_dim": 3, "head_gain": 2.0})
    critic = value_module(CentralCritic(state_dim(env)))
    with torch.no_grad():
        rollout, _ = staggered_rollout(env, policy)
    data = advantage(rollout, critic)
    log_prob = policy.get_dist(data.clone()).log_prob(data["agents", "action"])
    torch.testing.assert_close(log_prob, data["action_log_prob"], rtol=1e-4, atol=1e-4)
    loss = ClipPPOLoss(policy, critic)
    loss.set_keys(action=policy.action_keys)
    assert loss(data.clone())["kl_approx"].abs() < 1e-5
    data["correlation_seed"] = data["correlation_seed"].flip(0)
    assert loss(data)["clip_fraction"] > 0.05


def test_a_shared_seed_correlates_a_one_state_game():
    env = make_env("matrix/climbing", num_envs=4000)
    torch.manual_seed(0)
    policy = AgentMixerPolicy.from_env(env, modifier_kwargs={"seed_dim": 2, "head_gain": 2.0})
    td = env.reset().set("correlation_seed", torch.randn(4000, 2))
    probs = policy.get_dist(td).probs.double()
    joint = (probs[:, 0, :, None] * probs[:, 1, None]).mean(0)
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint / product).log()).sum()
    assert information > 1e-3
    td["correlation_seed"] = torch.zeros(4000, 2)
    probs = policy.get_dist(td).probs
    torch.testing.assert_close(probs, probs[:1].expand_as(probs))


# -- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_categorical(fresh_compiler, backend):
    torch.manual_seed(0)
    logits, noise = torch.randn(2, 6, 2, 4)
    mask = torch.rand(6, 2, 4) < 0.6
    mask[..., 0] = True
    tau, share = torch.rand(6, 2, 1) + 0.5, torch.rand(6, 2, 1)
    action = IGCCategorical(logits, noise, mask).sample()

    def numbers(logits, noise, mask, tau, share, action):
        dist = IGCCategorical(logits, noise, mask, tau, 1.0, share)
        return dist.logits, dist.log_prob(action), dist.entropy(), dist.mode

    arguments = (logits, noise, mask, tau, share, action)
    torch.testing.assert_close(compiled(numbers, backend)(*arguments), numbers(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("cls", [IGCNormal, IGCTanhNormal])
def test_compiled_normal(fresh_compiler, cls):
    torch.manual_seed(0)
    loc, scale = torch.randn(6, 2, 3), torch.rand(6, 2, 3) + 0.1
    bounds = {} if cls is IGCNormal else {"low": -2.0, "high": 1.5}
    action = cls(loc, scale, **bounds).sample()

    def numbers(loc, scale, action):
        dist = cls(loc, scale, **bounds)
        return dist.log_prob(action), dist.entropy(), dist.deterministic_sample

    arguments = (loc, scale, action)
    torch.testing.assert_close(compiled(numbers)(*arguments), numbers(*arguments))


@pytest.mark.slow
def test_compiled_policy(fresh_compiler):
    policy, td = two_groups(seed_dim=3, consistency=0.5)
    actions = policy(td.clone()).select(*policy.action_keys)

    def numbers(td, actions):
        dist = policy.get_dist(td)
        return dist.log_prob(actions), dist.entropy(), dist.distributions["scouts"].logits

    torch.testing.assert_close(compiled(numbers)(td.clone(), actions), numbers(td.clone(), actions))
    forward = compiled(lambda td: policy(td))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        eager, out = policy(td.clone()), forward(td.clone())
    for key in (*policy.action_keys, "action_log_prob"):
        torch.testing.assert_close(out.get(key), eager.get(key))
    policy.set_coefficients(consistency=1.0)  # the graph sees it
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        out = forward(td.clone())
    deployed = mode_policy(policy.groups, policy.actors)(td.clone())
    assert torch.equal(out["scouts", "action"], deployed["scouts", "action"])


@pytest.mark.parametrize(("form", "components"), [("mixture", 0), ("perturbation", 3)])
def test_components_belong_to_the_mixture(form, components):
    env = make_env("matrix/climbing", num_envs=2)
    with pytest.raises(ValueError, match=f"got {components} for '{form}'"):
        AgentMixerPolicy.from_env(env, form=form, modifier_kwargs={"num_components": components})
