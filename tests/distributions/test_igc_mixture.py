"""IGCMixture against enumeration in plain Python, Monte Carlo and its own promises."""

from __future__ import annotations

import itertools
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

NAMES = ("temperature", "strength", "consistency", "modified_share")


@pytest.fixture(params=["enumerated", "large team"])
def size(request, monkeypatch):
    if request.param == "large team":
        monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 1)
    return request.param


@st.composite
def inputs(draw, dtypes=(torch.float64,)):
    """Logits without near ties, perturbation, component logits, and a mask or None."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    n, m, k = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(dtypes))

    def normal(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=dtype)

    logits = (normal(n, k) * draw(st.sampled_from([1e-2, 1.0, 10.0]))).round(decimals=3)
    noise = normal(n, m, k) * draw(st.sampled_from([0.0, 1.0, 20.0]))
    weights = normal(m) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(*batch, n, k, generator=generator) < 0.5
        allowed = torch.randint(k, (*batch, n, 1), generator=generator)
        mask = mask.scatter(-1, allowed, True)
    return logits, noise, weights, mask


@st.composite
def coefficient(draw, low, high):
    """A number, a 0-d tensor, or a number for each agent, alike or not in all states."""
    kind = draw(st.sampled_from(["number", "0-d", "agents", "states"]))
    seed = draw(st.integers(0, 2**31))

    def build(logits):
        shape = {"agents": (logits.shape[-2], 1), "states": (*logits.shape[:-1], 1)}.get(kind, ())
        generator = torch.Generator().manual_seed(seed)
        value = low + (high - low) * torch.rand(shape, generator=generator, dtype=logits.dtype)
        return value.item() if kind == "number" else value

    return build


# -- Eq. 12 and its mixture, state by state, in plain Python -------------------------------------


def softmax(z, allowed):
    peak = max(value for value, ok in zip(z, allowed, strict=True) if ok)
    e = [math.exp(value - peak) if ok else 0.0 for value, ok in zip(z, allowed, strict=True)]
    return [value / sum(e) for value in e]


def eq_12(logits, x, allowed, tau, strength, consistency, margin=1e-2, bound=0.95, gain=1.0):
    """One agent's probabilities in one component, with the textbook noise."""
    individual = softmax(logits, allowed)
    z = []
    for p, value, ok in zip(individual, x, allowed, strict=True):
        u = bound / (1 + math.exp(-gain * value))
        z.append((math.log(p) - strength * math.log(-math.log(u))) / tau if ok else -math.inf)
    actions = [k for k, ok in enumerate(allowed) if ok]
    star = max(actions, key=lambda k: individual[k])
    for k in actions:
        if k != star:
            z[k] -= consistency * max(z[k] - z[star] + margin, 0.0)
    return softmax(z, allowed)


def brute_states(logits, noise, weights, mask, coefficients, **options):
    """For every state the weights ``[1 + m]`` and probabilities ``[1 + m][n][K]``, as lists."""
    n, k = logits.shape[-2:]
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    defaults = dict(zip(NAMES, (1.0, 1.0, 0.0, 1.0), strict=True))
    per_agent = {
        name: torch.as_tensor(value, dtype=torch.float64)
        .expand(*logits.shape[:-1], 1)
        .reshape(-1, n)
        .tolist()
        for name, value in {**defaults, **coefficients}.items()
    }
    rows = zip(
        logits.reshape(-1, n, k).tolist(),
        noise.reshape(-1, n, noise.shape[-2], k).tolist(),
        weights.reshape(-1, weights.shape[-1]).tolist(),
        mask.reshape(-1, n, k).tolist(),
        strict=True,
    )
    for state, (individual, x, w, allowed) in enumerate(rows):
        values = list(zip(*(per_agent[name][state] for name in NAMES[:3]), strict=True))
        share = per_agent["modified_share"][state]
        w = softmax(w, [True] * len(w))
        policies = [[softmax(individual[i], allowed[i]) for i in range(n)]]
        for m in range(len(w)):
            agents = [
                eq_12(individual[i], x[i][m], allowed[i], *values[i], **options) for i in range(n)
            ]
            policies.append(agents)
        yield [1 - share[0], *(share[0] * value for value in w)], policies


def brute_table(*arguments, **options):
    """Probabilities of all joint actions, ``[states, n_joint]``."""
    table = []
    for w, policies in brute_states(*arguments, **options):
        n, k = len(policies[0]), len(policies[0][0])
        row = []
        for joint in itertools.product(range(k), repeat=n):
            factors = [math.prod(p[i][a] for i, a in enumerate(joint)) for p in policies]
            row.append(sum(one * factor for one, factor in zip(w, factors, strict=True)))
        table.append(row)
    return torch.tensor(table, dtype=torch.float64)


def joint_actions(dist):
    n, k = dist.logits.shape[-2:]
    return torch.tensor(list(itertools.product(range(k), repeat=n)))


def table(dist):
    """What ``log_prob`` says of all joint actions, as probabilities ``[states, n_joint]``."""
    actions = joint_actions(dist)
    actions = actions.reshape(len(actions), *[1] * len(dist.batch_shape), -1)
    log_prob = dist.log_prob(actions.expand(-1, *dist.batch_shape, -1))
    return log_prob.exp().double().reshape(len(actions), -1).T


def entropy_of(probs):
    return -torch.where(probs > 0, probs * probs.log(), 0.0).sum(-1)


def kl_of(probs, others):
    return torch.where(probs > 0, probs * (probs / others).log(), 0.0).sum(-1)


def example(batch=(5,), masked=True, dtype=torch.float64, seed=0, **kwargs):
    """Three agents, four actions, two components."""
    torch.manual_seed(seed)
    logits = torch.randn(*batch, 3, 4, dtype=dtype)
    noise = 3 * torch.randn(*batch, 3, 2, 4, dtype=dtype)
    weights = torch.randn(*batch, 2, dtype=dtype)
    mask = None
    if masked:
        mask = torch.rand(*batch, 3, 4) < 0.6
        mask[..., 1] = True
    kwargs = {"temperature": 0.8, "modified_share": 0.7, **kwargs}
    return IGCMixture(logits, noise, weights, mask, **kwargs), (logits, noise, weights, mask)


@settings(max_examples=150, deadline=None)
@given(
    data=inputs(),
    temperature=coefficient(0.3, 3.0),
    strength=coefficient(0.0, 2.0),
    consistency=st.sampled_from([0.0, 0.5, 1.0]),
    share=coefficient(0.0, 1.0),
    options=st.fixed_dictionaries(
        {"margin": st.sampled_from([1e-2, 0.5]), "bound": st.just(0.8), "gain": st.just(0.7)}
    ),
)
def test_log_prob_is_the_enumerated_mixture(
    data, temperature, strength, consistency, share, options
):
    logits, noise, weights, mask = data
    values = (temperature(logits), strength(logits), consistency, share(logits))
    coefficients = dict(zip(NAMES, values, strict=True))
    dist = IGCMixture(
        logits,
        noise,
        weights,
        mask,
        **coefficients,
        margin=options["margin"],
        noise_bound=options["bound"],
        noise_gain=options["gain"],
    )
    expected = brute_table(logits, noise, weights, mask, coefficients, **options)
    states = logits.shape[:-2]
    torch.testing.assert_close(table(dist), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(expected.sum(-1), torch.ones_like(expected[:, 0]))
    torch.testing.assert_close(
        dist.entropy(), entropy_of(expected).reshape(states), rtol=0, atol=1e-9
    )
    product = brute_table(logits, noise, weights, mask, {"modified_share": 0.0})
    torch.testing.assert_close(table(dist.product), product, rtol=1e-9, atol=1e-12)
    kl = kl_of(expected, product).reshape(states)
    torch.testing.assert_close(kl_divergence(dist, dist.product), kl, rtol=1e-9, atol=1e-9)
    mode = joint_actions(dist).eq(dist.mode.reshape(-1, 1, dist.mode.shape[-1])).all(-1)
    assert (expected[mode] >= expected.amax(-1) - 1e-12).all()


@pytest.mark.parametrize("masked", [False, True])
def test_float32_is_close_to_float64(masked):
    single, data = example(masked=masked, dtype=torch.float32, consistency=0.5)
    logits, noise, weights, mask = data
    coefficients = {"temperature": 0.8, "modified_share": 0.7, "consistency": 0.5}
    expected = brute_table(logits, noise, weights, mask, coefficients)
    torch.testing.assert_close(table(single), expected, rtol=1e-4, atol=1e-6)
    for value in (single.log_prob(single.mode), single.entropy(), single.logits):
        assert value.dtype == torch.float32


def test_only_the_first_agents_share_is_read():
    share = torch.rand(5, 3, 1, dtype=torch.float64)
    dist, _ = example(modified_share=share)
    first, _ = example(modified_share=share[:, :1].expand(5, 3, 1))
    torch.testing.assert_close(table(dist), table(first))
    torch.testing.assert_close(dist.mixture_distribution.probs[:, 0], 1 - share[:, 0, 0])


# -- more joint actions than are enumerated ------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_large_teams_have_bounds(masked, monkeypatch):
    dist, _ = example((200,), masked=masked)
    entropy, kl = dist.entropy(), kl_divergence(dist, dist.product)
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 63)
    lower, upper = dist.entropy(), kl_divergence(dist, dist.product)
    assert lower.shape == upper.shape == (200,)
    assert (lower <= entropy + 1e-9).all()
    assert (upper >= kl - 1e-9).all()
    assert (entropy - lower).max() > 0.1  # else nothing was tested
    weights = dist.mixture_distribution.probs
    components = [IGCCategorical(dist.logits[:, m], mask=dist.mask) for m in range(3)]
    own = torch.stack([component.entropy() for component in components], -1)
    each = torch.stack([kl_divergence(component, dist.product) for component in components], -1)
    torch.testing.assert_close(lower, (weights * own).sum(-1))
    torch.testing.assert_close(upper, (weights * each).sum(-1))
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 64)
    torch.testing.assert_close(dist.entropy(), entropy)


@pytest.mark.parametrize("masked", [False, True])
def test_large_teams_mode_is_the_best_of_the_components_modes(masked, monkeypatch):
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", 1)
    dist, (logits, noise, weights, mask) = example((200,), masked=masked)
    coefficients = {"temperature": 0.8, "modified_share": 0.7}
    expected, chosen = [], set()
    for w, policies in brute_states(logits, noise, weights, mask, coefficients):
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


def test_mode_may_be_no_components_mode(size):
    """Everybody's second choice wins, and only enumeration finds it."""
    one = torch.tensor([0.55, 0.448, 0.002], dtype=torch.float64)
    probs = torch.stack([one, one.flip(0)])  # [m, K], alike for both agents
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
    """Gaps of a few roundings, which a sum over agents does not resolve."""
    torch.manual_seed(0)
    logits = 20 * torch.finfo(dtype).eps * torch.randn(500, 3, 4, dtype=dtype)
    noise, weights = torch.randn(500, 3, 2, 4, dtype=dtype), torch.zeros(500, 2, dtype=dtype)
    dist = IGCMixture(logits, noise, weights, modified_share=0.0)
    assert torch.equal(dist.mode, IGCCategorical(logits).mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_gap_is_no_tie(dtype, size):
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
    torch.testing.assert_close(dist.entropy(), product.entropy())
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(dist, product), zero)
    assert torch.equal(dist.mode, product.mode)


def test_improbable_actions_of_the_product_keep_their_log_prob():
    """A share of 0 is 0, not a smallest number that wins far out in the tail."""
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
    weights = torch.randn(5, 1, dtype=torch.float64)  # of one component: no matter
    dist = IGCMixture(
        logits, noise.unsqueeze(-2), weights, None, 0.7, 1.2, 0.5, modified_share=share
    )
    modified = IGCCategorical(logits, noise, None, 0.7, 1.2, 0.5)
    product = IGCCategorical(logits)
    expected = share * table(modified) + (1 - share) * table(product)
    torch.testing.assert_close(table(dist), expected)


# -- samples -------------------------------------------------------------------------------------


def test_samples_are_of_the_joint_distribution_and_correlated():
    """Three modes on the diagonal: frequencies fit the table, not the marginals' product."""
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


def test_kl_against_monte_carlo():
    dist, _ = example(seed=3)
    torch.manual_seed(0)
    actions = dist.sample((20_000,))
    terms = dist.log_prob(actions) - dist.product.log_prob(actions)
    error = 5 * terms.std(0) / math.sqrt(len(actions))
    assert ((terms.mean(0) - kl_divergence(dist, dist.product)).abs() <= error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_with_several_agents_forbidden_actions_is_finite(dtype, size):
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


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked, size):
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
def test_extreme_inputs_give_finite_values_and_gradients(dtype, masked, share, consistency, size):
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


# -- distribution contract -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 5)])
def test_shapes(batch, size):
    dist, _ = example(batch)
    assert dist.batch_shape == batch
    assert dist.event_shape == (3,)
    assert dist.n_joint_actions == 64
    assert dist.logits.shape == (*batch, 3, 3, 4)
    assert dist.sample().shape == (*batch, 3)
    assert dist.sample((6, 2)).shape == (6, 2, *batch, 3)
    assert dist.log_prob(dist.sample((6,))).shape == (6, *batch)
    assert dist.entropy().shape == kl_divergence(dist, dist.product).shape == batch
    assert dist.mode.shape == dist.individual_mode.shape == (*batch, 3)
    assert dist.support.check(dist.sample()).all()
    assert not dist.support.check(torch.full((*batch, 3), 4)).any()
    assert not dist.has_rsample


@pytest.mark.parametrize("masked", [True, False])
def test_expand(masked, size):
    dist, (*_, mask) = example(masked=masked)
    big = dist.expand((7, 5))
    assert type(big) is IGCMixture
    assert big.batch_shape == (7, 5)
    assert big.event_shape == (3,)
    action = big.sample()
    assert action.shape == (7, 5, 3)
    torch.testing.assert_close(big.log_prob(action), dist.log_prob(action))
    torch.testing.assert_close(big.entropy(), dist.entropy().expand(7, 5))
    assert torch.equal(big.mode, dist.mode.expand(7, 5, 3))
    assert torch.equal(big.individual_mode, dist.individual_mode.expand(7, 5, 3))
    kl = kl_divergence(dist, dist.product).expand(7, 5)
    torch.testing.assert_close(kl_divergence(big, big.product), kl)
    assert (big.mask is None) if mask is None else torch.equal(big.mask, mask.expand(7, 5, 3, 4))
    assert big.expand((2, 7, 5)).sample((3,)).shape == (3, 2, 7, 5, 3)


def test_alone_in_a_probabilistic_module():
    """Nested keys, a mask, and TorchRL's exploration types: nothing else of this package."""
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


@pytest.mark.slow
def test_compiled(size):
    torch.compiler.reset()
    _, (logits, noise, weights, mask) = example(dtype=torch.float32)
    tau, share = torch.rand(5, 3, 1) + 0.5, torch.rand(5, 3, 1)
    action = IGCMixture(logits, noise, weights, mask).sample()

    def numbers(logits, noise, weights, mask, tau, share, action):
        dist = IGCMixture(logits, noise, weights, mask, tau, 1.0, 0.5, share)
        sample = dist.sample()
        in_range = (sample >= 0) & (sample < 4) & (dist.log_prob(sample).unsqueeze(-1) > -100)
        return (
            dist.logits,
            dist.log_prob(action),
            dist.entropy(),
            dist.mode,
            kl_divergence(dist, dist.product),
            in_range,
        )

    arguments = (logits, noise, weights, mask, tau, share, action)
    fast = torch.compile(numbers, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(*arguments), numbers(*arguments))
    torch.compiler.reset()


# -- errors --------------------------------------------------------------------------------------

LOGITS, NOISE, WEIGHTS = torch.zeros(4, 2, 3), torch.zeros(4, 2, 5, 3), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(())}, r"IGCMixture: expected `perturbation`.*shape \(\)"),
        ({"perturbation": torch.zeros(4, 5, 2, 3)}, r"\(4, 2, 3\), got \(4, 5, 2, 3\) and \(4, 5"),
        ({"perturbation": LOGITS}, r"\[\*B, n_agents, n_components, n_actions\].*got \(4, 2, 3\)"),
        ({"component_logits": torch.zeros(4, 6)}, r"got \(4, 2, 5, 3\) and \(4, 6\)"),
        ({"component_logits": torch.zeros(3, 5)}, r"`component_logits` \[\*B, n_comp.*\(3, 5\)"),
        ({"component_logits": torch.zeros(5)}, r"and \(5,\)"),
        ({"component_logits": torch.tensor(0.0)}, r"and \(\)"),
        (
            {"perturbation": torch.zeros(4, 2, 0, 3), "component_logits": torch.zeros(4, 0)},
            r"at least one component.*and \(4, 0\)",
        ),
        (
            {
                "logits": torch.zeros(3),
                "perturbation": torch.zeros(5, 3),
                "component_logits": WEIGHTS[0],
            },
            r"`logits` of shape \[\*B, n_agents, size\].*\(3,\)",
        ),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"`mask`.*\(4, 2, 3\).*\(2, 3\)"),
        ({"mask": torch.ones(4, 2, 3)}, r"boolean `mask`.*torch\.float32"),
        ({"mask": torch.zeros(4, 2, 3, dtype=torch.bool)}, r"at least one allowed action"),
        ({"logits": LOGITS + math.nan}, r"finite `logits`, got nan"),
        ({"perturbation": NOISE + math.inf}, r"IGCMixture: expected finite `perturbation`.*inf"),
        ({"component_logits": WEIGHTS - math.inf}, r"finite `component_logits`, got -inf"),
        ({"temperature": 0.0}, r"IGCMixture: expected `temperature` > 0, got 0\.0"),
        ({"strength": -0.1}, r"`strength` >= 0, got -0\.1"),
        ({"consistency": 1.1}, r"`consistency` in \[0, 1\], got 1\.1"),
        ({"modified_share": -0.1}, r"`modified_share` in \[0, 1\], got -0\.1"),
        ({"modified_share": 1.1}, r"`modified_share` in \[0, 1\], got 1\.1"),
        ({"modified_share": math.nan}, r"`modified_share` in \[0, 1\], got nan"),
        ({"margin": 0.0}, r"`margin` > 0, got 0\.0"),
        ({"noise_bound": 1.0}, r"`noise_bound` in \(0, 1\), got 1\.0"),
    ],
)
def test_errors_name_what_came_and_what_was_expected(arguments, message):
    valid = {"logits": LOGITS, "perturbation": NOISE, "component_logits": WEIGHTS}
    IGCMixture(**valid, validate_args=True)
    with pytest.raises(ValueError, match=message):
        IGCMixture(**{**valid, **arguments}, validate_args=True)


def test_a_share_that_does_not_fit_the_agents_is_an_error():
    """One number for each state would be taken for one of each agent."""
    with pytest.raises(RuntimeError, match=r"\[4, 2, 1\]"):
        IGCMixture(LOGITS, NOISE, WEIGHTS, modified_share=torch.rand(4, 1))


def test_values_are_looked_at_by_default_on_the_cpu_alone():
    with pytest.raises(ValueError, match="finite `component_logits`"):
        IGCMixture(LOGITS, NOISE, WEIGHTS + math.nan)
    dist = IGCMixture(LOGITS + math.nan, NOISE, WEIGHTS, validate_args=False)
    assert dist.logits.isnan().any()
