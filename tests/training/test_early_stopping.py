"""Early stopping: where a run ends and why; a resumed run ends at the same evaluation."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_checkpointing import Stopped, assert_equal_runs, run, stop_at

from torchrl_agentmixer.reporting import read_metrics, read_runs
from torchrl_agentmixer.training import EarlyStopping, RunCheckpoints


def stops_at(values, stopping):
    """Index of the evaluation that ends training, from the whole history."""
    for i, value in enumerate(values):
        if stopping.target is not None and value >= stopping.target:
            return i
        best, last_better = values[0], 0
        for j, other in enumerate(values[: i + 1]):
            if other > best + stopping.min_delta:
                best, last_better = other, j
        if stopping.patience is not None and i - last_better >= stopping.patience:
            return i
    return None


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    target=st.none() | st.integers(-3, 4),
    patience=st.none() | st.integers(1, 4),
    min_delta=st.sampled_from([0, 1, 2]),
)
def test_against_the_whole_history(values, target, patience, min_delta):
    stopping = EarlyStopping(metric="x", target=target, patience=patience, min_delta=min_delta)
    state, stopped = {}, None
    for i, value in enumerate(values):
        state = stopping.after({"x": None}, stopping.after({"x": value}, state))
        if stopping.reason(state) is not None:
            stopped = i
            break
    assert stopped == stops_at(values, stopping)


def test_off_by_default_and_checked():
    assert EarlyStopping().reason(EarlyStopping().after({"eval_return": 1e9}, {})) is None
    EarlyStopping(metric="no such thing").check({"frames": 1.0})  # off: nothing to check
    with pytest.raises(ValueError, match="`patience` >= 1, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="`min_delta` >= 0, got -1"):
        EarlyStopping(min_delta=-1)


def test_an_unknown_metric_is_an_error_at_the_first_batch(tmp_path):
    with pytest.raises(ValueError, match=r"got 'eval_retrun'.*eval_return, eval_score") as error:
        run(tmp_path, "bridge", early_stopping=EarlyStopping(metric="eval_retrun", target=1.0))
    assert "loss_critic" in str(error.value)
    assert not (tmp_path / "algorithm.pt").exists()


def test_a_target_completes_the_run(tmp_path):
    stopping = EarlyStopping(metric="eval_length", target=1.0)
    _, messages = run(tmp_path, "bridge", early_stopping=stopping)
    assert messages == [
        f"{tmp_path}: stopped early at frame 80: `eval_length` 5 reaches the target 1."
    ]
    assert read_metrics(tmp_path)["frames"] == [40, 80]
    frames, state = RunCheckpoints(tmp_path / "checkpoints").load_newest()
    assert frames == 80
    saved = torch.load(tmp_path / "algorithm.pt", weights_only=True)
    for name, value in state["ranks"][0]["algorithm"]["parameters"].items():
        assert torch.equal(value, saved[name]), name


def test_a_resumed_run_stops_at_the_same_evaluation(tmp_path):
    """eval_length is 5 at every evaluation: at 80 the best, at 160 and 240 no better."""
    stopping = EarlyStopping(metric="eval_length", patience=2)
    whole = {"total_frames": 400, "early_stopping": stopping}
    run(tmp_path / "whole", "bridge", **whole)
    for frames in (120, 200):
        with pytest.raises(Stopped):
            run(
                tmp_path / "cut", "bridge", resume=frames > 120, on_metrics=stop_at(frames), **whole
            )
    _, messages = run(tmp_path / "cut", "bridge", resume=True, **whole)
    assert "stopped early at frame 240: no `eval_length` above 5 in 2 evaluations" in messages[-1]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    # A run that stopped early stays complete,
    _, messages = run(tmp_path / "cut", "bridge", resume=True, **whole)
    assert "stopped early at frame 240" in messages[-1]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    # and without early stopping it continues, equal to a run that never had it.
    run(tmp_path / "never", "bridge", total_frames=400)
    run(tmp_path / "cut", "bridge", resume=True, total_frames=400)
    assert_equal_runs(tmp_path / "never", tmp_path / "cut")


def test_a_report_names_early_stopping(tmp_path):
    path = tmp_path / "runs" / "grid" / "happo" / "0"
    run(path, "bridge", early_stopping=EarlyStopping(metric="eval_length", target=1.0))
    config = {
        "env": {"name": "grid/bridge_crossing", "total_frames": 240},
        "algorithm": {"name": "happo"},
        "seed": 0,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "versions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"240 frames, got 80: it stopped early.*early_stopping"):
        read_runs(tmp_path / "runs")
    (path / "algorithm.pt").unlink()
    with pytest.raises(ValueError, match=r"240 frames, got 80\. Let it finish"):
        read_runs(tmp_path / "runs")
