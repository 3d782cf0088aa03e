"""MAT against enumeration; MAT-Dec; learning and errors of both."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.value import GAE

from torchrl_agentmixer.algorithms import MATConfig, make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import ActionDecoder, ObservationEncoder
from torchrl_agentmixer.policies import Greedy, TransformerPolicy

SIZES = {"n_agents": 3, "observation_dim": 4}
AGENTS = AgentGroup("agents", **SIZES, action_dim=3, discrete=True)
MASKED = AgentGroup("agents", **SIZES, action_dim=3, discrete=True, masked=True)
MOVERS = AgentGroup("agents", **SIZES, action_dim=2, discrete=False)
MASK = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
TRANSFORMER = {"width": 16, "num_heads": 2, "num_blocks": 2}
ONE_STEP = {"epochs": 1, "num_minibatches": 1}


def make_policy(group, **kwargs):
    """Scale parameters, so that the conditionals differ."""
    torch.manual_seed(0)
    encoder = ObservationEncoder(3, 4, **TRANSFORMER)
    policy = TransformerPolicy.build(group, encoder, head_gain=0.5, **TRANSFORMER, **kwargs)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "individual" in key and "blocks" in key and "norms" not in key:
                parameter.normal_(std=0.5)
    return policy


def observed(group, *batch):
    agents = {"observation": torch.randn(*batch, group.n_agents, group.observation_dim)}
    if group.masked:
        agents["action_mask"] = MASK.expand(*batch, -1, -1)
    return TensorDict({group.name: agents}, batch)


def every_joint_action(group):
    """One observation, with each joint action once: ``[27]``."""
    actions = torch.tensor(list(product(range(3), repeat=3)))
    data = observed(group, 1).expand(27).clone()
    return data.set((group.name, "action"), actions)


def conditional_by_hand(policy, data, agent):
    """One agent's conditional, with arbitrary values for later actions."""
    group = policy.group
    action = data[group.name, "action"].clone()
    later = action[:, agent:]
    action[:, agent:] = torch.randint_like(later, 3) if group.discrete else torch.randn_like(later)
    with torch.no_grad():
        representation = policy.encoder.module(data[group.name, "observation"])
        params = policy.individual.module[0].module(representation, action)
    params = params if isinstance(params, tuple) else (params,)
    params = [p[:, agent] for p in params]
    if not group.discrete:
        return Normal(*params)
    (logits,) = params
    if group.masked:
        logits = logits.masked_fill(~MASK[agent], -torch.inf)
    return Categorical(logits=logits)


@pytest.mark.parametrize("group", [AGENTS, MASKED], ids=["free", "masked"])
class TestJointProbability:
    def test_is_the_chain_rule_over_all_joint_actions(self, group):
        policy = make_policy(group)
        data = every_joint_action(group)
        action = data["agents", "action"]
        log_prob = policy.get_dist(data).log_prob(action)
        assert log_prob.shape == (27, 3)
        probability = log_prob.sum(-1).exp()
        assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
        terms = [
            conditional_by_hand(policy, data, agent).log_prob(action[:, agent])
            for agent in range(3)
        ]
        torch.testing.assert_close(probability, sum(terms).exp())
        if group.masked:
            allowed = MASK[torch.arange(3), action].all(-1)
            assert (probability[~allowed] == 0).all()
            assert (probability[allowed] > 0).all()

    def test_no_product_of_individual_policies_has_it(self, group):
        policy = make_policy(group)
        data = every_joint_action(group)
        probability = policy.get_dist(data).log_prob(data["agents", "action"]).sum(-1).exp()
        joint = probability.reshape(3, 3, 3)
        marginals = [joint.sum(dim=[d for d in range(3) if d != i]) for i in range(3)]
        assert (joint - torch.einsum("i,j,k->ijk", *marginals)).abs().sum() > 0.02

    def test_sampling_frequencies_match_enumeration(self, group):
        policy = make_policy(group)
        data = every_joint_action(group)
        with torch.no_grad():
            probability = policy.get_dist(data).log_prob(data["agents", "action"]).sum(-1).exp()
            drawn = policy(data[:1].expand(40_000).exclude(("agents", "action")).clone())
        code = (drawn["agents", "action"] * torch.tensor([9, 3, 1])).sum(-1)
        frequency = torch.bincount(code, minlength=27) / 40_000
        deviation = (frequency - probability).abs()
        assert (deviation < 5 * (probability * (1 - probability) / 40_000).sqrt() + 1e-9).all()

    def test_entropy_is_the_joint_one_in_expectation(self, group):
        policy = make_policy(group)
        data = every_joint_action(group)
        dist = policy.get_dist(data)
        log_joint = dist.log_prob(data["agents", "action"]).sum(-1)
        joint = -(log_joint.exp() * log_joint.clamp(min=-1e3)).sum()
        torch.testing.assert_close((log_joint.exp() * dist.entropy().sum(-1)).sum(), joint)

    def test_execution_takes_the_conditionals_modes_in_order(self, group):
        policy = make_policy(group)
        data = observed(group, 50)
        chosen = Greedy(policy)(data.copy())["agents", "action"]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            assert torch.equal(policy(data.copy())["agents", "action"], chosen)
        data["agents", "action"] = torch.zeros(50, 3, dtype=torch.int64)
        for agent in range(3):
            mode = conditional_by_hand(policy, data, agent).probs.argmax(-1)
            data["agents", "action"][:, agent] = mode
        assert torch.equal(chosen, data["agents", "action"])
        assert len(chosen.unique(dim=0)) > 1


@pytest.mark.parametrize("group", [AGENTS, MASKED, MOVERS], ids=["free", "masked", "continuous"])
@pytest.mark.parametrize("batch", [(), (20,), (4, 5)], ids=str)
def test_parallel_log_probabilities_are_those_of_decoding(group, batch):
    policy = make_policy(group)
    data = policy(observed(group, *batch)).detach()
    action = data["agents", "action"]
    assert action.shape == (*batch, 3) if group.discrete else (*batch, 3, 2)
    parallel = policy.get_dist(data).log_prob(action)
    torch.testing.assert_close(parallel, data["agents", "action_log_prob"], atol=1e-5, rtol=1e-4)
    flat = data.reshape(-1)
    for agent in range(3):
        dist = conditional_by_hand(policy, flat, agent)
        log_prob = dist.log_prob(flat["agents", "action"][:, agent])
        expected = log_prob if group.discrete else log_prob.sum(-1)
        torch.testing.assert_close(parallel.reshape(-1, 3)[:, agent], expected)


@pytest.mark.parametrize("group", [AGENTS, MOVERS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("agent", range(3))
def test_the_decoder_is_causal_in_actions_and_not_in_observations(group, agent):
    policy = make_policy(group)
    data = policy(observed(group, 20)).detach()
    leaf = group.param_keys[0][-1]

    def parameters(data):
        with torch.no_grad():
            return getattr(policy.get_dist(data), leaf)[:, agent]

    before = parameters(data)
    for changed in range(3):
        other = data.clone()
        action = other["agents", "action"]
        action[:, changed] = (action[:, changed] + 1) % 3 if group.discrete else 2.0
        after = parameters(other)
        if changed < agent:
            assert (before != after).flatten(1).any(1).all()
        else:
            assert torch.equal(before, after)
        other = data.clone()
        other["agents", "observation"][:, changed] += 1.0
        assert (before != parameters(other)).flatten(1).any(1).all()


def test_the_gradient_of_a_log_probability_is_causal():
    """No gradient path exists from later actions to an agent's policy."""
    torch.manual_seed(0)
    decoder = ActionDecoder(4, 2, 2, discrete=False, **TRANSFORMER)
    action = torch.randn(5, 4, 2, requires_grad=True)
    for agent in range(4):
        output = decoder(torch.randn(5, 4, 16), action)[:, agent].square().sum()
        (grad,) = torch.autograd.grad(output, action, retain_graph=True)
        reached = grad.abs().sum((0, 2)) > 0
        assert reached.tolist() == [other < agent for other in range(4)]


def test_masked_actions_are_never_drawn():
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.randn(2, 4, 3), num_envs=500, seed=0)
    algorithm = make_algorithm("mat", env, 10_000, ONE_STEP)
    for _ in range(3):
        data = env.rollout(1, algorithm.policy).detach()
        action = data["agents", "action"].flatten(0, -2)
        assert (action < torch.tensor([2, 4, 3])).all()
        assert action.max(0).values.tolist() == [1, 3, 2]
        assert algorithm.update(data)["ratio"] == pytest.approx(1.0, abs=1e-5)
    action = env.rollout(1, algorithm.execution_policy)["agents", "action"]
    assert (action < torch.tensor([2, 4, 3])).all()


def test_an_agent_without_a_choice_adds_nothing():
    """An agent with only a no-op has no log-probability, no entropy and no gradient."""
    group = AgentGroup("agents", **SIZES, action_dim=3, discrete=True, masked=True)
    policy = make_policy(group)
    data = observed(group, 30)
    data["agents", "action_mask"] = data["agents", "action_mask"].clone()
    data["agents", "action_mask"][:, 1] = torch.tensor([True, False, False])
    data = policy(data).detach()
    assert (data["agents", "action"][:, 1] == 0).all()
    dist = policy.get_dist(data)
    for term in (dist.log_prob(data["agents", "action"]), dist.entropy()):
        assert (term[:, 1] == 0).all()
        assert (term[:, 0] != 0).all()
        gradients = torch.autograd.grad(
            term[:, 1].sum(), policy.parameters(), allow_unused=True, retain_graph=True
        )
        assert all(g is None or (g == 0).all() for g in gradients)


def test_squashed_actions_keep_their_bounds():
    bounds = {"low": -2 * torch.ones(3, 2), "high": 2 * torch.ones(3, 2)}
    group = AgentGroup("agents", **SIZES, action_dim=2, discrete=False, **bounds)
    policy = make_policy(group, distribution="tanh_normal")
    data = policy(observed(group, 500)).detach()
    assert data["agents", "action"].abs().max() <= 2.0
    log_prob = policy.get_dist(data).log_prob(data["agents", "action"])
    torch.testing.assert_close(log_prob, data["agents", "action_log_prob"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mat", "mat_dec"])
def test_advantage_is_gae_with_the_mean_of_the_agents_values(name):
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=4, penalty=-1.0, seed=0)
    algorithm = make_algorithm(name, env, 10_000)
    data = env.rollout(20, algorithm.policy, break_when_any_done=False).detach()
    with torch.no_grad():
        algorithm.advantage(data)
    value = data["agents", "state_value"]
    assert (value[..., 0, :] != value[..., 1, :]).any()
    team = GAE(gamma=0.99, lmbda=0.95, value_network=None)
    with torch.no_grad():
        after = algorithm.critic(data["next"].clone())["agents", "state_value"]
    mean = data.select("next").clone()
    mean["state_value"], mean["next", "state_value"] = value.mean(-2), after.mean(-2)
    expected = team(mean)["advantage"]
    for agent in range(2):
        actual = data["agents", "advantage"][..., agent, :]
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_the_encoder_learns_from_both_losses():
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    algorithm = make_algorithm("mat", env, 10_000)
    data = env.rollout(8, algorithm.policy, break_when_any_done=False).detach()
    with torch.no_grad():
        algorithm.advantage(data)
    losses = algorithm.loss(data.reshape(-1))
    weight = algorithm.policy.encoder.module.embed[0].weight
    for name in ("loss_objective", "loss_critic"):
        (grad,) = torch.autograd.grad(losses[name], weight, retain_graph=True)
        assert (grad != 0).any(), name
    owned = [id(p) for group in algorithm.optimizer.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned)) == len(list(algorithm.parameters()))


def test_mat_dec_acts_on_own_observations_alone():
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=50, seed=0)
    algorithm = make_algorithm("mat_dec", env, 10_000, {"lr": 1e-2})
    for _ in range(2):
        algorithm.update(env.rollout(8, algorithm.policy, break_when_any_done=False).detach())
    data = env.reset()
    other = data.clone()
    other["agents", "observation"][:, 1] = torch.randn_like(other["agents", "observation"][:, 1])
    logits = [algorithm.policy(x.copy())["agents", "logits"] for x in (data, other)]
    assert torch.equal(logits[0][:, 0], logits[1][:, 0])
    assert not torch.equal(logits[0][:, 1], logits[1][:, 1])
    values = [algorithm.critic(x.copy())["agents", "state_value"] for x in (data, other)]
    assert (values[0][:, 0] != values[1][:, 0]).all()  # the critic attends to all agents


@pytest.mark.parametrize("name", ["mat", "mat_dec"])
def test_learns_continuous_actions(name):
    """One-step game with one observation: the optimal action of every agent is 0.3."""
    torch.manual_seed(0)
    env = make_env("vmas/predator_prey", num_envs=6, seed=0)
    algorithm = make_algorithm(name, env, 10_000, {"lr": 3e-3, "epochs": 10, "num_minibatches": 1})
    policy, data = algorithm.policy, env.rollout(1).expand(6, 20).clone()
    data["next", "done"] = data["next", "terminated"] = torch.ones(6, 20, 1, dtype=torch.bool)
    distances = []
    for _ in range(20):
        with torch.no_grad():
            data.update(policy(data.clone()).select(*policy.out_keys))
        miss = (data["agents", "action"] - 0.3).square().sum((-1, -2))
        algorithm.update(data.set(("next", "reward"), -miss.unsqueeze(-1)))
        mode = algorithm.execution_policy(data.clone())["agents", "action"]
        distances.append((mode - 0.3).abs().mean().item())
    assert distances[-1] < 0.5 * distances[0]


def test_mat_finds_the_best_answer_to_a_first_move():
    """The second agent learns the best response to each action of the first."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    config = {"lr": 1e-3, "epochs": 4, "num_minibatches": 1, "entropy_coeff": 0.3}
    algorithm = make_algorithm("mat", env, 60 * 200, config)
    for _ in range(60):
        algorithm.update(env.rollout(1, algorithm.policy).detach())
    assert env.rollout(1, algorithm.execution_policy)["next", "reward"].mean() == 1.0
    data = env.reset()[:3]
    data["agents", "action"] = torch.arange(3).unsqueeze(-1).expand(3, 2)
    with torch.no_grad():
        dist = algorithm.policy.get_dist(data)
    answer = dist.log_prob(data["agents", "action"])[:, 1].exp()
    assert (answer > 0.8).all(), answer


class TestRefusals:
    @pytest.mark.parametrize("name", ["mat", "mat_dec"])
    def test_several_groups(self, name):
        env = make_env("vmas/simple_tag", reward="mean", num_envs=2, seed=0)
        with pytest.raises(ValueError, match=r"one group of agents, got \['adversary', 'agent'\]"):
            make_algorithm(name, env, 100)

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            ("mat", "memory_dim"),
            ("mat", "actor_hidden"),
            ("mat", "share_params"),
            ("mat", "critic_hidden"),
            ("mat_dec", "critic_hidden"),
        ],
    )
    def test_options_that_it_does_not_have(self, name, option):
        env = make_env("matrix/climbing", num_envs=2)
        with pytest.raises(ValueError, match=f"hyperparameter of {name} '{option}'"):
            make_algorithm(name, env, 100, {option: 8})

    def test_sizes(self):
        with pytest.raises(ValueError, match="expected `num_blocks` >= 1, got 0"):
            MATConfig(num_blocks=0)
        with pytest.raises(ValueError, match="`num_heads` >= 1 that divides `width` 16, got 3"):
            ObservationEncoder(3, 4, width=16, num_heads=3)
        with pytest.raises(ValueError, match=r"shape \[\*B, 3, 4\], got \(2, 3, 5\)"):
            ObservationEncoder(3, 4)(torch.zeros(2, 3, 5))


def test_one_agent_is_a_team():
    env = MatrixGameEnv(torch.tensor([0.0, 1.0, 0.0]), num_envs=50, seed=0)
    algorithm = make_algorithm("mat", env, 10_000, ONE_STEP)
    assert algorithm.update(env.rollout(1, algorithm.policy).detach())["ratio"] == pytest.approx(1)
