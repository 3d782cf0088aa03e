"""Entropy and KL of IGCMixture: bounds of the enumerated values, for teams of any size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import IGCCategorical, IGCMixture, igc_mixture

from .mixture_by_hand import (
    NAMES,
    coefficient,
    entropy_of,
    example,
    inputs,
    joint_by_hand,
    kl_of,
    states_by_hand,
    table_by_hand,
)


def entropy_by_hand(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def bound_by_hand(weights, policies):
    """Kolchinsky and Tracey's bound, over enumerated joint actions, and the conditional entropy."""
    joints = [joint_by_hand(agents) for agents in policies]
    conditional = sum(w * entropy_by_hand(p) for w, p in zip(weights, joints, strict=True))
    bound = conditional
    for w, p in zip(weights, joints, strict=True):
        overlaps = [sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)) for q in joints]
        near = sum(v * overlap for v, overlap in zip(weights, overlaps, strict=True))
        bound -= w * math.log(near) if w else 0.0
    return bound, conditional


@settings(max_examples=150, deadline=None)
@given(
    data=inputs(),
    temperature=coefficient(0.3, 3.0),
    strength=coefficient(0.0, 2.0),
    consistency=st.sampled_from([0.0, 0.5, 1.0]),
    share=coefficient(0.0, 1.0),
)
def test_bounds_are_the_formula_and_hold(data, temperature, strength, consistency, share):
    """Conditional entropy <= entropy() <= enumerated entropy, and 0 <= enumerated KL <= KL."""
    logits, noise, weights, mask = data
    values = (temperature(logits), strength(logits), consistency, share(logits))
    coefficients = dict(zip(NAMES, values, strict=True))
    dist = IGCMixture(logits, noise, weights, mask, **coefficients)
    states = states_by_hand(*data, coefficients)
    by_hand = torch.tensor([bound_by_hand(*state) for state in states], dtype=torch.float64)
    bound, conditional = by_hand.unbind(-1)
    exact = table_by_hand(*data, coefficients)
    product = table_by_hand(*data, {"modified_share": 0.0})

    entropy = dist.entropy().reshape(-1)
    torch.testing.assert_close(entropy, bound, rtol=1e-9, atol=1e-9)
    assert (conditional <= entropy + 1e-9).all()
    assert (entropy <= entropy_of(exact) + 1e-9).all()

    kl, exact_kl = kl_divergence(dist, dist.product).reshape(-1), kl_of(exact, product)
    cross = -torch.where(exact > 0, exact * product.log(), 0.0).sum(-1)
    torch.testing.assert_close(kl, cross - bound, rtol=1e-9, atol=1e-9)
    assert (exact_kl >= -1e-9).all()
    assert (kl >= exact_kl - 1e-9).all()


@pytest.mark.parametrize("masked", [False, True])
def test_bounds_are_nearer_than_the_conditional_entropy(masked):
    """The bound is tighter than the mean entropy of the components."""
    dist, data = example((50,), masked=masked)
    coefficients = {"temperature": 0.8, "modified_share": 0.7}
    exact = entropy_of(table_by_hand(*data, coefficients))
    each = -(dist.logits.exp() * dist.logits).sum((-2, -1))
    conditional = (dist.mixture_distribution.probs * each).sum(-1)
    assert ((exact - dist.entropy()) < 0.6 * (exact - conditional)).double().mean() > 0.9


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_exact_where_all_components_are_equal(share):
    """At strength 0 and temperature 1 all components are the product."""
    dist, (logits, _, _, mask) = example(strength=0.0, temperature=1.0, modified_share=share)
    product = IGCCategorical(logits, mask=mask)
    torch.testing.assert_close(dist.entropy(), product.entropy())
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(dist, product), zero)


def test_exact_where_the_modified_components_are_equal():
    _, (logits, noise, weights, mask) = example()
    noise = noise[..., :1, :].expand_as(noise)
    dist = IGCMixture(logits, noise, weights, mask)
    alone = IGCCategorical(logits, noise[..., 0, :], mask)
    torch.testing.assert_close(dist.entropy(), alone.entropy())
    kl = kl_divergence(alone, dist.product)
    torch.testing.assert_close(kl_divergence(dist, dist.product), kl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_where_components_have_no_joint_action_in_common(dtype):
    """Agent 0 takes actions 0 and 1 in one component, 2 and 3 in the other: H(w) is added."""
    torch.manual_seed(0)
    logits, weights = torch.randn(5, 3, 4).to(dtype), torch.randn(5, 2).to(dtype)
    noise = torch.zeros(5, 3, 2, 4, dtype=dtype)
    noise[:, 0, 0, 2:] = noise[:, 0, 1, :2] = -1e4
    dist = IGCMixture(logits, noise, weights, strength=100.0)
    components = [IGCCategorical(logits, noise[:, :, m], strength=100.0) for m in (0, 1)]
    own = torch.stack([component.entropy() for component in components], -1)
    w = weights.softmax(-1)
    expected = entropy_of(w) + (w * own).sum(-1)
    torch.testing.assert_close(dist.entropy(), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("added", [1, 2, 5])
def test_agents_without_a_choice_change_nothing(masked, added):
    """Also if the number of joint actions then exceeds MAX_JOINT_ACTIONS."""
    dist, (logits, noise, weights, mask) = example(masked=masked)
    assert dist.n_joint_actions <= igc_mixture.MAX_JOINT_ACTIONS
    torch.manual_seed(1)
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    forced = torch.zeros(5, added, 4, dtype=torch.bool)
    forced[..., 2] = True
    wider = IGCMixture(
        torch.cat([logits, torch.randn(5, added, 4).to(logits)], 1),
        torch.cat([noise, torch.randn(5, added, 2, 4).to(noise)], 1),
        weights,
        torch.cat([mask, forced], 1),
        temperature=0.8,
        modified_share=0.7,
    )
    assert (wider.n_joint_actions > igc_mixture.MAX_JOINT_ACTIONS) == (added > 1)
    torch.testing.assert_close(wider.entropy(), dist.entropy())
    kl = kl_divergence(dist, dist.product)
    torch.testing.assert_close(kl_divergence(wider, wider.product), kl)


def test_the_limit_of_enumeration_changes_nothing(monkeypatch):
    dist, _ = example()
    entropy, kl = dist.entropy(), kl_divergence(dist, dist.product)
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 1)
    assert torch.equal(dist.entropy(), entropy)
    assert torch.equal(kl_divergence(dist, dist.product), kl)


def test_kl_is_an_upper_bound_of_monte_carlo():
    dist, _ = example(seed=3)
    torch.manual_seed(0)
    actions = dist.sample((20_000,))
    terms = dist.log_prob(actions) - dist.product.log_prob(actions)
    error = 5 * terms.std(0) / math.sqrt(len(actions))
    kl = kl_divergence(dist, dist.product)
    assert (terms.mean(0) <= kl + error).all()
    assert (terms.mean(0) >= 0.5 * kl).all()  # of the same size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_with_several_agents_forbidden_actions_is_finite(dtype):
    """The log-probability of a joint action with two forbidden ones is below any finite number."""
    dist, (logits, noise, weights, mask) = example(dtype=dtype)
    assert (mask.logical_not().any(-1).sum(-1) >= 2).any()
    leaves = [value.requires_grad_() for value in (logits, noise, weights)]
    dist = IGCMixture(*leaves, mask, 0.8, modified_share=0.7)
    kl = kl_divergence(dist, dist.product)
    assert kl.isfinite().all()
    assert (kl > 0).all()
    for gradient in torch.autograd.grad(kl.sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_gradients_are_finite_where_components_hardly_overlap(dtype, size):
    torch.manual_seed(0)
    logits = torch.randn(50, 4, 3, dtype=dtype).mul(size).requires_grad_()
    noise = torch.randn(50, 4, 5, 3, dtype=dtype).mul(size).requires_grad_()
    weights = torch.randn(50, 5, dtype=dtype).mul(size).requires_grad_()
    share = torch.rand(50, 1, 1, dtype=dtype).requires_grad_()
    dist = IGCMixture(logits, noise, weights, None, 0.05, 3.0, modified_share=share)
    for value in (dist.entropy(), kl_divergence(dist, dist.product)):
        assert value.isfinite().all()
        leaves = (logits, noise, weights, share)
        for gradient in torch.autograd.grad(value.sum(), leaves, retain_graph=True):
            assert gradient.isfinite().all()
