"""Annealing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_agentmixer.algorithms import Schedule

SHARE = st.floats(0, 1)


@given(
    ends=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    span=st.tuples(SHARE, SHARE).map(sorted).filter(lambda span: span[0] < span[1]),
    shape=st.sampled_from(["linear", "cosine"]),
    progress=st.tuples(SHARE, SHARE).map(sorted),
)
def test_it_goes_one_way_between_its_ends(ends, span, shape, progress):
    (start, end), (since, until) = ends, span
    anneal = Schedule(start, end, since=since, until=until, shape=shape)
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
    assert Schedule(1, 0, since=0.2, until=0.6, shape="cosine")(0.4) == pytest.approx(0.5)
    assert Schedule(1, 0, since=0.2, until=0.6, shape="cosine")(0.3) == pytest.approx(0.853553)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0}, r"`until` in \(0, 1\], got 0"),
        ({"until": 1.5}, r"`until` in \(0, 1\], got 1.5"),
        ({"since": 0.5, "until": 0.5}, r"`since` in \[0, `until` 0.5\), got 0.5"),
        ({"since": -0.1}, r"`since` in \[0, `until` 1.0\), got -0.1"),
        ({"shape": "step"}, "`shape` linear or cosine, got 'step'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(1.0, 0.0, **options)
