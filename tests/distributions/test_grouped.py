"""GroupedDistribution: log-probability, entropy and KL are sums over groups."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    GroupedDistributionBuilder,
    IGCCategorical,
    IGCNormal,
    IGCTanhNormal,
)

BATCHES = pytest.mark.parametrize("batch", [(), (4,), (2, 3)])


def parts(batch=(4,), seed=0):
    torch.manual_seed(seed)
    return {
        "scouts": IGCCategorical(torch.randn(*batch, 2, 5), torch.randn(*batch, 2, 5)),
        "tanks": IGCNormal(torch.randn(*batch, 3, 2), torch.rand(*batch, 3, 2) + 0.1),
        "ships": IGCTanhNormal(torch.randn(*batch, 1, 4), torch.rand(*batch, 1, 4) + 0.1),
    }


@BATCHES
def test_log_prob_entropy_and_kl_are_sums(batch):
    p, q = parts(batch), parts(batch, seed=1)
    team, other = GroupedDistribution(p), GroupedDistribution(q)
    actions = team.sample()
    log_prob = sum(dist.log_prob(a) for dist, a in zip(p.values(), actions, strict=True))
    torch.testing.assert_close(team.log_prob(*actions), log_prob)
    torch.testing.assert_close(team.entropy(), sum(dist.entropy() for dist in p.values()))
    kl = sum(kl_divergence(p[name], q[name]) for name in p)
    torch.testing.assert_close(kl_divergence(team, other), kl)
    assert team.log_prob(*actions).shape == team.entropy().shape == kl.shape == batch
    assert team.batch_shape == batch


def test_one_sample_per_group_in_order():
    torch.manual_seed(3)
    team = GroupedDistribution(parts())
    torch.manual_seed(5)
    samples = team.sample((6,))
    torch.manual_seed(5)
    expected = [dist.sample((6,)) for dist in team.distributions.values()]
    torch.testing.assert_close(samples, tuple(expected))
    assert [tuple(s.shape) for s in samples] == [(6, 4, 2), (6, 4, 3, 2), (6, 4, 1, 4)]
    assert team.log_prob(*samples).shape == (6, 4)


def test_log_prob_of_a_tensordict_of_actions():
    team = GroupedDistribution(parts())
    actions = team.sample()
    tensordict = TensorDict(
        {name: {"action": a} for name, a in zip(team.distributions, actions, strict=True)}, [4]
    )
    torch.testing.assert_close(team.log_prob(tensordict), team.log_prob(*actions))
    reordered = tensordict.select("ships", "tanks", "scouts")
    torch.testing.assert_close(team.log_prob(reordered), team.log_prob(*actions))


def test_log_prob_takes_a_sample_of_its_own():
    """A sample is a tuple; ``log_prob`` takes it whole or unpacked."""
    p = parts()
    team = GroupedDistribution(p)
    sample = team.sample((6,))
    assert type(sample) is tuple
    expected = sum(dist.log_prob(a) for dist, a in zip(p.values(), sample, strict=True))
    torch.testing.assert_close(team.log_prob(sample), expected)
    torch.testing.assert_close(team.log_prob(*sample), expected)
    alone = GroupedDistribution({"scouts": p["scouts"]})
    torch.testing.assert_close(alone.log_prob(sample[:1]), p["scouts"].log_prob(sample[0]))
    with pytest.raises(ValueError, match=r"'scouts'.*got 2"):
        team.log_prob(sample[:2])


def test_modes_and_deterministic_samples():
    p = parts()
    del p["ships"]  # has no mode in closed form
    team = GroupedDistribution(p)
    torch.testing.assert_close(team.mode, tuple(dist.mode for dist in p.values()))
    torch.testing.assert_close(team.deterministic_sample, team.mode)
    ships = GroupedDistribution(parts()).deterministic_sample[2]
    torch.testing.assert_close(ships, parts()["ships"].deterministic_sample)


def test_rsample_where_every_group_has_it():
    p = parts()
    assert not GroupedDistribution(p).has_rsample
    del p["scouts"]
    loc = torch.zeros(4, 3, 2, requires_grad=True)
    p["tanks"] = IGCNormal(loc, torch.ones(4, 3, 2))
    team = GroupedDistribution(p)
    assert team.has_rsample
    tanks, _ = team.rsample()
    tanks.sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones_like(loc))


def test_errors():
    with pytest.raises(ValueError, match="at least one group"):
        GroupedDistribution({})
    p = parts()
    p["tanks"] = IGCNormal(torch.zeros(5, 3, 2), torch.ones(5, 3, 2))
    with pytest.raises(ValueError, match=r"equal batch shapes.*\(4,\).*\(5,\)"):
        GroupedDistribution(p)
    team = GroupedDistribution(parts())
    with pytest.raises(ValueError, match=r"one action tensor per group of \['scouts'.*got 1"):
        team.log_prob(team.sample()[0])
    fewer = parts()
    del fewer["ships"]
    with pytest.raises(ValueError, match=r"same groups.*'ships'"):
        kl_divergence(team, GroupedDistribution(fewer))


# -- builder -------------------------------------------------------------------------------------


def test_builder_routes_arguments_by_group():
    p = parts()
    logits, noise = torch.randn(2, 4, 2, 5)
    build = GroupedDistributionBuilder(
        {"a": IGCCategorical, "b.c": IGCNormal}, {"a": {"consistency": 1.0}}
    )
    tanks = p["tanks"]
    team = build(
        **{
            "a.logits": logits,
            "a.perturbation": noise,
            "b.c.loc": tanks.loc,
            "b.c.scale": tanks.scale,
        }
    )
    assert isinstance(team, GroupedDistribution)
    expected = IGCCategorical(logits, noise, consistency=1.0)
    torch.testing.assert_close(team.distributions["a"].logits, expected.logits)
    torch.testing.assert_close(team.distributions["b.c"].loc, tanks.loc)


def test_builder_of_one_group_builds_its_distribution():
    build = GroupedDistributionBuilder({"a": IGCNormal}, {"a": {"joint": False}})
    dist = build(**{"a.loc": torch.zeros(4, 3, 2), "a.scale": torch.ones(4, 3, 2)})
    assert type(dist) is IGCNormal
    assert dist.batch_shape == (4, 3)


def test_builder_passes_none_for_what_is_missing():
    build = GroupedDistributionBuilder({"a": IGCCategorical})
    dist = build(**{"a.logits": torch.zeros(4, 2, 3), "a.mask": None, "a.perturbation": None})
    torch.testing.assert_close(dist.probs, torch.full((4, 2, 3), 1 / 3))
