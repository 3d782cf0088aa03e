"""IGCMixture against enumeration in plain Python; its modes, samples and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule
from torch.distributions import kl_divergence
from torchrl.envs import ExplorationType, set_exploration_type

from torchrl_agentmixer.distributions import IGCCategorical, IGCMixture, igc_mixture

from .mixture_by_hand import (
    NAMES,
    coefficient,
    example,
    inputs,
    joint_actions,
    kl_of,
    states_by_hand,
    table,
    table_by_hand,
)


@pytest.fixture(params=["enumerated", "large team"])
def size(request, monkeypatch):
    """Whether the mode is found by enumeration of joint actions."""
    if request.param == "large team":
        monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 1)
    return request.param


@settings(max_examples=150, deadline=None)
@given(
    data=inputs(),
    temperature=coefficient(0.3, 3.0),
    strength=coefficient(0.0, 2.0),
    consistency=st.sampled_from([0.0, 0.5, 1.0]),
    share=coefficient(0.0, 1.0),
)
def test_log_prob_is_the_enumerated_mixture(data, temperature, strength, consistency, share):
    logits, noise, weights, mask = data
    values = (temperature(logits), strength(logits), consistency, share(logits))
    coefficients = dict(zip(NAMES, values, strict=True))
    dist = IGCMixture(logits, noise, weights, mask, **coefficients)
    expected = table_by_hand(*data, coefficients)
    torch.testing.assert_close(table(dist), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(expected.sum(-1), torch.ones_like(expected[:, 0]))
    product = table_by_hand(*data, {"modified_share": 0.0})
    torch.testing.assert_close(table(dist.product), product, rtol=1e-9, atol=1e-12)
    mode = joint_actions(dist).eq(dist.mode.reshape(-1, 1, dist.mode.shape[-1])).all(-1)
    assert (expected[mode] >= expected.amax(-1) - 1e-12).all()


@pytest.mark.parametrize("masked", [False, True])
def test_float32_is_close_to_float64(masked):
    single, data = example(masked=masked, dtype=torch.float32, consistency=0.5)
    logits, noise, weights, mask = data
    coefficients = {"temperature": 0.8, "modified_share": 0.7, "consistency": 0.5}
    expected = table_by_hand(logits, noise, weights, mask, coefficients)
    torch.testing.assert_close(table(single), expected, rtol=1e-4, atol=1e-6)
    for value in (single.log_prob(single.mode), single.entropy(), single.logits):
        assert value.dtype == torch.float32


def test_only_the_first_agents_share_is_read():
    share = torch.rand(5, 3, 1, dtype=torch.float64)
    dist, _ = example(modified_share=share)
    first, _ = example(modified_share=share[:, :1].expand(5, 3, 1))
    torch.testing.assert_close(table(dist), table(first))
    torch.testing.assert_close(dist.mixture_distribution.probs[:, 0], 1 - share[:, 0, 0])


# -- too many joint actions to enumerate ---------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_large_teams_mode_is_the_best_of_the_components_modes(masked, monkeypatch):
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 1)
    dist, (logits, noise, weights, mask) = example((200,), masked=masked)
    coefficients = {"temperature": 0.8, "modified_share": 0.7}
    expected, chosen = [], set()
    for w, policies in states_by_hand(logits, noise, weights, mask, coefficients):
        modes = [[p.index(max(p)) for p in agents] for agents in policies]
        probs = [
            sum(
                one * math.prod(p[a] for p, a in zip(agents, mode, strict=True))
                for one, agents in zip(w, policies, strict=True)
            )
            for mode in modes
        ]
        chosen.add(probs.index(max(probs)))
        expected.append(modes[probs.index(max(probs))])
    assert dist.mode.tolist() == expected
    assert chosen == {0, 1, 2}


def test_mode_that_is_the_mode_of_no_component(size):
    """The joint mode consists of the agents' second choices; only enumeration finds it."""
    one = torch.tensor([0.55, 0.448, 0.002], dtype=torch.float64)
    probs = torch.stack([one, one.flip(0)])  # [m, K], the same for both agents
    noise = -(1 / probs + math.log(0.95)).expm1().log()  # Eq. 12 solved for u = exp(-1 / p)
    dist = IGCMixture(
        torch.zeros(2, 3, dtype=torch.float64), noise.expand(2, 2, 3), torch.zeros(2).double()
    )
    torch.testing.assert_close(dist.logits[1:].exp(), probs.unsqueeze(1).expand(2, 2, 3))
    assert dist.logits[1:].argmax(-1).tolist() == [[0, 0], [2, 2]]
    assert dist.mode.tolist() == ([1, 1] if size == "enumerated" else [0, 0])


# -- the mode (Definition 6) and the product -----------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    data=inputs(dtypes=(torch.float32, torch.float64)),
    scale=st.sampled_from([1e-6, 1e-3, 1.0]),
    share=coefficient(0.0, 1.0),
    temperature=coefficient(0.3, 3.0),
    limit=st.sampled_from([1, 1024]),
)
def test_consistency_one_keeps_the_individual_modes(data, scale, share, temperature, limit):
    logits, noise, weights, mask = data
    logits = logits * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", limit)
        for value in (share(logits), 0.0, 1e-6, 1.0):
            dist = IGCMixture(
                logits, noise, weights, mask, temperature(logits), 1.0, 1.0, modified_share=value
            )
            individual = IGCCategorical(logits, mask=mask).mode
            assert torch.equal(dist.individual_mode, individual)
            assert torch.equal(dist.mode, individual)
            assert torch.equal(dist.deterministic_sample, individual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_ties_go_to_the_individual_modes(dtype, size):
    """Gaps within the rounding error of a sum over agents."""
    torch.manual_seed(0)
    logits = 20 * torch.finfo(dtype).eps * torch.randn(500, 3, 4, dtype=dtype)
    noise, weights = torch.randn(500, 3, 2, 4, dtype=dtype), torch.zeros(500, 2, dtype=dtype)
    dist = IGCMixture(logits, noise, weights, modified_share=0.0)
    assert torch.equal(dist.mode, IGCCategorical(logits).mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaps_above_rounding_are_resolved(dtype, size):
    noise = torch.tensor([[[-5.0, 5.0]]], dtype=dtype)
    gap = 100 * torch.finfo(dtype).eps
    dist = IGCMixture(torch.zeros(1, 2, dtype=dtype), noise, torch.zeros(1).to(noise), strength=gap)
    assert dist.individual_mode.tolist() == [0]
    assert dist.mode.tolist() == [1]


def test_without_consistency_the_mode_moves():
    dist, _ = example((200,), masked=False)
    assert 0.05 < (dist.mode == dist.individual_mode).all(-1).double().mean() < 0.95


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "coefficients",
    [
        {"strength": 0.0, "temperature": 1.0},
        {"strength": torch.zeros(5, 3, 1), "temperature": torch.ones(5, 3, 1)},
        {"modified_share": 0.0, "consistency": 1.0},
        {"modified_share": torch.zeros(5, 3, 1)},
        {"modified_share": torch.tensor(0.0)},
    ],
)
def test_no_strength_or_no_share_is_the_product(masked, coefficients, size):
    dist, (logits, _, _, mask) = example(masked=masked, **coefficients)
    product = IGCCategorical(logits, mask=mask)
    torch.testing.assert_close(table(dist), table(product))
    action = dist.sample((20,))
    torch.testing.assert_close(dist.log_prob(action), product.log_prob(action))
    assert torch.equal(dist.mode, product.mode)


def test_improbable_actions_of_the_product_keep_their_log_prob():
    """A share of 0 adds no probability, even in the tail."""
    logits = torch.tensor([[0.0, -300.0]])
    noise = torch.tensor([[[-1e4, 1e4]]])
    dist = IGCMixture(logits, noise, torch.zeros(1), strength=100.0, modified_share=0.0)
    torch.testing.assert_close(dist.log_prob(torch.tensor([1])), torch.tensor(-300.0))
    dist = IGCMixture(logits, noise, torch.zeros(1), strength=100.0, modified_share=1.0)
    alone = IGCCategorical(logits, noise[:, 0], strength=100.0)
    both = torch.tensor([[0], [1]])
    torch.testing.assert_close(dist.log_prob(both), alone.log_prob(both))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_one_component_is_the_textbook_mixture(share):
    torch.manual_seed(0)
    logits, noise = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    weights = torch.randn(5, 1, dtype=torch.float64)  # of one component: they have no effect
    dist = IGCMixture(
        logits, noise.unsqueeze(-2), weights, None, 0.7, 1.2, 0.5, modified_share=share
    )
    modified = IGCCategorical(logits, noise, None, 0.7, 1.2, 0.5)
    product = IGCCategorical(logits)
    expected = share * table(modified) + (1 - share) * table(product)
    torch.testing.assert_close(table(dist), expected)


# -- samples -------------------------------------------------------------------------------------


def test_samples_are_of_the_joint_distribution_and_correlated():
    """With three modes on the diagonal, frequencies match the joint table, not the product."""
    torch.manual_seed(0)
    n = 20_000
    noise = (20 * torch.eye(3) - 10).expand(2, 3, 3)
    dist = IGCMixture(
        torch.zeros(2, 3), noise, torch.tensor([1.0, 0.0, 0.5]), strength=3.0, modified_share=0.9
    )
    samples = dist.sample((n,))
    assert samples.dtype == torch.int64
    frequency = torch.bincount(samples @ torch.tensor([3, 1]), minlength=9).double() / n
    probs = table(dist)[0]
    error = 5 * (probs * (1 - probs) / n).sqrt()
    assert ((frequency - probs).abs() <= error).all()
    grid = frequency.reshape(3, 3)
    marginals = (grid.sum(1, keepdim=True) * grid.sum(0, keepdim=True)).flatten()
    assert (frequency - marginals).abs().sum() > 0.5
    mutual_information = kl_of(frequency, marginals)
    assert mutual_information > 0.3


def test_samples_of_every_state_follow_that_state():
    torch.manual_seed(0)
    n = 4000
    dist, _ = example((2, 3))
    samples = dist.sample((n,)).reshape(n, 6, 3) @ torch.tensor([16, 4, 1])
    frequency = torch.nn.functional.one_hot(samples, 64).double().mean(0)
    probs = table(dist)
    error = 5 * (probs * (1 - probs) / n).sqrt() + 1 / n
    assert ((frequency - probs).abs() <= error).all()


@settings(max_examples=100, deadline=None)
@given(data=inputs((torch.float32, torch.float64)), share=coefficient(0.0, 1.0))
def test_forbidden_actions_have_probability_exactly_zero(data, share):
    logits, noise, weights, mask = data
    if mask is None:
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[..., -1] = True
    dist = IGCMixture(logits, noise, weights, mask, modified_share=share(logits))
    samples = dist.sample((50,))
    assert mask.expand(50, *mask.shape).gather(-1, samples.unsqueeze(-1)).all()
    assert mask.gather(-1, dist.mode.unsqueeze(-1)).all()
    n = logits.shape[-2]
    allowed = mask.reshape(-1, *logits.shape[-2:])[:, torch.arange(n), joint_actions(dist)].all(-1)
    probs = table(dist)
    assert (probs[~allowed] == 0).all()
    assert (probs >= 0).all()


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    _, (logits, noise, weights, mask) = example((2,), masked=masked)
    leaves = [value.requires_grad_() for value in (logits, noise, weights)]
    tau = torch.rand(2, 3, 1, dtype=torch.float64).add(0.5).requires_grad_()
    share = torch.rand(2, 1, 1, dtype=torch.float64).requires_grad_()
    action = IGCMixture(*leaves, mask).sample((2,))

    def outputs(logits, noise, weights, tau, share):
        dist = IGCMixture(logits, noise, weights, mask, tau, 0.8, modified_share=share)
        return dist.log_prob(action), dist.entropy(), kl_divergence(dist, dist.product)

    # In fast mode, along one random direction: the slow one takes seconds.
    assert torch.autograd.gradcheck(outputs, (*leaves, tau, share), fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: outputs(*x)[0][:1, :1], (*leaves, tau, share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("consistency", [0.0, 1.0])
def test_extreme_inputs_give_finite_values_and_gradients(dtype, masked, share, consistency):
    torch.manual_seed(0)

    def extreme(*shape):
        signs = torch.randint(0, 2, shape) * 2 - 1
        return (1e4 * signs.to(dtype)).requires_grad_()

    logits, noise, weights = extreme(8, 3, 4), extreme(8, 3, 2, 4), extreme(8, 2)
    mask = None
    if masked:
        mask = torch.rand(8, 3, 4) < 0.5
        mask[..., 2] = True
    dist = IGCMixture(
        logits, noise, weights, mask, 0.1, 1.0, consistency, torch.full((8, 3, 1), share)
    )
    improbable = dist.log_prob(torch.full((8, 3), 2))
    kl = kl_divergence(dist, dist.product)
    values = (dist.log_prob(dist.sample()), improbable, dist.entropy(), kl)
    for value in values:
        assert value.isfinite().all()
        gradients = torch.autograd.grad(
            value.sum(), (logits, noise, weights), retain_graph=True, allow_unused=True
        )
        for leaf, gradient in zip((logits, noise, weights), gradients, strict=True):
            if gradient is not None:
                assert gradient.isfinite().all()
                if masked and leaf is logits:
                    assert (gradient[~mask] == 0).all()
    assert (dist.entropy() >= -1e-5).all()


def test_individual_policies_weights_and_perturbations_all_learn():
    _, (logits, noise, weights, _) = example(masked=False)
    leaves = [value.requires_grad_() for value in (logits, noise, weights)]
    dist = IGCMixture(*leaves, modified_share=0.7)
    for gradient in torch.autograd.grad(dist.log_prob(dist.sample()).sum(), leaves):
        assert (gradient != 0).all()


# -- in TorchRL ------------------------------------------------------------------------------------


def test_alone_in_a_probabilistic_module():
    """Use with TorchRL alone: nested keys, a mask, and exploration types."""
    dist, (logits, noise, weights, mask) = example(dtype=torch.float32)
    keys = {"logits": ("a", "l"), "perturbation": ("a", "x"), "mask": ("a", "m")}
    module = ProbabilisticTensorDictModule(
        in_keys={**keys, "component_logits": ("b", "w")},
        out_keys=[("a", "action")],
        distribution_class=IGCMixture,
        distribution_kwargs={"temperature": 0.8, "modified_share": 0.7},
        return_log_prob=True,
        log_prob_keys=["team_log_prob"],
    )
    entries = {"l": logits, "x": noise, "m": mask}
    td = TensorDict({"a": TensorDict(entries, [5]), "b": {"w": weights}}, [5])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(module(td.clone())["a", "action"], dist.mode)
    with set_exploration_type(ExplorationType.RANDOM):
        out = module(td.clone())
    torch.testing.assert_close(out["team_log_prob"], dist.log_prob(out["a", "action"]))
    assert out["team_log_prob"].shape == (5,)


def test_support_and_expand():
    dist, (*_, mask) = example()
    assert dist.support.check(dist.sample()).all()
    assert not dist.support.check(torch.full((5, 3), 4)).any()
    assert not dist.has_rsample
    assert dist.n_joint_actions == 64
    big = dist.expand((7, 5))
    assert torch.equal(big.mask, mask.expand(7, 5, 3, 4))
    assert torch.equal(big.individual_mode, dist.individual_mode.expand(7, 5, 3))
    kl = kl_divergence(dist, dist.product).expand(7, 5)
    torch.testing.assert_close(kl_divergence(big, big.product), kl)
