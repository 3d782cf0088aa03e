"""Mixture of joint Gaussian policies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from torchrl_agentmixer.distributions import (
    GroupedNormalMixture,
    IGCNormal,
    IGCNormalMixture,
    IGCTanhNormal,
    IGCTanhNormalMixture,
)


def parameters(batch=(), n=3, m=4, a=2, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    loc = torch.randn(*batch, n, a, dtype=dtype)
    scale = 0.2 + torch.rand(*batch, n, a, dtype=dtype)
    return (
        loc,
        scale,
        torch.randn(*batch, n, m, a, dtype=dtype),
        torch.randn(*batch, m, dtype=dtype),
    )


def density(loc, scale, x, logits, strength, share, action):
    """Transcription: the density of one joint action ``[n, a]`` by loops."""
    product = Normal(loc, scale).log_prob(action).sum().exp()
    total = (1 - share) * product
    weights = logits.softmax(-1)
    for m, weight in enumerate(weights):
        mean, narrow = loc + strength * x[:, m], scale * math.exp(-1.5 * strength)
        total = total + share * weight * Normal(mean, narrow).log_prob(action).sum().exp()
    return total


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.floats(0, 1.5),
    st.floats(0.05, 0.95),
)
def test_log_prob_against_a_transcription(seed, n, m, strength, share):
    loc, scale, x, logits = parameters(n=n, m=m, seed=seed)
    action = loc + 0.3 * torch.randn_like(loc)
    expected = density(loc, scale, x, logits, strength, share, action).log()
    args = loc, scale, x, logits, strength, share
    team = IGCNormalMixture(*args).log_prob(action)
    agents = IGCNormalMixture(*args, joint=False).log_prob(action)
    assert agents.shape == (n,)
    torch.testing.assert_close(team, expected)
    torch.testing.assert_close(agents.sum(), expected)


def test_per_agent_log_probs_are_conditional():
    """Bayes: the second agent's term is its density under the posterior of the component."""
    loc, scale, x, logits = parameters(n=2, m=3, a=1)
    dist = IGCNormalMixture(loc, scale, x, logits, 1.0, 0.7, joint=False)
    action = torch.randn(2, 1, dtype=torch.float64)
    each = dist.component_log_prob(action)  # [1 + m, 2]
    posterior = (dist.log_weights + each[:, 0]).softmax(0)
    expected = (posterior * each[:, 1].exp()).sum().log()
    torch.testing.assert_close(dist.log_prob(action)[1], expected)


@pytest.mark.parametrize("zero", ["strength", "modified_share"])
@pytest.mark.parametrize("joint", [True, False])
def test_it_ends_as_the_product(zero, joint):
    """IGC: at strength 0 or share 0, density, entropy and mode are the individual policies'."""
    loc, scale, x, logits = parameters((5,))
    coefficients = {"strength": 1.0, "modified_share": 0.5, zero: 0.0}
    dist = IGCNormalMixture(loc, scale, x, logits, **coefficients, joint=joint)
    product = IGCNormal(loc, scale, joint=joint)
    action = loc + torch.randn_like(loc)
    torch.testing.assert_close(dist.log_prob(action), product.log_prob(action))
    torch.testing.assert_close(dist.entropy(), product.entropy())
    assert torch.equal(dist.mode, loc)
    assert torch.equal(dist.deterministic_sample, loc)


def test_samples_have_the_density():
    """One agent, one dimension: the empirical distribution function is the integral of density."""
    loc, scale, x, logits = parameters(n=1, m=3, a=1)
    dist = IGCNormalMixture(loc, scale, x, logits, 1.0, 0.6)
    torch.manual_seed(1)
    samples = dist.sample((40_000,)).flatten()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    mass = dist.expand((4001,)).log_prob(grid[:, None, None]).exp() * (grid[1] - grid[0])
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    for point in (-1.5, -0.5, 0.0, 0.5, 1.5):
        below = mass[grid <= point].sum().item()
        assert (samples <= point).double().mean().item() == pytest.approx(below, abs=0.015)


def test_agents_draw_one_component():
    loc = torch.zeros(2, 1)
    x = torch.tensor([[-1.0], [1.0]]).expand(2, 2, 1)
    dist = IGCNormalMixture(loc, torch.full((2, 1), 0.01), x, torch.zeros(2))
    first, second = dist.sample((500,)).squeeze(-1).sign().unbind(-1)
    assert torch.equal(first, second)
    assert 150 < (first > 0).sum() < 350


@pytest.mark.parametrize("joint", [True, False])
def test_shapes_and_expand(joint):
    loc, scale, x, logits = parameters((4,), dtype=torch.float32)
    strength = torch.rand(4, 3, 1)
    dist = IGCNormalMixture(loc, scale, x, logits, strength, strength, joint=joint)
    expected = (4,) if joint else (4, 3)
    assert dist.batch_shape == expected
    assert dist.entropy().shape == expected
    assert dist.log_prob(dist.sample()).shape == expected
    assert dist.sample((6,)).shape == (6, 4, 3, 2)
    wide = dist.expand((7, *expected))
    action = wide.sample()
    assert action.shape == (7, 4, 3, 2)
    torch.testing.assert_close(wide.log_prob(action)[2], dist.log_prob(action[2]))


def test_gradients_reach_all_parameters():
    tensors = [t.requires_grad_() for t in parameters()]
    dist = IGCNormalMixture(*tensors, 0.5, 0.5)
    (dist.log_prob(dist.sample()) + dist.entropy()).backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_gradients_are_finite_at_the_ends(strength):
    for share in (0.0, 1.0):
        tensors = [t.requires_grad_() for t in parameters()]
        dist = IGCNormalMixture(*tensors, strength, share)
        dist.log_prob(tensors[0].detach() + 0.1).backward()
        assert all(t.grad is None or t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize(
    ("index", "shape"), [(1, (3, 1)), (2, (3, 4, 1)), (2, (2, 4, 2)), (3, (0,)), (3, (5,))]
)
def test_wrong_shapes(index, shape):
    tensors = list(parameters())
    tensors[index] = torch.ones(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match="IGCNormalMixture: expected `scale` of the shape"):
        IGCNormalMixture(*tensors)


def test_wrong_values():
    loc, scale, x, logits = parameters()
    with pytest.raises(ValueError, match="expected `strength` >= 0, got -1"):
        IGCNormalMixture(loc, scale, x, logits, -1.0)
    with pytest.raises(ValueError, match="expected finite `perturbation`"):
        IGCNormalMixture(loc, scale, x * math.nan, logits)


@pytest.mark.parametrize("joint", [True, False])
def test_absent_agents_have_no_part(joint):
    """With a mask, the density is that of the mixture of the other agents."""
    loc, scale, x, logits = parameters((5,))
    mask = torch.tensor([True, False, True]).expand(5, 3)
    action = loc + 0.3 * torch.randn_like(loc)
    dist = IGCNormalMixture(loc, scale, x, logits, 0.8, 0.6, joint=joint, mask=mask)
    others = [0, 2]
    rest = IGCNormalMixture(*(t[:, others] for t in (loc, scale, x)), logits, 0.8, 0.6, joint=joint)
    found, expected = dist.log_prob(action), rest.log_prob(action[:, others])
    if not joint:
        torch.testing.assert_close(found[:, 1], torch.zeros(5, dtype=found.dtype))
        found = found[:, others]
    torch.testing.assert_close(found, expected)
    entropy = dist.entropy() if joint else dist.entropy()[:, others]
    torch.testing.assert_close(entropy, rest.entropy())


@pytest.mark.parametrize("joint", [True, False])
def test_squashed_log_prob_by_the_change_of_variables(joint):
    loc, scale, x, logits = parameters((5,))
    low, high = -2.0, torch.tensor([1.0, 4.0], dtype=loc.dtype)
    args = loc, scale, x, logits, 0.7, 0.6
    plain, y = IGCNormalMixture(*args, joint=joint), loc + 0.3 * torch.randn_like(loc)
    squashed = IGCTanhNormalMixture(*args, joint=joint, low=low, high=high)
    action = low + (high - low) * (y.tanh() + 1) / 2
    stretch = ((high - low) / 2 * (1 - y.tanh().square())).log().sum(-1)
    expected = plain.log_prob(y) - (stretch.sum(-1) if joint else stretch)
    torch.testing.assert_close(squashed.log_prob(action), expected)
    samples = squashed.sample((200,))
    assert (samples > low).all()
    assert (samples < high).all()


@pytest.mark.parametrize("joint", [True, False])
def test_squashed_plans_end_as_the_product(joint):
    loc, scale, x, logits = parameters((5,))
    bounds = {"low": -2.0, "high": torch.tensor([1.0, 4.0], dtype=loc.dtype)}
    dist = IGCTanhNormalMixture(loc, scale, x, logits, 0.0, 0.5, joint=joint, **bounds)
    product = IGCTanhNormal(loc, scale, joint=joint, **bounds)
    action = product.sample()
    torch.testing.assert_close(dist.log_prob(action), product.log_prob(action))
    torch.testing.assert_close(dist.entropy(), product.entropy())
    torch.testing.assert_close(dist.mode, product.deterministic_sample)
    assert torch.equal(dist.individual_mode, dist.mode)


def test_groups_draw_one_component():
    """The density of two groups is that of one mixture over all their agents."""
    loc, scale, x, logits = parameters((5,), n=4)
    whole = IGCNormalMixture(loc, scale, x, logits, 0.8, 0.6)
    parts = [[t[:, a:b] for t in (loc, scale, x)] for a, b in ((0, 1), (1, 4))]
    team = GroupedNormalMixture(
        {
            name: IGCNormalMixture(*own, logits, 0.8, 0.6)
            for name, own in zip("ab", parts, strict=True)
        }
    )
    action = whole.sample()
    split = action.split([1, 3], -2)
    torch.testing.assert_close(team.log_prob(*split), whole.log_prob(action))
    torch.testing.assert_close(team.entropy(), whole.entropy())
    torch.testing.assert_close(torch.cat(team.mode, -2), whole.mode)
    apart = GroupedNormalMixture(
        {
            name: IGCNormalMixture(
                torch.zeros(2, 1),
                torch.full((2, 1), 0.01),
                torch.tensor([[-1.0], [1.0]]).expand(2, 2, 1),
                torch.zeros(2),
            )
            for name in "ab"
        }
    )
    first, second = (part.sign().squeeze(-1) for part in apart.sample((200,)))
    assert torch.equal(first, second)
    assert first.unique().numel() == 2
