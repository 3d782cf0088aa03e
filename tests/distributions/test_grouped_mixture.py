"""GroupedMixture against enumeration: one component for the agents of all groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    GroupedMixture,
    GroupedMixtureBuilder,
    IGCCategorical,
    IGCMixture,
    igc_mixture,
)
from torchrl_agentmixer.distributions.grouped_mixture import join_agents

from .mixture_by_hand import entropy_of, eq_12, joint_by_hand, kl_of, mix, softmax

MASKED = pytest.mark.parametrize("masked", [False, True])
# Two scouts with three actions and one tank with two.
SIZES = {"scouts": (2, 3), "tank": (1, 2)}
JOINT = list(itertools.product(range(3), range(3), range(2)))
COEFFICIENTS = {"temperature": 0.8, "strength": 1.2, "consistency": 0.3, "modified_share": 0.9}


def arguments(masked=False, batch=(4,), dtype=torch.float64, scale=3.0, **coefficients):
    """Arguments of a builder, with three components; some actions are forbidden if ``masked``."""
    torch.manual_seed(0)
    named = {"component_logits": torch.randn(*batch, 3, dtype=dtype)}
    for name, (n, k) in SIZES.items():
        named[f"{name}.logits"] = torch.randn(*batch, n, k, dtype=dtype)
        named[f"{name}.perturbation"] = scale * torch.randn(*batch, n, 3, k, dtype=dtype)
        if masked:
            mask = torch.rand(*batch, n, k) < 0.5
            named[f"{name}.mask"] = mask.scatter(-1, torch.randint(k, (*batch, n, 1)), True)
        for key, value in {**COEFFICIENTS, **coefficients}.items():
            named[f"{name}.{key}"] = torch.full((*batch, n, 1), value, dtype=dtype)
    return named


def build(*args, **kwargs):
    return GroupedMixtureBuilder(list(SIZES))(**arguments(*args, **kwargs))


def table(team):
    """Probabilities of all joint actions, ``[states, n_joint]``, by ``log_prob``."""
    joint = torch.tensor(JOINT).reshape(len(JOINT), *[1] * len(team.batch_shape), 3)
    joint = joint.expand(-1, *team.batch_shape, -1)
    log_prob = team.log_prob(joint[..., :2], joint[..., 2:])
    return log_prob.exp().reshape(len(JOINT), -1).T


def table_by_hand(named, **coefficients):
    """The mixture in plain Python: every component is a product over the agents of all groups."""
    c = {**COEFFICIENTS, **coefficients}
    rows = []
    for state in range(len(named["component_logits"])):
        policies = [[] for _ in range(4)]
        for name, (n, k) in SIZES.items():
            logits = named[f"{name}.logits"][state].tolist()
            noise = named[f"{name}.perturbation"][state].tolist()
            mask = named.get(f"{name}.mask")
            allowed = [[True] * k] * n if mask is None else mask[state].tolist()
            for i in range(n):
                policies[0].append(softmax(logits[i], allowed[i]))
                for m in range(3):
                    values = (c["temperature"], c["strength"], c["consistency"])
                    policies[1 + m].append(eq_12(logits[i], noise[i][m], allowed[i], *values))
        w = softmax(named["component_logits"][state].tolist(), [True] * 3)
        share = c["modified_share"]
        weights = [1 - share, *(share * value for value in w)]
        rows.append(mix(weights, map(joint_by_hand, policies)))
    return torch.tensor(rows, dtype=torch.float64)


@MASKED
def test_log_prob_is_the_enumerated_mixture_of_all_groups(masked):
    named = arguments(masked)
    probs = table(GroupedMixtureBuilder(list(SIZES))(**named))
    expected = table_by_hand(named)
    torch.testing.assert_close(probs, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(probs.sum(-1), torch.ones(4, dtype=torch.float64))
    if masked:
        assert (expected == 0).any()
        assert (probs[expected == 0] == 0).all()


def groups_are_independent(probs):
    """Joint probabilities if scouts and tank drew separate components."""
    grid = probs.reshape(-1, 9, 2)
    return (grid.sum(2, keepdim=True) * grid.sum(1, keepdim=True)).flatten(1)


def test_groups_are_correlated():
    """Scouts take action 0 exactly where the tank does: ln 2 nats of mutual information."""
    named = arguments(scale=0.0, modified_share=1.0)
    for name, (n, k) in SIZES.items():
        named[f"{name}.logits"] = torch.zeros(4, n, k).double()
        noise = torch.full((4, n, 3, k), -1e4, dtype=torch.float64)
        noise[:, :, 0, 0] = noise[:, :, 1, 1] = noise[:, :, 2, 1] = 9.0
        named[f"{name}.perturbation"] = noise
    named["component_logits"] = torch.tensor([math.log(2), 0.0, 0.0]).double().expand(4, 3)
    team = GroupedMixtureBuilder(list(SIZES))(**named)
    probs = table(team)
    information = kl_of(probs, groups_are_independent(probs))
    torch.testing.assert_close(
        information, torch.full((4,), math.log(2)).double(), rtol=0, atol=1e-3
    )
    scouts, tank = team.sample((500,))
    same = (scouts == tank).all(-1)
    assert same.double().mean() > 0.99
    torch.testing.assert_close(team.entropy(), entropy_of(probs), rtol=0, atol=1e-3)


def test_random_noise_correlates_groups_and_strength_zero_does_not():
    probs = table(build())
    assert (kl_of(probs, groups_are_independent(probs)) > 1e-3).all()
    probs = table(build(strength=0.0, temperature=1.0, consistency=0.0))
    torch.testing.assert_close(probs, groups_are_independent(probs))


@MASKED
def test_sample_frequencies_fit_the_probabilities(masked):
    torch.manual_seed(0)
    team, n = build(masked, batch=(2,)), 20_000
    scouts, tank = team.sample((n,))
    assert scouts.shape == (n, 2, 2)
    assert tank.shape == (n, 2, 1)
    index = scouts[..., 0] * 6 + scouts[..., 1] * 2 + tank[..., 0]
    frequency = torch.nn.functional.one_hot(index, 18).double().mean(0)
    probs = table(team)
    error = 5 * (probs * (1 - probs) / n).sqrt() + 1e-9
    assert ((frequency - probs).abs() <= error).all()


@MASKED
def test_mode_is_the_most_probable_joint_action(masked):
    team = build(masked, batch=(50,))
    best = torch.tensor(JOINT)[table(team).argmax(-1)]
    assert torch.equal(torch.cat(team.mode, -1), best)
    assert torch.equal(torch.cat(team.deterministic_sample, -1), best)
    assert [tuple(part.shape) for part in team.mode] == [(50, 2), (50, 1)]
    individual = [named.argmax(-1) for named in _masked_logits(arguments(masked, batch=(50,)))]
    assert not torch.equal(best, torch.cat(individual, -1))
    exact = build(masked, batch=(50,), consistency=1.0)
    assert torch.equal(torch.cat(exact.mode, -1), torch.cat(individual, -1))


def _masked_logits(named):
    for name in SIZES:
        logits = named[f"{name}.logits"]
        mask = named.get(f"{name}.mask", torch.ones_like(logits, dtype=torch.bool))
        yield logits.masked_fill(~mask, -math.inf)


@MASKED
@pytest.mark.parametrize("limit", [256, 1], ids=["enumerated", "large team"])
def test_absent_actions_are_never_taken(masked, limit, monkeypatch):
    """The mixture pads groups with fewer actions; the padding has no probability."""
    monkeypatch.setattr(igc_mixture, "MAX_JOINT_ACTIONS", limit)
    team = build(masked, batch=(200,), scale=20.0)
    for draw in (team.sample((20,)), team.mode):
        assert draw[0].max() == 2
        assert draw[1].max() == 1


@MASKED
def test_entropy_and_kl_from_the_individual_policies_are_bounds(masked):
    """KL from the GroupedDistribution of the individual policies, by enumeration."""
    named = arguments(masked)
    team = GroupedMixtureBuilder(list(SIZES))(**named)
    individual = {
        name: IGCCategorical(named[f"{name}.logits"], mask=named.get(f"{name}.mask"))
        for name in SIZES
    }
    product = GroupedDistribution(individual)
    probs, others = table(team), table(product)
    torch.testing.assert_close(others, table_by_hand(named, modified_share=0.0))
    assert (team.entropy() <= entropy_of(probs) + 1e-9).all()
    exact, kl = kl_of(probs, others), kl_divergence(team, product)
    assert kl.shape == (4,)
    assert (kl >= exact - 1e-9).all()
    assert (exact > 0).all()
    # Only the entropy is a bound: the rest of the KL is exact.
    torch.testing.assert_close(kl - exact, entropy_of(probs) - team.entropy())
    at_product = build(masked, modified_share=0.0)
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(at_product, product), zero)


def test_kl_needs_the_same_groups_in_the_same_order():
    named = arguments()
    product = {n: IGCCategorical(named[f"{n}.logits"]) for n in reversed(SIZES)}
    with pytest.raises(ValueError, match=r"\['scouts', 'tank'\] and \['tank', 'scouts'\]"):
        kl_divergence(build(), GroupedDistribution(product))


def test_kl_trains_mixture_and_individual_policies():
    named = arguments(True)
    unread = "tank.modified_share"  # only the first agent's share is used
    leaves = [
        value.requires_grad_()
        for key, value in named.items()
        if value.is_floating_point() and key != unread
    ]
    team = GroupedMixtureBuilder(list(SIZES))(**named)
    product = GroupedDistribution(
        {n: IGCCategorical(named[f"{n}.logits"], mask=named[f"{n}.mask"]) for n in SIZES}
    )
    gradients = torch.autograd.grad(kl_divergence(team, product).sum(), leaves)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_log_prob_takes_tuples_tensors_and_tensordicts():
    team = build()
    sample = team.sample()
    expected = team.log_prob(*sample)
    torch.testing.assert_close(team.log_prob(sample), expected)
    nested = TensorDict({n: {"action": a} for n, a in zip(SIZES, sample, strict=True)}, [4])
    torch.testing.assert_close(team.log_prob(nested), expected)
    torch.testing.assert_close(team.log_prob(nested.select("tank", "scouts")), expected)
    with pytest.raises(ValueError, match=r"GroupedMixture.*\['scouts', 'tank'\], got 1"):
        team.log_prob(sample[0])


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes(batch):
    team = build(True, batch)
    assert team.batch_shape == batch
    assert not team.has_rsample
    assert [tuple(part.shape) for part in team.sample((5,))] == [(5, *batch, 2), (5, *batch, 1)]
    assert team.log_prob(team.sample((5,))).shape == (5, *batch)
    assert team.entropy().shape == batch
    big = team.expand((7, *batch))
    assert type(big) is GroupedMixture
    sample = big.sample()
    torch.testing.assert_close(big.log_prob(sample), team.log_prob(sample))
    torch.testing.assert_close(
        torch.cat(big.mode, -1), torch.cat(team.mode, -1).expand(7, *batch, 3)
    )


# -- builder -------------------------------------------------------------------------------------


def test_builder_of_one_group_builds_an_igc_mixture():
    named = {k: v for k, v in arguments(True).items() if not k.startswith("tank")}
    dist = GroupedMixtureBuilder(["scouts"])(**named)
    assert type(dist) is IGCMixture
    own = {k.removeprefix("scouts."): v for k, v in named.items()}
    action = dist.sample((20,))
    torch.testing.assert_close(dist.log_prob(action), IGCMixture(**own).log_prob(action))


def test_builder_masks_only_where_it_must():
    """Groups of one size and no masks need no mask; one masked group masks the team."""
    same_sizes = {"component_logits": torch.zeros(4, 2)}
    for name in ("a", "b.c"):
        same_sizes[f"{name}.logits"] = torch.randn(4, 2, 3)
        same_sizes[f"{name}.perturbation"] = torch.randn(4, 2, 2, 3)
    builder = GroupedMixtureBuilder(["a", "b.c"])
    assert builder(**same_sizes).mixture.mask is None
    mask = torch.tensor([True, False, True]).expand(4, 2, 3)
    masked = builder(**same_sizes, **{"b.c.mask": mask})
    assert torch.equal(masked.mixture.mask[:, :2], torch.ones(4, 2, 3, dtype=torch.bool))
    assert torch.equal(masked.mixture.mask[:, 2:], mask)
    assert build().mixture.mask[0].tolist() == [[True] * 3, [True] * 3, [True, True, False]]


def test_builder_checks_values_as_told():
    named = arguments()
    named["tank.perturbation"] = named["tank.perturbation"] + math.nan
    with pytest.raises(ValueError, match="finite `perturbation`, got nan"):
        GroupedMixtureBuilder(list(SIZES))(**named)
    GroupedMixtureBuilder(list(SIZES), validate_args=False)(**named)


def test_join_agents_pads_to_the_most_actions():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 1, 2)
    joined = join_agents([a, b], fill=7.0)
    assert joined.shape == (2, 4, 4)
    assert torch.equal(joined[:, :3], a)
    assert torch.equal(joined[:, 3:, :2], b)
    assert (joined[:, 3:, 2:] == 7).all()
    noise = join_agents([torch.ones(2, 3, 5, 4), torch.ones(2, 1, 5, 2)], fill=0.0, dim=-3)
    assert noise.shape == (2, 4, 5, 4)
    assert noise[:, 3, :, 2:].sum() == 0
