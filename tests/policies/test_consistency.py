"""Consistency of joint and individual policies: modes and KL."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence

from torchrl_agentmixer.distributions import IGCCategorical, IGCNormal
from torchrl_agentmixer.policies import consistency_metrics, mode_agreement, team_divergence

from .groups_env import both_kinds, build, scouts, two_discrete


def test_mode_agreement_counts_agents_and_teams():
    """A continuous agent agrees if all its dimensions do."""
    actions = torch.tensor([[0, 1], [2, 2], [1, 1]])
    other = torch.tensor([[0, 0], [2, 2], [1, 1]])
    means = torch.zeros(3, 1, 2)
    moved = means.clone()
    moved[2, 0, 1] = 0.1
    agents, teams = mode_agreement((actions, means), (other, moved))
    assert agents.item() == pytest.approx(7 / 9)
    assert teams.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("num_components", [0, 3])
@pytest.mark.parametrize("builder", [scouts, two_discrete])
def test_metrics_of_discrete_actions(num_components, builder):
    policy, td = builder((50,), num_components=num_components)
    joint = policy.get_dist(td.clone())
    product = policy.decentralized(deterministic=False).get_dist(td.clone())
    metrics = consistency_metrics(policy, td)
    assert set(metrics.keys()) == {"mode_agreement", "team_mode_agreement", "divergence"}
    torch.testing.assert_close(metrics["divergence"], kl_divergence(joint, product).mean())
    one, other = (x if isinstance(x, tuple) else (x,) for x in (joint.mode, product.mode))
    same = torch.cat(one, -1) == torch.cat(other, -1)
    torch.testing.assert_close(metrics["mode_agreement"], same.float().mean())
    torch.testing.assert_close(metrics["team_mode_agreement"], same.all(-1).float().mean())
    assert metrics["divergence"] > 0.01
    assert 0 < metrics["team_mode_agreement"] < 1


@pytest.mark.parametrize("distribution", ["normal", "tanh_normal"])
def test_continuous_actions_have_no_divergence(distribution):
    """Individual scales are not trained, so a KL from them has no meaning."""
    options = {"modifier_kwargs": {"num_components": 0}, "distribution": distribution}
    joint_scale = build(("tanks",), **options)
    for policy, td in (joint_scale, both_kinds(distribution=distribution)):
        metrics = consistency_metrics(policy, td)
        assert set(metrics.keys()) == {"mode_agreement", "team_mode_agreement"}
    assert consistency_metrics(*joint_scale)["team_mode_agreement"] == 1


def test_metrics_do_not_write_into_the_data():
    policy, td = scouts()
    before = set(td.keys(True, True))
    consistency_metrics(policy, td)
    assert set(td.keys(True, True)) == before


def test_metrics_are_the_same_with_per_agent_factors():
    team, td = scouts(num_components=0)
    agents, _ = scouts(num_components=0, joint=False)
    expected, measured = consistency_metrics(team, td), consistency_metrics(agents, td)
    for name in expected.keys():  # noqa: SIM118
        torch.testing.assert_close(measured[name], expected[name], msg=name)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_team_divergence_sums_over_agents(batch):
    logits = torch.randn(2, *batch, 3, 5)
    teams = [IGCCategorical(x) for x in logits]
    agents = [IGCCategorical(x, joint=False) for x in logits]
    expected = kl_divergence(*teams)
    assert expected.shape == batch
    for pair in (teams, agents):
        torch.testing.assert_close(team_divergence(*pair, batch_dims=len(batch)), expected)
    loc = torch.randn(2, *batch, 3, 2)
    pair = [IGCNormal(x, torch.ones(()), joint=False) for x in loc]
    expected = 0.5 * (loc[0] - loc[1]).square().sum((-1, -2))
    torch.testing.assert_close(team_divergence(*pair, batch_dims=len(batch)), expected)
