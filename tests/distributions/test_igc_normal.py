"""IGCNormal and IGCTanhNormal against scipy, numerical integration and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

from torchrl_agentmixer.distributions import IGCNormal, IGCTanhNormal

BOTH = pytest.mark.parametrize("cls", [IGCNormal, IGCTanhNormal])
JOINT = pytest.mark.parametrize("joint", [True, False])


def parameters(batch=(5,), n_agents=3, action_dim=2, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    loc = torch.randn(*batch, n_agents, action_dim, dtype=dtype)
    return loc, torch.rand_like(loc) + 0.2


def squashed_log_density(y, loc, scale, low=-1.0, high=1.0):
    """Plain change of variables for ``y = low + (high - low) (tanh(x) + 1) / 2``, in numpy."""
    t = 2 * (y - low) / (high - low) - 1
    log_stretch = np.log(1 - t**2) + np.log((high - low) / 2)
    return stats.norm.logpdf(np.arctanh(t), loc, scale) - log_stretch


# -- log-probability and entropy -----------------------------------------------------------------


@JOINT
def test_normal_log_prob_and_entropy_match_scipy(joint):
    loc, scale = parameters()
    dist = IGCNormal(loc, scale, joint=joint)
    action = dist.sample()
    axes = (-2, -1) if joint else (-1,)
    expected = stats.norm.logpdf(action.numpy(), loc.numpy(), scale.numpy()).sum(axes)
    np.testing.assert_allclose(dist.log_prob(action).numpy(), expected, rtol=1e-10)
    entropy = stats.norm.entropy(loc.numpy(), scale.numpy()).sum(axes)
    np.testing.assert_allclose(dist.entropy().numpy(), entropy, rtol=1e-10)


@JOINT
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.3, 2.5), (5.0, 6.0)])
def test_squashed_log_prob_matches_a_change_of_variables(joint, bounds):
    loc, scale = parameters()
    dist = IGCTanhNormal(loc, scale, low=bounds[0], high=bounds[1], joint=joint)
    action = dist.sample()
    axes = (-2, -1) if joint else (-1,)
    expected = squashed_log_density(action.numpy(), loc.numpy(), scale.numpy(), *bounds)
    np.testing.assert_allclose(dist.log_prob(action).numpy(), expected.sum(axes), rtol=1e-7)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.5), (1.3, 0.2), (-2.0, 1.0), (0.4, 2.0)])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.3, 2.5)])
def test_squashed_density_integrates_to_one_and_entropy_to_its_integral(loc, scale, bounds):
    low, high = bounds
    dist = IGCTanhNormal(
        torch.tensor([[loc]], dtype=torch.float64),
        torch.tensor([[scale]], dtype=torch.float64),
        low=low,
        high=high,
    )

    def log_density(y):
        return dist.log_prob(torch.tensor([[y]], dtype=torch.float64)).item()

    def at(x):  # integrate over the unsquashed axis, where the integrand is smooth
        y = low + (high - low) * (math.tanh(x) + 1) / 2
        return y, (high - low) / 2 * (1 - math.tanh(x) ** 2)

    def mass(x):
        y, slope = at(x)
        return math.exp(log_density(y)) * slope

    def information(x):
        y, slope = at(x)
        value = log_density(y)
        return -value * math.exp(value) * slope

    reach = min(7 * scale, 9 - abs(loc))  # 1 - tanh(x)^2 rounds to zero further out
    span = (loc - reach, loc + reach)
    total, _ = integrate.quad(mass, *span, limit=200)
    entropy, _ = integrate.quad(information, *span, limit=200)
    assert total == pytest.approx(1.0, abs=3e-3 if scale > 1 else 1e-5)
    assert dist.entropy().item() == pytest.approx(entropy, abs=3e-2 if scale > 1 else 1e-3)


@settings(max_examples=60, deadline=None)
@given(loc=st.floats(-4, 4), scale=st.floats(0.01, 2))
def test_squashed_entropy_matches_scipy_within_a_thousandth(loc, scale):
    def integrand(x):
        log_slope = 2 * (math.log(2) - x - np.logaddexp(0, -2 * x))
        return stats.norm.pdf(x, loc, scale) * log_slope

    stretch, _ = integrate.quad(integrand, loc - 12 * scale, loc + 12 * scale, limit=200)
    expected = stats.norm.entropy(loc, scale) + stretch
    at = torch.tensor([[loc]], dtype=torch.float64)
    entropy = IGCTanhNormal(at, torch.full_like(at, scale)).entropy().item()
    assert entropy == pytest.approx(expected, abs=1e-3)


@BOTH
@JOINT
def test_entropy_matches_monte_carlo(cls, joint):
    loc, scale = parameters()
    dist = cls(loc, scale, joint=joint)
    terms = -dist.log_prob(dist.sample((20_000,)))
    error = 5 * terms.std(0) / math.sqrt(len(terms))
    assert ((terms.mean(0) - dist.entropy()).abs() <= error).all()


@BOTH
def test_entropy_is_differentiable(cls):
    loc, scale = parameters()
    loc.requires_grad_()
    scale.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: cls(m, s).entropy(), (loc, scale))


@BOTH
def test_log_prob_is_differentiable(cls):
    loc, scale = parameters(batch=(2,))
    action = cls(loc, scale).sample()
    loc.requires_grad_()
    scale.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: cls(m, s).log_prob(action), (loc, scale))


@BOTH
@JOINT
def test_kl_matches_monte_carlo(cls, joint):
    p, q = cls(*parameters(seed=1), joint=joint), cls(*parameters(seed=2), joint=joint)
    kl = kl_divergence(p, q)
    assert kl.shape == p.batch_shape
    actions = p.sample((20_000,))
    terms = p.log_prob(actions) - q.log_prob(actions)
    error = 5 * terms.std(0) / math.sqrt(len(actions))
    assert ((terms.mean(0) - kl).abs() <= error).all()
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros_like(kl))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.3, 2.5)])
def test_squashed_kl_is_that_of_the_gaussians_inside(bounds):
    low, high = bounds
    p, q = (IGCTanhNormal(*parameters(seed=s), low=low, high=high) for s in (1, 2))
    inside = [IGCNormal(*parameters(seed=s)) for s in (1, 2)]
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(*inside))


def test_joint_sums_the_agents_factors():
    loc, scale = parameters()
    for cls in (IGCNormal, IGCTanhNormal):
        joint, factors = cls(loc, scale), cls(loc, scale, joint=False)
        action = joint.sample()
        torch.testing.assert_close(joint.log_prob(action), factors.log_prob(action).sum(-1))
        torch.testing.assert_close(joint.entropy(), factors.entropy().sum(-1))


# -- sampling ------------------------------------------------------------------------------------


@BOTH
def test_rsample_carries_gradients_and_sample_none(cls):
    loc, scale = (value.requires_grad_() for value in parameters())
    dist = cls(loc, scale)
    assert dist.has_rsample
    assert not dist.sample().requires_grad
    torch.manual_seed(0)
    action = dist.rsample((7,))
    torch.manual_seed(0)
    x = loc + scale * torch.normal(torch.zeros(7, *loc.shape).double(), 1.0)
    expected = x if cls is IGCNormal else x.tanh()
    torch.testing.assert_close(action, expected)
    got = torch.autograd.grad(action.sum(), (loc, scale))
    wanted = torch.autograd.grad(expected.sum(), (loc, scale))
    torch.testing.assert_close(got, wanted)


def test_samples_follow_the_gaussian():
    loc, scale = parameters(batch=())
    samples = IGCNormal(loc, scale).sample((4000,)).numpy()
    for i in range(3):
        for j in range(2):
            result = stats.kstest(samples[:, i, j], "norm", (loc[i, j].item(), scale[i, j].item()))
            assert result.pvalue > 1e-4


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    low=st.floats(-10, 10, width=32),
    width=st.floats(0.015625, 10, width=32),
    size=st.sampled_from([0.0, 1.0, 5.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    per_dim=st.booleans(),
)
def test_support_contains_every_sample(seed, low, width, size, dtype, per_dim):
    torch.manual_seed(seed)
    high = low + width
    loc = size * torch.randn(3, 2, 2, dtype=dtype)
    bounds = {"low": low, "high": high}
    if per_dim:
        bounds = {k: torch.full((2, 2), v, dtype=dtype) for k, v in bounds.items()}
    dist = IGCTanhNormal(loc, torch.rand_like(loc) + 0.01, **bounds)
    samples = dist.rsample((200,))
    assert dist.support.check(samples).all()
    assert dist.support.check(dist.deterministic_sample).all()
    assert dist.log_prob(samples).isfinite().all()
    assert dist.support.event_dim == 2


def test_supports():
    loc, scale = parameters()
    assert IGCNormal(loc, scale).support.check(torch.full_like(loc, 1e9)).all()
    squashed = IGCTanhNormal(loc, scale, low=-2.0, high=3.0)
    assert squashed.support.check(torch.full_like(loc, 2.9)).shape == (5,)
    assert squashed.support.check(torch.full_like(loc, 2.9)).all()
    assert not squashed.support.check(torch.full_like(loc, 3.1)).any()
    assert not squashed.support.check(torch.full_like(loc, -2.1)).any()
    factors = IGCTanhNormal(loc, scale, joint=False)
    assert factors.support.check(torch.full_like(loc, 0.5)).shape == (5, 3)


# -- the mode (Definition 6) ---------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_mode_is_the_individual_mode_for_any_scale(seed, size, dtype):
    torch.manual_seed(seed)
    loc = torch.randn(4, 3, 2, dtype=dtype) * size
    scales = [torch.rand_like(loc) + 1e-3, torch.rand_like(loc) * 100 + 1]
    for scale in scales:
        dist = IGCNormal(loc, scale)
        assert torch.equal(dist.mode, loc)
        assert torch.equal(dist.deterministic_sample, loc)
        nearby = loc + scale * torch.randn_like(loc)
        assert (dist.log_prob(loc) >= dist.log_prob(nearby)).all()
    one, other = (IGCTanhNormal(loc, scale) for scale in scales)
    assert torch.equal(one.deterministic_sample, other.deterministic_sample)
    torch.testing.assert_close(one.deterministic_sample, loc.tanh(), rtol=0, atol=1e-5)
    bounded = IGCTanhNormal(loc, scales[0], low=-2.0, high=6.0)
    torch.testing.assert_close(bounded.deterministic_sample, 2 + 4 * loc.tanh(), rtol=0, atol=1e-5)


def test_squashed_density_has_no_closed_form_mode():
    loc, scale = parameters()
    with pytest.raises(RuntimeError, match="mode"):
        _ = IGCTanhNormal(loc, scale).mode
    # Its density is higher nearer to the bounds than at the deterministic sample.
    at = torch.full((1, 1), 1.0, dtype=torch.float64)
    dist = IGCTanhNormal(at, torch.full_like(at, 0.8))
    assert dist.log_prob((at + 0.5).tanh()) > dist.log_prob(dist.deterministic_sample)


# -- shapes of parameters -----------------------------------------------------------------------


@BOTH
def test_scale_broadcasts(cls):
    loc, _ = parameters()
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    wide = cls(loc, scale.expand_as(loc))
    narrow = cls(loc, scale)
    action = wide.sample()
    torch.testing.assert_close(narrow.log_prob(action), wide.log_prob(action))
    torch.testing.assert_close(narrow.entropy(), wide.entropy())
    torch.testing.assert_close(narrow.scale, wide.scale)
    torch.testing.assert_close(narrow.loc, loc)


def test_bounds_per_agent_and_dimension():
    loc, scale = parameters()
    low = torch.tensor([[-1.0, 0.0], [2.0, -3.0], [0.0, 0.5]], dtype=torch.float64)
    high = low + torch.tensor([[2.0, 1.0], [0.5, 6.0], [1.0, 0.25]], dtype=torch.float64)
    dist = IGCTanhNormal(loc, scale, low=low, high=high)
    action = dist.sample((50,))
    assert (action >= low).all()
    assert (action <= high).all()
    expected = squashed_log_density(
        action.numpy(), loc.numpy(), scale.numpy(), low.numpy(), high.numpy()
    )
    np.testing.assert_allclose(dist.log_prob(action).numpy(), expected.sum((-1, -2)), rtol=1e-6)
    unit = IGCTanhNormal(loc, scale)
    stretch = ((high - low) / 2).log().sum()
    torch.testing.assert_close(dist.entropy(), unit.entropy() + stretch)


# -- errors --------------------------------------------------------------------------------------

LOC = torch.zeros(4, 2, 3)
ONES = torch.ones(4, 2, 3)


@BOTH
@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (torch.zeros(3), torch.ones(3), r"`loc` of shape \[\*B, n_agents, size\].*got \(3,\)"),
        (torch.zeros(4, 0, 3), torch.ones(4, 0, 3), r"at least one agent.*\(4, 0, 3\)"),
        (torch.zeros(4, 2, 0), torch.ones(4, 2, 0), r"one entry.*\(4, 2, 0\)"),
        (LOC, torch.ones(4, 2, 5), r"`scale` to broadcast with `loc` \(4, 2, 3\).*\(4, 2, 5\)"),
        (LOC + math.nan, ONES, r"finite `loc`, got nan at index \(0, 0, 0\)"),
        (LOC, ONES * math.inf, r"finite `scale`, got inf"),
        (LOC, ONES - 1, r"`scale` > 0, got 0\.0"),
        (LOC, -ONES, r"`scale` > 0, got -1\.0"),
    ],
)
def test_errors_name_what_came_and_what_was_expected(cls, loc, scale, message):
    with pytest.raises(ValueError, match=message) as raised:
        cls(loc, scale, validate_args=True)
    assert cls.__name__ in str(raised.value)


def test_bounds_in_the_wrong_order():
    with pytest.raises(RuntimeError, match="high"):
        IGCTanhNormal(LOC, ONES, low=1.0, high=-1.0)


@BOTH
def test_scale_of_more_dimensions_than_loc_broadcasts(cls):
    dist = cls(torch.zeros(2, 3), torch.ones(4, 2, 3))
    assert dist.sample().shape == (4, 2, 3)
    assert dist.log_prob(dist.sample()).shape == (4,)


@BOTH
def test_values_are_checked_by_default_on_the_cpu(cls):
    with pytest.raises(ValueError, match="finite `loc`"):
        cls(LOC + math.nan, ONES)
    assert cls(LOC + math.nan, ONES, validate_args=False).loc.isnan().all()


def test_normal_is_the_product_of_its_parts():
    loc, scale = parameters()
    action = torch.randn_like(loc)
    expected = Normal(loc, scale).log_prob(action).sum((-1, -2))
    torch.testing.assert_close(IGCNormal(loc, scale).log_prob(action), expected)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("cls", [IGCNormal, IGCTanhNormal])
def test_absent_agents_have_no_part_in_log_probability_and_entropy(cls, joint):
    """The team is that of the agents present: by a distribution of these alone."""
    torch.manual_seed(0)
    loc, scale = torch.randn(4, 3, 2, requires_grad=True), torch.rand(4, 3, 2) + 0.2
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()
    dist = cls(loc, scale, joint=joint, mask=mask)
    action = dist.sample()
    other = cls(loc + 1, scale, joint=joint, mask=mask)
    found = {
        "log_prob": dist.log_prob(action),
        "entropy": dist.entropy(),
        "kl": kl_divergence(dist, other),
    }
    for name, values in found.items():
        assert values.shape == ((4,) if joint else (4, 3))
        for row in range(4):
            present = mask[row]
            expected = torch.zeros(3)
            if present.any():
                alone = cls(loc[row, present], scale[row, present], joint=False)
                shifted = cls(loc[row, present] + 1, scale[row, present], joint=False)
                expected[present] = {
                    "log_prob": alone.log_prob(action[row, present]),
                    "entropy": alone.entropy(),
                    "kl": kl_divergence(alone, shifted),
                }[name]
            got = values[row]
            torch.testing.assert_close(got, expected.sum() if joint else expected)
    sum(values.sum() for values in found.values()).backward()
    assert (loc.grad[~mask] == 0).all()
    assert (loc.grad[mask] != 0).any()
