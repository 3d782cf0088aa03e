"""Distributions under torch.compile, without graph breaks."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import (
    GroupedMixtureBuilder,
    IGCCategorical,
    IGCMixture,
    IGCNormal,
    IGCTanhNormal,
    igc_mixture,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def check(numbers, *arguments, backend="aot_eager"):
    """Compiled and eager results are equal."""
    fast = torch.compile(numbers, fullgraph=True, backend=backend)
    torch.testing.assert_close(fast(*arguments), numbers(*arguments))


def categorical_inputs(n, k):
    logits, noise = torch.randn(2, 5, n, k)
    mask = torch.rand(5, n, k) < 0.6
    mask[..., 0] = True
    return logits, noise, mask


def test_categorical():
    """Compile with code generation; the other tests use the faster ``aot_eager`` backend."""
    logits, noise, mask = categorical_inputs(2, 4)
    tau, consistency = torch.rand(5, 2, 1) + 0.5, torch.rand(5, 2, 1)
    action = IGCCategorical(logits, noise, mask).sample()

    def numbers(logits, noise, mask, tau, consistency, action):
        dist = IGCCategorical(logits, noise, mask, tau, 1.0, consistency)
        return dist.logits, dist.log_prob(action), dist.entropy(), dist.mode

    check(numbers, logits, noise, mask, tau, consistency, action, backend="inductor")


@pytest.mark.parametrize("cls", [IGCNormal, IGCTanhNormal])
def test_normal(cls):
    loc, scale = torch.randn(6, 2, 3), torch.rand(6, 2, 3) + 0.1
    bounds = {} if cls is IGCNormal else {"low": -2.0, "high": 1.5}
    action = cls(loc, scale, **bounds).sample()

    def numbers(loc, scale, action):
        dist = cls(loc, scale, **bounds)
        return dist.log_prob(action), dist.entropy(), dist.deterministic_sample

    check(numbers, loc, scale, action)


@pytest.mark.parametrize("limit", [256, 1], ids=["enumerated", "large team"])
def test_mixture(limit, monkeypatch):
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", limit)
    logits, _, mask = categorical_inputs(3, 4)
    noise, weights = torch.randn(5, 3, 2, 4), torch.randn(5, 2)
    tau, share = torch.rand(5, 3, 1) + 0.5, torch.rand(5, 3, 1)
    action = IGCMixture(logits, noise, weights, mask).sample()

    def numbers(logits, noise, weights, mask, tau, share, action):
        dist = IGCMixture(logits, noise, weights, mask, tau, 1.0, 0.5, share)
        sample = dist.sample()
        in_range = (sample >= 0) & (sample < 4) & (dist.log_prob(sample).unsqueeze(-1) > -100)
        kl = kl_divergence(dist, dist.product)
        return dist.logits, dist.log_prob(action), dist.entropy(), dist.mode, kl, in_range

    check(numbers, logits, noise, weights, mask, tau, share, action)


def test_mixture_of_groups():
    (a, _, mask), b = categorical_inputs(2, 4), torch.randn(5, 1, 3)
    noise, weights = (torch.randn(5, 2, 2, 4), torch.randn(5, 1, 2, 3)), torch.randn(5, 2)
    build = GroupedMixtureBuilder(["a", "b"], validate_args=False)
    actions = (torch.zeros(5, 2, dtype=torch.int64), torch.ones(5, 1, dtype=torch.int64))

    def numbers(a, b, mask, noise, weights, actions):
        groups = {"a.logits": a, "a.perturbation": noise[0], "a.mask": mask}
        groups |= {"b.logits": b, "b.perturbation": noise[1]}
        dist = build(component_logits=weights, **groups)
        return dist.log_prob(*actions), dist.entropy(), dist.mode

    check(numbers, a, b, mask, noise, weights, actions)
