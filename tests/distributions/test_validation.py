"""Errors of the discrete distributions."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_agentmixer.distributions import IGCCategorical, IGCMixture

LOGITS, NOISE, WEIGHTS = torch.zeros(4, 2, 3), torch.zeros(4, 2, 5, 3), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(3)}, r"`logits` of shape \[\*B, n_agents, size\].*\(3,\)"),
        ({"logits": torch.zeros(4, 0, 3)}, r"at least one agent.*\(4, 0, 3\)"),
        ({"logits": torch.zeros(4, 2, 0)}, r"one entry.*\(4, 2, 0\)"),
        ({"perturbation": torch.zeros(4, 2, 4)}, r"`perturbation`.*\(4, 2, 3\).*\(4, 2, 4\)"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"`mask`.*\(4, 2, 3\).*\(2, 3\)"),
        ({"mask": torch.ones(4, 2, 3)}, r"boolean `mask`.*torch\.float32"),
        (
            {"logits": LOGITS.index_fill(1, torch.tensor(1), math.nan)},
            r"`logits`.*nan.*\(0, 1, 0\)",
        ),
        ({"logits": LOGITS - math.inf}, r"finite `logits`, got -inf"),
        ({"perturbation": LOGITS + math.inf}, r"finite `perturbation`, got inf"),
        (
            {"mask": torch.ones(4, 2, 3, dtype=torch.bool).index_fill(1, torch.tensor(1), False)},
            r"at least one allowed action.*\(0, 1\) \(4 such agents",
        ),
        ({"temperature": 0.0}, r"`temperature` > 0, got 0\.0"),
        ({"temperature": -1.0}, r"`temperature` > 0, got -1\.0"),
        ({"strength": -0.1}, r"`strength` >= 0, got -0\.1"),
        ({"consistency": -0.1}, r"`consistency` in \[0, 1\], got -0\.1"),
        ({"consistency": 1.1}, r"`consistency` in \[0, 1\], got 1\.1"),
        ({"temperature": math.nan}, r"`temperature` > 0, got nan"),
    ],
)
def test_categorical_errors_name_what_came_and_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        IGCCategorical(**{"logits": LOGITS, **arguments}, validate_args=True)


def test_per_agent_distributions_need_no_agent_axis():
    assert IGCCategorical(torch.zeros(3), joint=False).log_prob(torch.tensor(1)).shape == ()
    with pytest.raises(ValueError, match=r"\[\*B, size\].*got \(\)"):
        IGCCategorical(torch.tensor(0.0), joint=False)


def test_categorical_values_are_not_checked_without_validation():
    nan = LOGITS + math.nan
    dist = IGCCategorical(nan, validate_args=False)
    assert dist.logits.isnan().all()


def test_categorical_values_are_checked_by_default_on_the_cpu():
    with pytest.raises(ValueError, match="finite `logits`"):
        IGCCategorical(LOGITS + math.nan)


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
    ],
)
def test_mixture_errors_name_what_came_and_what_was_expected(arguments, message):
    valid = {"logits": LOGITS, "perturbation": NOISE, "component_logits": WEIGHTS}
    IGCMixture(**valid, validate_args=True)
    with pytest.raises(ValueError, match=message):
        IGCMixture(**{**valid, **arguments}, validate_args=True)


def test_a_share_that_does_not_fit_the_agents_is_an_error():
    """One number per state would broadcast as one number per agent."""
    with pytest.raises(RuntimeError, match=r"\[4, 2, 1\]"):
        IGCMixture(LOGITS, NOISE, WEIGHTS, modified_share=torch.rand(4, 1))


def test_mixture_values_are_checked_by_default_on_the_cpu():
    with pytest.raises(ValueError, match="finite `component_logits`"):
        IGCMixture(LOGITS, NOISE, WEIGHTS + math.nan)
    dist = IGCMixture(LOGITS + math.nan, NOISE, WEIGHTS, validate_args=False)
    assert dist.logits.isnan().any()
