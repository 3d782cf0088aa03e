"""IGCCategorical against plain transcriptions of Eq. 12, enumeration and its properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from torchrl_agentmixer.distributions import IGCCategorical, gumbel_perturbation

from .categorical_by_hand import coefficient, eq_12, individual_mode_by_hand, inputs

# -- the mode (Definition 6) ---------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(
    data=inputs(),
    temperature=coefficient(st.floats(1e-3, 1e2)),
    strength=coefficient(st.sampled_from([0.0, 0.3, 1.0, 5.0])),
    consistency=coefficient(st.just(1.0)),
)
def test_consistency_one_keeps_the_mode(data, temperature, strength, consistency):
    logits, noise, mask = data
    coefficients = (temperature(logits), strength(logits), consistency(logits))
    dist = IGCCategorical(logits, noise, mask, *coefficients)
    star = dist.individual_mode
    gathered = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    # The individual mode is a highest allowed logit, up to the rounding of log-softmax ...
    slack = 4 * torch.finfo(logits.dtype).eps * (1 + gathered.amax(-1).abs() + math.log(6))
    at_star = gathered.gather(-1, star.unsqueeze(-1)).squeeze(-1)
    assert (at_star >= gathered.amax(-1) - slack).all()
    # ... and the joint mode is that same action, strictly.
    assert torch.equal(dist.mode, star)
    assert torch.equal(dist.deterministic_sample, star)
    at_mode = dist.probs.gather(-1, star.unsqueeze(-1))
    others = torch.ones_like(logits, dtype=torch.bool).scatter(-1, star.unsqueeze(-1), False)
    assert ((dist.probs < at_mode) | ~others).all()
    assert ((dist.probs <= at_mode * math.exp(-0.99e-2) + 1e-30) | ~others).all()


@settings(max_examples=100, deadline=None)
@given(data=inputs(), temperature=st.floats(1e-3, 1e2))
def test_individual_mode_is_the_first_highest_allowed_logit(data, temperature):
    logits, noise, mask = data
    logits = logits.round()  # exact ties, no rounding between distinct logits
    dist = IGCCategorical(logits, noise, mask, temperature, consistency=1.0)
    assert torch.equal(dist.individual_mode, individual_mode_by_hand(logits, mask))
    assert torch.equal(dist.mode, individual_mode_by_hand(logits, mask))


def test_eq_12_as_published_loses_the_mode():
    torch.manual_seed(0)
    logits, noise = torch.randn(500, 2, 5), 3 * torch.randn(500, 2, 5)
    published = IGCCategorical(logits, noise)
    kept = (published.mode == published.individual_mode).float().mean()
    assert 0.2 < kept < 0.9
    assert (IGCCategorical(logits, noise, consistency=1.0).mode == logits.argmax(-1)).all()


@settings(max_examples=150, deadline=None)
@given(data=inputs(), tau=st.floats(1e-3, 1e2))
def test_temperature_alone_keeps_the_mode(data, tau):
    logits, _, mask = data
    logits = logits.double().round(decimals=3)  # gaps that float64 resolves after the division
    temperature = torch.full((*logits.shape[:-1], 1), tau, dtype=logits.dtype)
    dist = IGCCategorical(logits, mask=mask, temperature=temperature)
    assert torch.equal(dist.probs.argmax(-1), dist.mode)
    at_mode = dist.individual_logits.gather(-1, dist.mode.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(at_mode, dist.individual_logits.amax(-1), rtol=0, atol=1e-9)
    expected = eq_12(logits, torch.zeros_like(logits), mask, temperature, 0.0)
    np.testing.assert_allclose(dist.probs.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_alone_keeps_the_mode_of_unrounded_logits(dtype):
    torch.manual_seed(0)
    logits = torch.randn(2000, 2, 5, dtype=dtype)
    dist = IGCCategorical(logits, temperature=torch.rand(2000, 2, 1, dtype=dtype) * 5 + 1e-2)
    assert (dist.mode == logits.argmax(-1)).all()


# -- Eq. 12 --------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    data=inputs(max_noise=1e3),
    temperature=coefficient(st.floats(0.05, 1e2)),
    strength=coefficient(st.floats(0, 4)),
)
def test_consistency_zero_is_eq_12(data, temperature, strength):
    logits, noise, mask = (t.double() if t is not None and i < 2 else t for i, t in enumerate(data))
    tau, s = temperature(logits), strength(logits)
    dist = IGCCategorical(logits, noise, mask, tau, s)
    expected = eq_12(logits, noise, mask, tau, s)
    np.testing.assert_allclose(dist.probs.numpy(), expected, rtol=0, atol=1e-6)
    tensor_zero = torch.zeros((*logits.shape[:-1], 1), dtype=logits.dtype)
    same = IGCCategorical(logits, noise, mask, tau, s, tensor_zero)
    np.testing.assert_allclose(same.probs.numpy(), expected, rtol=0, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(data=inputs(max_noise=1e3), consistency=st.floats(0, 1))
def test_consistency_between_reduces_the_excess_by_that_share(data, consistency):
    logits, noise, mask = data
    logits, noise = logits.double().round(decimals=4), noise.double()
    dist = IGCCategorical(logits, noise, mask, 0.7, 1.0, consistency)
    expected = eq_12(logits, noise, mask, 0.7, 1.0, consistency)
    star = dist.individual_mode
    if torch.equal(star, individual_mode_by_hand(logits, mask)):  # no tie broken by rounding
        np.testing.assert_allclose(dist.probs.numpy(), expected, rtol=0, atol=1e-6)


def test_strength_zero_and_temperature_one_is_the_individual_policy():
    torch.manual_seed(0)
    logits, noise = torch.randn(6, 3, 4), 50 * torch.randn(6, 3, 4)
    mask = torch.rand(6, 3, 4) < 0.6
    mask[..., 0] = True
    individual = Categorical(logits=logits.masked_fill(~mask, -math.inf))
    dist = IGCCategorical(logits, noise, mask, strength=0.0)
    torch.testing.assert_close(dist.probs, individual.probs)
    alone = IGCCategorical(logits, mask=mask)
    torch.testing.assert_close(alone.probs, individual.probs)
    action = individual.sample()
    torch.testing.assert_close(dist.log_prob(action), individual.log_prob(action).sum(-1))


def test_gumbel_perturbation_is_the_papers_form_without_its_overflow():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)
    u = 0.95 * torch.sigmoid(x)
    torch.testing.assert_close(gumbel_perturbation(x), -(-u.log()).log())
    extreme = torch.tensor([-1e6, -1e4, 0.0, 1e4, 1e6], requires_grad=True)
    noise = gumbel_perturbation(extreme)
    noise.sum().backward()
    assert noise.isfinite().all()
    assert extreme.grad.isfinite().all()
    assert noise.max() <= -math.log(-math.log(0.95)) + 1e-5
    assert (noise.diff() >= 0).all()


# -- extreme inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("logits_size", [1.0, 1e4])
@pytest.mark.parametrize("temperature_value", [0.01, 1.0, 100.0])
def test_extreme_inputs_give_finite_values_and_gradients(
    consistency, masked, logits_size, temperature_value
):
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (2, 8, 3, 4)) * 2.0 - 1
    logits = (logits_size * signs[0]).requires_grad_()
    noise = (1e4 * signs[1]).requires_grad_()
    temperature = torch.full((8, 3, 1), temperature_value, requires_grad=True)
    mask = None
    if masked:
        mask = torch.rand(8, 3, 4) < 0.5
        mask[..., 2] = True
    dist = IGCCategorical(logits, noise, mask, temperature, 1.0, consistency)
    action = dist.sample()
    log_prob, entropy = dist.log_prob(action), dist.entropy()
    assert log_prob.isfinite().all()
    assert entropy.isfinite().all()
    assert (entropy >= -1e-5).all()
    every_action = dist.base_dist.log_prob(torch.full((8, 3), 2))  # allowed, maybe improbable
    (log_prob.sum() + entropy.sum() + every_action.sum()).backward()
    for value in (logits, noise, temperature):
        assert value.grad.isfinite().all()
    if masked:
        assert (logits.grad[~mask] == 0).all()
        assert (noise.grad[~mask] == 0).all()


# -- gradients of the bound ----------------------------------------------------------------------


def test_bound_is_a_constant_for_the_gradient():
    """A clipped action with a positive advantage does not raise the mode."""
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([[-9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    assert IGCCategorical(logits, noise).mode.item() == 1  # the noise outweighs the gap
    dist = IGCCategorical(logits, noise, consistency=1.0)
    assert dist.mode.item() == 0
    log_prob = dist.log_prob(torch.tensor([1]))
    g_logits, g_noise, g_l = torch.autograd.grad(
        log_prob, [logits, noise, dist.individual_logits], allow_unused=False
    )
    assert g_l[0, 1] == 0  # clipped: no gradient ...
    assert g_l[0, 0] < 0  # ... and the mode goes down, so that it can move
    assert g_logits[0, 0] < 0 < g_logits[0, 1]
    assert g_noise[0, 1] == 0
    assert g_noise[0, 0] < 0
    # d log pi(1) / d l[k*] is -pi(k*) exactly, when the bound is a constant.
    torch.testing.assert_close(g_l[0, 0], -dist.probs[0, 0].detach())


@settings(max_examples=150, deadline=None)
@given(data=inputs(max_noise=1e3, dtypes=(torch.float64,)))
def test_no_clipped_action_raises_the_mode(data):
    logits, noise, mask = data
    logits = logits.requires_grad_()
    dist = IGCCategorical(logits, noise, mask, consistency=1.0)
    star = dist.individual_mode
    free = IGCCategorical(logits, noise, mask)  # Eq. 12: which actions are over the bound?
    gap = free.logits - free.logits.gather(-1, star.unsqueeze(-1)) + 1e-2
    is_star = torch.zeros_like(gap, dtype=torch.bool).scatter(-1, star.unsqueeze(-1), True)
    allowed = torch.ones_like(is_star) if mask is None else mask
    clipped = (gap > 1e-9) & ~is_star & allowed
    (gradient,) = torch.autograd.grad(
        dist.logits[clipped].sum(), dist.individual_logits, allow_unused=True
    )
    if gradient is not None:
        assert (gradient[is_star] <= 1e-12).all()
        assert (gradient[clipped].abs() <= 1e-12).all()


def test_gradcheck_without_clipping():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    tau = torch.rand(3, 2, 1, dtype=torch.float64).add(0.5).requires_grad_()
    action = torch.randint(4, (3, 2))

    def outputs(logits, noise, tau):
        dist = IGCCategorical(logits, noise, None, tau, 0.8)
        return dist.log_prob(action), dist.entropy()

    assert torch.autograd.gradcheck(outputs, (logits, noise, tau))


# -- probabilities by enumeration ----------------------------------------------------------------


def joint_table(dist, n_agents, n_actions):
    """Log-probabilities ``[n_joint, *B]`` of all joint actions."""
    rows = []
    for joint in itertools.product(range(n_actions), repeat=n_agents):
        action = torch.tensor(joint).expand(*dist.probs.shape[:-1])
        rows.append(dist.log_prob(action))
    return torch.stack(rows)


def example(seed=0, joint=True, masked=True, dtype=torch.float64, consistency=0.4):
    torch.manual_seed(seed)
    logits, noise = torch.randn(2, 5, 3, 4, dtype=dtype)
    mask = None
    if masked:
        mask = torch.rand(5, 3, 4) < 0.6
        mask[..., 1] = True
    return IGCCategorical(logits, noise, mask, 0.8, 1.0, consistency, joint=joint), mask


@pytest.mark.parametrize("masked", [False, True])
def test_joint_log_prob_and_entropy_by_enumeration(masked):
    dist, _ = example(masked=masked)
    log_probs = joint_table(dist, 3, 4)
    assert log_probs.shape == (64, 5)
    probs = log_probs.exp()
    torch.testing.assert_close(probs.sum(0), torch.ones(5, dtype=torch.float64))
    entropy = -torch.where(probs > 0, probs * log_probs, 0.0).sum(0)
    torch.testing.assert_close(dist.entropy(), entropy)
    assert dist.batch_shape == (5,)
    assert dist.event_shape == (3,)


@pytest.mark.parametrize("masked", [False, True])
def test_per_agent_factors_by_enumeration(masked):
    joint, _ = example(masked=masked)
    dist, _ = example(masked=masked, joint=False)
    log_probs = torch.stack([dist.log_prob(torch.full((5, 3), k)) for k in range(4)])
    assert log_probs.shape == (4, 5, 3)
    assert dist.batch_shape == (5, 3)
    assert dist.event_shape == ()
    probs = log_probs.exp()
    torch.testing.assert_close(probs.sum(0), torch.ones(5, 3, dtype=torch.float64))
    entropy = -torch.where(probs > 0, probs * log_probs, 0.0).sum(0)
    torch.testing.assert_close(dist.entropy(), entropy)
    action = joint.sample()
    torch.testing.assert_close(joint.log_prob(action), dist.log_prob(action).sum(-1))
    torch.testing.assert_close(joint.entropy(), dist.entropy().sum(-1))


@pytest.mark.parametrize("joint", [True, False])
def test_kl_by_enumeration_and_monte_carlo(joint):
    p, _ = example(seed=1, joint=joint, masked=False, consistency=1.0)
    q, _ = example(seed=2, joint=joint, masked=False, consistency=0.0)
    kl = kl_divergence(p, q)
    assert kl.shape == p.batch_shape
    if joint:
        log_p, log_q = joint_table(p, 3, 4), joint_table(q, 3, 4)
        torch.testing.assert_close(kl, (log_p.exp() * (log_p - log_q)).sum(0))
    actions = p.sample((20_000,))
    terms = p.log_prob(actions) - q.log_prob(actions)
    error = 5 * terms.std(0) / math.sqrt(len(actions))
    assert ((terms.mean(0) - kl).abs() <= error).all()
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros_like(kl))


def test_kl_with_masks_is_finite_and_by_enumeration():
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True]).expand(3, 4)
    p, q = (IGCCategorical(row, mask=mask) for row in logits)
    log_p, log_q = joint_table(p, 3, 4), joint_table(q, 3, 4)
    expected = torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(0)
    torch.testing.assert_close(kl_divergence(p, q), expected)


@settings(max_examples=100, deadline=None)
@given(data=inputs(), consistency=st.sampled_from([0.0, 0.5, 1.0]))
def test_forbidden_actions_have_probability_exactly_zero(data, consistency):
    logits, noise, mask = data
    if mask is None:
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[..., -1] = True
    dist = IGCCategorical(logits, noise, mask, consistency=consistency)
    assert (dist.probs[~mask] == 0).all()
    assert (dist.logits[~mask].exp() == 0).all()
    assert dist.logits.isfinite().all()
    torch.testing.assert_close(dist.probs.sum(-1), torch.ones_like(dist.probs[..., 0]))
    samples = dist.sample((50,))
    assert mask.expand(50, *mask.shape).gather(-1, samples.unsqueeze(-1)).all()
    assert mask.gather(-1, dist.mode.unsqueeze(-1)).all()


def test_sample_frequencies_match_the_probabilities():
    torch.manual_seed(0)
    dist, _ = example(masked=True)
    n = 20_000
    samples = dist.sample((n,))
    frequency = torch.nn.functional.one_hot(samples, 4).double().mean(0)
    error = 5 * (dist.probs * (1 - dist.probs) / n).sqrt() + 1e-9
    assert ((frequency - dist.probs).abs() <= error).all()
    assert not dist.has_rsample
    assert dist.sample().dtype == torch.int64


def test_expand_keeps_the_mask_and_the_individual_policy():
    dist, mask = example()
    big = dist.expand((7, 5))
    assert torch.equal(big.individual_mode, dist.individual_mode.expand(7, 5, 3))
    assert torch.equal(big.mask, mask.expand(7, 5, 3, 4))
    assert (big.probs[~big.mask] == 0).all()
