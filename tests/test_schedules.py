"""Schedules of coefficients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchrl.objectives import ClipPPOLoss

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.schedules import Schedule, as_schedule

SHARE = st.floats(0, 1)


@given(
    ends=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    span=st.tuples(SHARE, SHARE).map(sorted).filter(lambda span: span[0] < span[1]),
    progress=st.tuples(SHARE, SHARE).map(sorted),
)
def test_values_are_monotonic_between_the_ends(ends, span, progress):
    (start, end), (since, until) = ends, span
    anneal = Schedule(start, end, since=since, until=until)
    early, late = (anneal(share) for share in progress)
    assert abs(early - start) <= abs(late - start) + 1e-9
    for share in progress:
        if share <= since:
            assert anneal(share) == start
        if share >= until:
            assert anneal(share) == pytest.approx(end)
        assert min(ends) - 1e-9 <= anneal(share) <= max(ends) + 1e-9


def test_halfway():
    assert Schedule(1, 0, since=0.2, until=0.6)(0.3) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "value", [0.3, Schedule(0.3, 0.3), {"start": 0.3, "end": 0.3, "until": 0.5}]
)
def test_numbers_mappings_and_schedules_are_schedules(value):
    schedule = as_schedule(value)
    assert isinstance(schedule, Schedule)
    assert [schedule(share) for share in (0.0, 0.4, 1.0)] == pytest.approx([0.3] * 3)
    assert as_schedule(schedule) is schedule


def test_unknown_arguments_of_a_schedule():
    with pytest.raises(ValueError, match=r"'stop'.*Available: end, since, start, until"):
        as_schedule({"start": 1.0, "stop": 0.0})


def test_a_change_at_once():
    step = Schedule(1.0, 0.2, since=0.5, until=0.5)
    assert [step(share) for share in (0.0, 0.499, 0.5, 1.0)] == [1.0, 1.0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0}, r"`until` in \(0, 1\], got 0"),
        ({"until": 1.5}, r"`until` in \(0, 1\], got 1.5"),
        ({"since": 0.6, "until": 0.5}, r"`since` in \[0, `until` 0.5\], got 0.6"),
        ({"since": -0.1}, r"`since` in \[0, `until` 1.0\], got -0.1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(1.0, 0.0, **options)


@pytest.mark.parametrize(
    "method", ["agent_mixer", "ail", "armappo", "happo", "ippo", "magpo", "mappo", "mat"]
)
def test_the_clipping_range_is_scheduled(method):
    falling = {"start": 1.0, "end": 0.5, "since": 0.5, "until": 1.0}
    clip = [{**falling, "start": 0.2, "end": 0.4}, falling]
    env = make_env("matrix/climbing", num_envs=16)
    options = {"clip_epsilon": clip, "epochs": 1, "num_minibatches": 1}
    algorithm = make_algorithm(method, env, 64, options)
    losses = [module for module in algorithm.modules() if isinstance(module, ClipPPOLoss)]
    seen = []

    def look():
        seen.append([(float(x.clip_epsilon_low), float(x.clip_epsilon_high)) for x in losses])

    for _ in range(4):
        batch = env.rollout(1, algorithm.policy, break_when_any_done=False)
        look()
        algorithm.update(batch)
    look()
    assert losses
    expected = [(0.2, 1), (0.2, 1), (0.2, 1), (0.3, 0.75), (0.4, 0.5)]
    for pairs, pair in zip(seen, expected, strict=True):
        assert pairs == [pytest.approx(pair)] * len(losses)
