"""Equilibrium gaps: comparison with brute force, linear programs and published equilibria."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch.distributions import Categorical, Independent

from torchrl_agentmixer.diagnostics import (
    coarse_correlated_equilibrium_gap,
    correlated_equilibrium_gap,
    joint_action_probs,
    nash_gap,
)
from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    IGCCategorical,
    IGCMixture,
    IGCNormal,
)
from torchrl_agentmixer.envs import MatrixGameEnv, climbing
from torchrl_agentmixer.envs.matrix_games import stag_hunt
from torchrl_agentmixer.policies import AgentMixerPolicy

GAPS = [correlated_equilibrium_gap, coarse_correlated_equilibrium_gap, nash_gap]
COUNTS = [(3,), (2, 3), (3, 3), (2, 3, 2), (2, 2, 2, 2)]


def random_game(counts, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    payoffs = torch.randn(len(counts), *counts, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(*batch, *counts, generator=generator, dtype=torch.float64)
    return payoffs, logits.flatten(len(batch)).softmax(-1).reshape(*batch, *counts)


def expected_after(payoffs, joint, agent, modification):
    """Expected payoff of an agent that replaces each action ``a`` by ``modification[a]``."""
    total = 0.0
    for actions in product(*map(range, joint.shape)):
        played = list(actions)
        played[agent] = modification[actions[agent]]
        total += float(joint[actions]) * float(payoffs[(agent, *played)])
    return total


def brute_force(payoffs, joint, constant=False):
    """Best gain per agent over all maps of its actions, or over constant maps."""
    gains = []
    for agent, count in enumerate(joint.shape):
        maps = (
            [(b,) * count for b in range(count)] if constant else product(*[range(count)] * count)
        )
        stay = expected_after(payoffs, joint, agent, range(count))
        gains.append(max(expected_after(payoffs, joint, agent, m) - stay for m in maps))
    return torch.tensor([max(gain, 0.0) for gain in gains], dtype=torch.float64)


def product_of_marginals(joint):
    result = torch.ones_like(joint)
    for actions in product(*map(range, joint.shape)):
        for agent, action in enumerate(actions):
            result[actions] *= joint.select(agent, action).sum()
    return result


def best_equilibrium(payoffs, coarse=False):
    """Equilibrium with the largest sum of payoffs, by a linear program over joint actions."""
    counts = payoffs.shape[1:]
    constraints = []
    for agent, count in enumerate(counts):
        for b in range(count):
            rows = [range(count)] if coarse else [[a] for a in range(count) if a != b]
            for recommended in rows:
                row = torch.zeros(counts, dtype=torch.float64)
                for actions in product(*map(range, counts)):
                    if actions[agent] in recommended:
                        other = (*actions[:agent], b, *actions[agent + 1 :])
                        row[actions] = payoffs[(agent, *other)] - payoffs[(agent, *actions)]
                constraints.append(row.flatten().numpy())
    size = torch.Size(counts).numel()
    welfare = payoffs.sum(0).flatten().numpy()
    solved = linprog(
        -welfare, A_ub=constraints, b_ub=[0] * len(constraints), A_eq=[[1] * size], b_eq=[1]
    )
    assert solved.success
    return torch.tensor(solved.x).reshape(counts), -solved.fun


def point(counts, actions):
    joint = torch.zeros(counts)
    joint[tuple(actions)] = 1
    return joint


# Exact gaps.


@pytest.mark.parametrize("counts", COUNTS)
def test_gaps_match_brute_force(counts):
    payoffs, joints = random_game(counts, batch=(4,))
    for joint in [*joints, point(counts, [0] * len(counts)).double()]:
        independent = product_of_marginals(joint)
        for gap, expected in [
            (correlated_equilibrium_gap(payoffs, joint), brute_force(payoffs, joint)),
            (coarse_correlated_equilibrium_gap(payoffs, joint), brute_force(payoffs, joint, True)),
            (nash_gap(payoffs, joint), brute_force(payoffs, independent, True)),
            (nash_gap(payoffs, independent), brute_force(payoffs, independent)),
        ]:
            torch.testing.assert_close(gap.per_agent, expected)
            assert gap.gap == gap.per_agent.max()


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("function", GAPS)
def test_batches(function, counts):
    payoffs, joint = random_game(counts, batch=(5, 2))
    gap, per_agent = function(payoffs, joint)
    assert gap.shape == (5, 2)
    assert per_agent.shape == (5, 2, len(counts))
    torch.testing.assert_close(per_agent[3, 1], function(payoffs, joint[3, 1]).per_agent)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [(3, 3), (2, 3, 2)])
def test_optimal_equilibria_of_linear_programs(counts, seed):
    payoffs, other = random_game(counts, seed)
    correlated, welfare = best_equilibrium(payoffs)
    assert correlated_equilibrium_gap(payoffs, correlated).gap < 1e-8
    coarse, coarse_welfare = best_equilibrium(payoffs, coarse=True)
    assert coarse_correlated_equilibrium_gap(payoffs, coarse).gap < 1e-8
    assert coarse_welfare >= welfare - 1e-8
    perturbed = 0.7 * correlated + 0.3 * other
    gap = correlated_equilibrium_gap(payoffs, perturbed)
    torch.testing.assert_close(gap.per_agent, brute_force(payoffs, perturbed))
    assert gap.gap > 1e-2


def test_a_coarse_equilibrium_that_is_not_a_correlated_equilibrium():
    """The result of Moulin and Vial: coarse correlated equilibria can have larger payoffs."""
    payoffs = random_game((3, 3), 4)[0]
    coarse, welfare = best_equilibrium(payoffs, coarse=True)
    assert welfare > best_equilibrium(payoffs)[1] + 0.5
    assert correlated_equilibrium_gap(payoffs, coarse).gap > 1e-2


def test_chicken():
    """Aumann's equilibrium (1/3, 1/3, 1/3) pays 5 to each agent."""
    row = torch.tensor([[6.0, 2.0], [7.0, 0.0]])
    payoffs = torch.stack([row, row.T])
    third = torch.tensor([[1.0, 1.0], [1.0, 0.0]]) / 3
    assert correlated_equilibrium_gap(payoffs, third).gap < 1e-6
    assert (payoffs * third).sum((1, 2)).tolist() == pytest.approx([5, 5])
    # If told to yield, the other agent yields with x / (x + y): dare if 7 x > 6 x + 2 y.
    kind = torch.tensor([[0.6, 0.2], [0.2, 0.0]])
    gap = correlated_equilibrium_gap(payoffs, kind)  # 0.6 * (7 - 6) - 0.2 * (2 - 0)
    assert gap.per_agent.tolist() == pytest.approx([0.2, 0.2], abs=1e-5)
    mixed = torch.tensor([2 / 3, 1 / 3])
    assert nash_gap(payoffs, [mixed, mixed]).gap < 1e-6
    assert nash_gap(payoffs, third).gap < 1e-6  # its marginals are the mixed equilibrium
    assert nash_gap(payoffs, [mixed.flip(0), mixed]).per_agent[1] > 0.1


def test_rock_paper_scissors():
    payoff = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    payoffs, uniform = torch.stack([payoff, -payoff]), torch.full((3,), 1 / 3)
    assert nash_gap(payoffs, [uniform, uniform]).gap < 1e-6
    rock = torch.tensor([1.0, 0.0, 0.0])
    assert nash_gap(payoffs, [rock, uniform]).per_agent.tolist() == pytest.approx([0, 1], abs=1e-6)


def test_shapley():
    """Nash: uniform, 1/3 per agent. Correlated: only cells that pay one agent, 1/2 per agent."""
    row = torch.eye(3)
    column = row.roll(1, dims=1)
    payoffs = torch.stack([row, column])
    assert nash_gap(payoffs, [torch.full((3,), 1 / 3)] * 2).gap < 1e-6
    never_miss = (row + column) / 6
    assert correlated_equilibrium_gap(payoffs, never_miss).gap < 1e-6
    assert (payoffs * never_miss).sum((1, 2)).tolist() == pytest.approx([0.5, 0.5])
    assert correlated_equilibrium_gap(payoffs, row / 3).per_agent.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("payoff", "equilibria"),
    [
        (climbing(), {(1, 1), (2, 0)}),
        (stag_hunt(3), {(0, 0, 0), (1, 1, 1)}),
        (torch.tensor([[10.0, 0.0], [0.0, 2.0]]), {(0, 0), (1, 1)}),
    ],
)
def test_pure_equilibria_of_team_games(payoff, equilibria):
    points = list(product(*map(range, payoff.shape)))
    for function in GAPS:
        gaps = function(payoff, torch.stack([point(payoff.shape, p) for p in points])).gap
        assert {p for p, gap in zip(points, gaps, strict=True) if gap == 0} == equilibria


def test_gaps_are_not_negative():
    """Also where every deviation has a negative gain."""
    payoffs, both = torch.eye(2), torch.eye(2) / 2
    assert [function(payoffs, both).gap.item() for function in GAPS] == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(COUNTS), st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-10, 10))
def test_gaps_are_ordered(counts, seed, scale, shift):
    payoffs, joint = random_game(counts, seed, batch=(3,))
    correlated = correlated_equilibrium_gap(payoffs, joint).per_agent
    coarse = coarse_correlated_equilibrium_gap(payoffs, joint).per_agent
    assert (coarse >= 0).all()
    assert (coarse <= correlated + 1e-12).all()
    independent = torch.stack([product_of_marginals(j) for j in joint])
    nash = nash_gap(payoffs, joint).per_agent
    for function in GAPS:
        torch.testing.assert_close(function(payoffs, independent).per_agent, nash)
    moved = correlated_equilibrium_gap(payoffs * scale + shift, joint).per_agent
    torch.testing.assert_close(moved, correlated * scale)


def test_team_payoffs():
    payoff, joint = random_game((2, 3, 2))
    payoff = payoff[0]
    for function in GAPS:
        common = function(payoff, joint)
        torch.testing.assert_close(common, function(payoff.expand(3, *payoff.shape), joint))


@pytest.mark.parametrize("function", GAPS)
def test_ambiguous_layouts_are_resolved_by_the_probabilities(function):
    """``[2, 2, 2]``: a team payoff of three agents, or payoffs of two agents and a batch of 2."""
    payoffs, joint = random_game((2, 2), batch=(2,))
    assert function(payoffs, joint).per_agent.shape == (2, 2)
    assert function(payoffs, joint / 2).per_agent.shape == (3,)


def test_integer_payoffs_and_single_precision():
    joint = torch.full((2, 2), 0.25)
    gap = correlated_equilibrium_gap(torch.eye(2, dtype=torch.long), joint)
    assert gap.gap.dtype == torch.float32
    assert gap.gap == 0


@pytest.mark.parametrize("function", GAPS)
@pytest.mark.parametrize(
    ("payoffs", "joint", "message"),
    [
        (torch.zeros(2, 3, 3), torch.ones(3, 2) / 6, r"\(2, 3, 3\) and \(3, 2\)"),
        (torch.zeros(()), torch.ones(()), r"got \(\) and \(\)"),
        (torch.zeros(2, 2), torch.ones(2, 2), "sums from 4 to 4"),
        (torch.zeros(2, 2), torch.tensor([[1.5, -0.5], [0.0, 0.0]]), "smallest entry of -0.5"),
        (torch.zeros(2, 2), torch.full((2, 2), torch.nan), "entry of nan"),
        (torch.full((2, 2), torch.inf), torch.ones(2, 2) / 4, "finite `payoffs`"),
        (torch.zeros(2, 2), torch.eye(2, dtype=torch.long), "floating point"),
    ],
)
def test_errors(function, payoffs, joint, message):
    with pytest.raises(ValueError, match=message):
        function(payoffs, joint)


def test_errors_of_marginals():
    with pytest.raises(ValueError, match=r"policies\[1\].*sums from 2 to 2"):
        nash_gap(torch.zeros(2, 2), [torch.tensor([0.5, 0.5]), torch.ones(2)])
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        nash_gap(torch.zeros(2, 2), [torch.tensor([0.5, 0.5]), torch.ones(3) / 3])
    with pytest.raises(ValueError, match="at least one policy"):
        nash_gap(torch.zeros(2, 2), [])


# Joint action probabilities.


def mask_of(n_actions, batch, n):
    mask = torch.rand(*batch, n, n_actions) < 0.6
    mask[..., 1] = True
    return mask


def distributions(n=3, k=4, batch=(2, 5)):
    torch.manual_seed(0)
    logits, mask = torch.randn(*batch, n, k), mask_of(k, batch, n)
    noise, weights = 3 * torch.randn(*batch, n, 3, k), torch.randn(*batch, 3)
    return {
        "product": IGCCategorical(logits, noise[..., 0, :]),
        "per agent": IGCCategorical(logits, noise[..., 0, :], joint=False),
        "masked": IGCCategorical(logits, noise[..., 0, :], mask),
        "mixture": IGCMixture(logits, noise, weights, modified_share=0.8),
        "masked mixture": IGCMixture(logits, noise, weights, mask, strength=2.0),
        "categorical": Independent(Categorical(logits=logits), 1),
        "one agent": IGCMixture(logits[..., :1, :], noise[..., :1, :, :], weights),
    }


@pytest.mark.parametrize("name", distributions())
def test_joint_probabilities_match_log_prob(name):
    dist = distributions()[name]
    n = 1 if name == "one agent" else 3
    probs = joint_action_probs(dist)
    assert probs.shape == (2, 5, *[4] * n)
    for actions in product(range(4), repeat=n):
        log_prob = dist.log_prob(torch.tensor(actions).expand(2, 5, n))
        log_prob = log_prob.sum(-1) if name == "per agent" else log_prob
        torch.testing.assert_close(probs[(..., *actions)], log_prob.exp())


def test_joint_probabilities_of_groups():
    torch.manual_seed(0)
    mixture = IGCMixture(torch.randn(2, 2, 3), 3 * torch.randn(2, 2, 4, 3), torch.randn(2, 4))
    single = IGCCategorical(torch.randn(2, 1, 4))
    dist = GroupedDistribution({"a": mixture, "b": single})
    probs = joint_action_probs(dist)
    assert probs.shape == (2, 3, 3, 4)
    for a, b, c in product(range(3), range(3), range(4)):
        expected = dist.log_prob(torch.tensor([[a, b]] * 2), torch.tensor([[c]] * 2)).exp()
        torch.testing.assert_close(probs[:, a, b, c], expected)


def test_agents_with_different_numbers_of_actions():
    env = MatrixGameEnv(torch.arange(6.0).reshape(2, 3), num_envs=4)
    policy = AgentMixerPolicy.from_env(env)
    probs = joint_action_probs(policy.get_dist(env.reset()), (2, 3))
    assert probs.shape == (4, 2, 3)
    assert correlated_equilibrium_gap(env.payoff, probs).per_agent.shape == (4, 2)


@pytest.mark.parametrize("num_components", [0, 16])
def test_gap_of_a_policy_matches_its_samples(num_components):
    """The gap equals a Monte Carlo estimate of the best deviation's gain."""
    torch.manual_seed(1)
    payoff = stag_hunt(3)
    env = MatrixGameEnv(payoff, num_envs=1)
    policy = AgentMixerPolicy.from_env(env, modifier_kwargs={"num_components": num_components})
    dist = policy.get_dist(env.reset())
    gap = correlated_equilibrium_gap(payoff, joint_action_probs(dist)).per_agent[0]
    actions = dist.sample((200_000,))[:, 0]
    for agent in range(3):
        other = actions.clone()
        other[:, agent] = 1 - other[:, agent]
        gain = payoff[tuple(other.unbind(-1))] - payoff[tuple(actions.unbind(-1))]
        told = torch.stack([gain * (actions[:, agent] == a) for a in (0, 1)]).mean(-1)
        assert told.clamp_min(0).sum().item() == pytest.approx(gap[agent].item(), abs=0.06)


def test_errors_of_joint_probabilities():
    dist = IGCCategorical(torch.zeros(20, 3))
    with pytest.raises(ValueError, match=f"at most {2**20} joint actions, got {3**20}"):
        joint_action_probs(dist)
    with pytest.raises(ValueError, match="`n_actions` of 20 agents"):
        joint_action_probs(dist, [3] * 19)
    with pytest.raises(ValueError, match="from 1 to"):
        joint_action_probs(dist, [4] * 20)
    with pytest.raises(TypeError, match="IGCNormal"):
        joint_action_probs(IGCNormal(torch.zeros(2, 1), torch.ones(2, 1)))
