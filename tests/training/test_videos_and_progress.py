"""Animations, which do not change training, and the progress bar."""

from __future__ import annotations

import io
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_checkpointing import RUNS, Stopped, assert_equal_runs, run, stop_at

from torchrl_agentmixer.envs import BridgeCrossingEnv
from torchrl_agentmixer.training import ProgressBar, RunCheckpoints


def names(path):
    return [video.name for video in sorted((path / "videos").iterdir())]


@pytest.mark.parametrize("kind", ["bridge", "vmas"])
def test_videos_do_not_change_training_and_resume(tmp_path, kind, monkeypatch):
    """Evaluations are at 80, 160 and 240; the first after 200 frames is the last."""
    monkeypatch.setitem(RUNS, "vmas", ("vmas/predator_prey", "mappo", {"epochs": 1}))
    first, last = (f"{frames:012d}.gif" for frames in (0, 240))
    run(tmp_path / "none", kind)
    run(tmp_path / "whole", kind, video_interval=200)
    assert names(tmp_path / "whole") == [first, last]
    with pytest.raises(Stopped):
        run(tmp_path / "cut", kind, on_metrics=stop_at(120), video_interval=200)
    (tmp_path / "cut" / "videos" / first).unlink()
    run(tmp_path / "cut", kind, resume=True, video_interval=200)
    assert names(tmp_path / "cut") == [last]
    for name in names(tmp_path / "cut"):
        pictures = [Image.open(tmp_path / one / "videos" / name) for one in ("whole", "cut")]
        assert pictures[0].n_frames == pictures[1].n_frames > 1
        pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
        assert (pixels[0] == pixels[1]).all()
    assert_equal_runs(tmp_path / "none", tmp_path / "whole")
    assert_equal_runs(tmp_path / "none", tmp_path / "cut")


def test_random_numbers_are_restored_after_drawing(tmp_path, monkeypatch):
    render = BridgeCrossingEnv.render

    def drawing(*args, **kwargs):
        random.random(), np.random.rand(), torch.rand(1)
        return render(*args, **kwargs)

    monkeypatch.setattr(BridgeCrossingEnv, "render", drawing)
    states = []
    for path, interval in ((tmp_path / "a", None), (tmp_path / "b", 80)):
        random.seed(0), np.random.seed(0)
        run(path, "bridge", video_interval=interval)
        states.append(RunCheckpoints(path / "checkpoints").load_newest()[1]["ranks"][0]["random"])
    assert str(states[0]) == str(states[1])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_starts_at_the_frames_so_far_and_shows_returns():
    screen = Terminal()
    bar = ProgressBar(1000, file=screen)
    bar.start(600)
    bar.update({"frames": 700, "return": 1.25, "eval_return": 4.5, "score": None})
    bar.update({"frames": 800, "return": None, "eval_return": None, "score": 0.5})
    bar.close()
    last = screen.getvalue().split("\r")[-1]
    assert "80%" in last
    assert "800/1.00k" in last
    assert re.search(r"\[\d\d:\d\d<(\d\d:\d\d|\?)", last)  # time so far, and time left
    assert "frames/s" in last
    assert (
        "return=1.25, eval_return=4.5, score=0.5" in last
    )  # a missing value leaves the latest one
    assert "60%" in screen.getvalue()


def test_without_a_terminal_a_line_at_every_evaluation(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("torchrl_agentmixer.training.progress.time.monotonic", lambda: clock[0])
    file = io.StringIO()
    bar = ProgressBar(1_000_000, file=file, name="runs/a")
    bar.start(200_000)
    for frames, seconds, evaluated in ((300_000, 50.0, None), (400_000, 100.0, 4.5)):
        clock[0] = 100.0 + seconds
        bar.update({"frames": frames, "return": 1.25, "eval_return": evaluated})
    bar.log("resumed")
    bar.close()
    # 200,000 frames since the start in 100 s; 600,000 left.
    line = "400,000 of 1,000,000 frames (40%), return 1.25, eval_return 4.5, 2,000 frames/s"
    assert file.getvalue() == f"runs/a: {line}, 0:05:00 left\n"
    assert capsys.readouterr().out == "resumed\n"


def test_a_line_is_written_at_once_to_a_pipe(monkeypatch):
    pipe = io.TextIOWrapper(raw := io.BytesIO(), write_through=False)
    monkeypatch.setattr("sys.stderr", pipe)
    bar = ProgressBar(10)
    bar.start(0)
    bar.update({"frames": 5, "eval_return": 1.0})
    assert raw.getvalue().startswith(b"5 of 10 frames (50%)")


def test_without_tqdm_there_is_no_bar(monkeypatch):
    messages = []
    monkeypatch.setattr("torchrl_agentmixer.training.progress.find_spec", lambda name: None)
    monkeypatch.setattr("torchrl_agentmixer.training.progress.torchrl_logger.info", messages.append)
    bar = ProgressBar(1000)
    bar.start(0)
    bar.update({"frames": 10, "return": 1.0})
    bar.update({"frames": 500, "eval_return": 1.0})
    bar.log("resumed")
    bar.close()
    assert len(messages) == 2
    assert messages[0].startswith("500 of 1,000 frames (50%)")
    assert messages[1] == "resumed"
