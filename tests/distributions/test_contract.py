"""Properties of every distribution: shapes, samples, expand, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    GroupedMixture,
    GroupedNormalMixture,
    IGCCategorical,
    IGCMixture,
    IGCNormal,
    IGCNormalMixture,
    IGCTanhNormal,
    IGCTanhNormalMixture,
)

N, K, A = 3, 4, 2  # agents, actions, action dimensions


def categorical(batch, dtype, masked=False, **kwargs):
    shape = (*batch, N, K)
    mask = None
    if masked:
        mask = torch.rand(shape) < 0.6
        mask[..., 1] = True
    logits, noise = torch.randn(2, *shape, dtype=dtype)
    return IGCCategorical(logits, noise, mask, 0.8, 1.0, 0.4, **kwargs)


def mixture(batch, dtype, masked=False):
    own = categorical(batch, dtype, masked)
    noise = 3 * torch.randn(*batch, N, 2, K, dtype=dtype)
    weights = torch.randn(*batch, 2, dtype=dtype)
    return IGCMixture(own.individual_logits, noise, weights, own.mask, modified_share=0.7)


def normal(batch, dtype, cls=IGCNormal, masked=False, **kwargs):
    loc = torch.randn(*batch, N, A, dtype=dtype)
    if masked:
        kwargs["mask"] = torch.rand(*batch, N) < 0.5
    return cls(loc, torch.rand_like(loc) + 0.2, **kwargs)


def squashed(batch, dtype, **kwargs):
    high = torch.tensor([[1.0, 4.0]], dtype=dtype)
    return normal(batch, dtype, IGCTanhNormal, low=-2.0, high=high, **kwargs)


def plans(batch, dtype, cls=IGCNormalMixture, weights=None, **kwargs):
    own = normal(batch, dtype, masked=kwargs.pop("masked", False))
    shifts = torch.randn(*batch, N, 3, A, dtype=dtype)
    weights = torch.randn(*batch, 3, dtype=dtype) if weights is None else weights
    return cls(own.loc, own.scale, shifts, weights, 0.5, 0.7, mask=own.mask, **kwargs)


def squashed_plans(batch, dtype, **kwargs):
    high = torch.tensor([[1.0, 4.0]], dtype=dtype)
    return plans(batch, dtype, IGCTanhNormalMixture, low=-2.0, high=high, **kwargs)


def plans_of_groups(batch, dtype, build=plans):
    weights = torch.randn(*batch, 3, dtype=dtype)
    return GroupedNormalMixture({name: build(batch, dtype, weights=weights) for name in "ab"})


CASES = {
    "categorical": categorical,
    "categorical, masked": lambda *a: categorical(*a, masked=True),
    "categorical, per agent": lambda *a: categorical(*a, masked=True, joint=False),
    "mixture": mixture,
    "mixture, masked": lambda *a: mixture(*a, masked=True),
    "normal": normal,
    "normal, per agent": lambda *a: normal(*a, joint=False),
    "normal, masked": lambda *a: normal(*a, masked=True),
    "normal, masked, per agent": lambda *a: normal(*a, masked=True, joint=False),
    "squashed": squashed,
    "squashed, masked": lambda *a: squashed(*a, masked=True),
    "squashed, per agent": lambda *a: squashed(*a, joint=False),
    "groups": lambda *a: GroupedDistribution({"a": categorical(*a), "b": normal(*a)}),
    "one group": lambda *a: GroupedDistribution({"a": squashed(*a)}),
    "mixture of groups": lambda *a: GroupedMixture(mixture(*a, masked=True), {"a": 1, "b": 2}),
    "normal mixture": plans,
    "normal mixture, masked": lambda *a: plans(*a, masked=True),
    "normal mixture, per agent": lambda *a: plans(*a, joint=False),
    "normal mixture, masked, per agent": lambda *a: plans(*a, masked=True, joint=False),
    "squashed mixture": squashed_plans,
    "squashed mixture, masked": lambda *a: squashed_plans(*a, masked=True),
    "squashed mixture, per agent": lambda *a: squashed_plans(*a, joint=False),
    "normal mixture of groups": plans_of_groups,
    "squashed mixture of groups": lambda *a: plans_of_groups(*a, build=squashed_plans),
}
EVERY = pytest.mark.parametrize("name", list(CASES))
BATCHES = pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 5)])
# Distributions whose `deterministic_sample` is the mode.
WITH_MODE = pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in CASES
        if name != "one group" and not name.startswith(("squashed", "normal mixture"))
    ),
)


def build(name, batch=(5,), dtype=torch.float64):
    torch.manual_seed(0)
    return CASES[name](batch, dtype)


def parts(sample):
    """The tensors of a sample: one, or one per group."""
    return sample if isinstance(sample, tuple) else (sample,)


@EVERY
@BATCHES
@pytest.mark.parametrize("sample_shape", [(), (6,), (6, 2)])
def test_log_prob_takes_a_sample_of_its_own(name, batch, sample_shape):
    dist = build(name, batch)
    assert dist.batch_shape == ((*batch, N) if "per agent" in name else batch)
    draws = [dist.sample(sample_shape)]
    draws += [dist.rsample(sample_shape)] if dist.has_rsample else []
    for sample in draws:
        log_prob = dist.log_prob(sample)
        assert log_prob.shape == (*sample_shape, *dist.batch_shape)
        assert log_prob.isfinite().all()
        torch.testing.assert_close(dist.log_prob(*parts(sample)), log_prob)
        for part in parts(sample):
            assert part.shape[: len(sample_shape + batch)] == sample_shape + batch


@EVERY
@BATCHES
def test_entropy_and_deterministic_sample(name, batch):
    dist = build(name, batch)
    assert dist.entropy().shape == dist.batch_shape
    deterministic, sample = dist.deterministic_sample, dist.sample()
    assert dist.log_prob(deterministic).isfinite().all()
    for one, other in zip(parts(deterministic), parts(sample), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
    for value in parts(sample):
        assert not value.requires_grad


@WITH_MODE
def test_the_mode_has_the_highest_log_prob(name):
    dist = build(name, (20,))
    mode, samples = dist.mode, dist.sample((500,))
    assert (dist.log_prob(samples) <= dist.log_prob(mode) + 1e-9).all()
    for one, other in zip(parts(mode), parts(dist.deterministic_sample), strict=True):
        assert torch.equal(one, other)


@EVERY
def test_expand(name):
    dist = build(name)
    shape = (7, *dist.batch_shape)
    big = dist.expand(shape)
    assert type(big) is type(dist)
    assert big.batch_shape == shape
    assert big.event_shape == dist.event_shape
    sample = big.sample()
    assert all(part.shape[:2] == (7, 5) for part in parts(sample))
    torch.testing.assert_close(big.log_prob(sample), dist.log_prob(sample))
    torch.testing.assert_close(big.entropy(), dist.entropy().expand(shape))
    for one, other in zip(
        parts(big.deterministic_sample), parts(dist.deterministic_sample), strict=True
    ):
        torch.testing.assert_close(one, other.expand_as(one))
    again = big.expand((2, *shape)).sample((3,))
    assert all(part.shape[:4] == (3, 2, 7, 5) for part in parts(again))


@pytest.mark.parametrize("name", [name for name in CASES if "mixture" not in name])
def test_kl_of_a_distribution_from_itself_is_zero(name):
    dist = build(name)
    shape = (7, *dist.batch_shape)
    for p, q in ((dist, dist), (dist.expand(shape), build(name).expand(shape))):
        torch.testing.assert_close(kl_divergence(p, q), torch.zeros(p.batch_shape).double())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype):
    dist = build(name, dtype=dtype)
    assert dist.entropy().dtype == dist.log_prob(dist.sample()).dtype == dtype
    for part in parts(dist.sample()):
        assert part.dtype in (dtype, torch.int64)
