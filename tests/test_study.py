"""A study runs, resumes, reports, and goes on from a report."""

from __future__ import annotations

import csv
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_agentmixer.training import RunDirectory

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import study as script

STUDY = """
- environments:
    climbing:
      - env=climbing
      - env.total_frames=60
      - env.eval_interval=20
      - env.num_envs=20
      - env.frames_per_batch=20
  candidates:
    mappo: [algorithm=mappo, algorithm.epochs=1]
    mixture: [algorithm=agent_mixer_one_shot, algorithm.num_components=2, algorithm.epochs=1]
  seeds: 2
"""
# Evaluations of runs that nothing trained.
SCORES = {"mappo": [[5, 7], [6, 6]], "mixture": [[0, 11], [7, 7]]}


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """The script, in this process; returns what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def reported(tmp_path, study, run):
    """A report of the study; its runs are gone."""
    for job in script.read_study(study):
        directory = RunDirectory(job.folder(tmp_path / "runs"))
        for i, score in enumerate(SCORES[job.candidate][job.seed]):
            directory.log({"frames": 20 * (i + 1), "eval_score": score})
    out = ("--out", tmp_path / "runs", "--processes", 0)
    run(study, *out, "--report", tmp_path / "report")
    shutil.rmtree(tmp_path / "runs")
    return tmp_path / "report"


def evaluations(folder):
    with (folder / "evaluations.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_runs_resumes_and_reports(tmp_path, study, run):
    out = tmp_path / "runs"
    command = (study, "--out", out, "--processes", 1)
    assert "2 of 4 runs complete or left out" in run(*command, "--only", "mappo")
    stopped = out / "climbing" / "mixture" / "0.unfinished"
    stopped.mkdir(parents=True)
    (stopped / "metrics.csv").write_text("left behind by a run that was killed")
    kept = (out / "climbing" / "mappo" / "1" / "metrics.csv").read_bytes()
    page = run(*command, "--report", tmp_path / "report")
    assert "2 of 4 runs complete or left out" in page
    assert (out / "climbing" / "mappo" / "1" / "metrics.csv").read_bytes() == kept
    assert not stopped.exists()

    rows = evaluations(tmp_path / "report")
    assert [(r["candidate"], r["seed"], r["frames"]) for r in rows] == [
        (candidate, seed, frames)
        for seed in ("0", "1")
        for candidate in ("mappo", "mixture")
        for frames in ("20", "40", "60")
    ]
    last = [float(r["eval"]) for r in rows if r["candidate"] == "mappo"][2::3]
    assert f"| mappo | {' '.join(f'{x:.3g}' for x in last)}; **{sum(last) / 2:.3f}** |" in page


def test_the_page_by_hand(reported):
    lines = (reported / "README.md").read_text().splitlines()
    assert lines[0] == "# report"
    start = lines.index("| candidate | climbing |")
    assert lines[start + 2 : start + 4] == [
        "| mappo | **6.5<sub>0.5</sub>** (2) |",
        "| mixture | **9<sub>2</sub>** (2) |",
    ]
    start = lines.index("## climbing")
    mappo, mixture, _, picture = lines[start + 4 : start + 8]
    assert mappo.startswith("| mappo | 7 6; **6.500** |")
    assert mixture.startswith("| mixture | 11 7; **9.000** |")
    assert "| 0.88 [" in mixture  # of 11 > 7, 11 > 6, 7 = 7, 7 > 6
    assert picture == "![Curves](climbing.png)"
    assert (reported / "climbing.png").stat().st_size > 1000


class TestItGoesOnFromAReport:
    def test_that_has_all(self, tmp_path, study, run, reported):
        before = contents(reported)
        out = ("--out", tmp_path / "elsewhere", "--processes", 1)
        assert "4 of 4 runs complete or left out" in run(study, *out, "--report", reported)
        assert contents(reported) == before
        assert not (tmp_path / "elsewhere").exists()

    def test_that_lacks_a_seed(self, tmp_path, study, run, reported):
        study.write_text(STUDY.replace("seeds: 2", "seeds: 3"))
        before = (reported / "evaluations.csv").read_text()
        out = ("--out", tmp_path / "elsewhere", "--processes", 1)
        output = run(study, *out, "--report", reported, "--only", "mappo")
        assert "5 of 6 runs complete or left out" in output
        after = (reported / "evaluations.csv").read_text()
        assert after.startswith(before)
        assert after.removeprefix(before).count("climbing,mappo,2,") == 3

    def test_unless_it_was_made_with_other_options(
        self, tmp_path, study, run, reported, monkeypatch
    ):
        study.write_text(STUDY.replace("[algorithm=mappo", "[algorithm=mappo, algorithm.lr=0.01"))
        todo = []
        monkeypatch.setattr(script, "run_all", lambda jobs, *_: todo.extend(jobs))
        command = (study, "--out", tmp_path / "elsewhere", "--known", reported)
        assert "4 of 4 runs complete or left out" in run(*command, "--only", "nothing")
        assert not todo
        output = run(*command)
        assert "2 of 4 runs complete or left out" in output
        assert "report: not taken, made with other overrides: climbing/mappo\n" in output
        assert [(job.candidate, job.seed) for job in todo] == [("mappo", 0), ("mappo", 1)]

    def test_and_says_nothing_of_runs_that_are_not_of_the_study(
        self, tmp_path, study, run, reported
    ):
        study.write_text(STUDY.replace("seeds: 2", "seeds: 1"))
        output = run(study, "--out", tmp_path / "elsewhere", "--known", reported)
        assert output == "2 of 2 runs complete or left out\n"

    @pytest.mark.parametrize(
        ("old", "new", "lost"),
        [
            ("[algorithm=mappo", "[algorithm=mappo, algorithm.lr=0.01", "climbing/mappo"),
            ("seeds: 2", "seeds: 1", "climbing/mappo, climbing/mixture"),
            ("    mixture:", "    other:", "climbing/mixture"),
        ],
    )
    def test_but_replaces_none_that_would_lose_runs(
        self, tmp_path, study, run, reported, old, new, lost
    ):
        study.write_text(STUDY.replace(old, new))
        before = contents(reported)
        with pytest.raises(SystemExit, match=f"found runs of {lost} that it lacks"):
            run(study, "--out", tmp_path / "elsewhere", "--report", reported)
        assert contents(reported) == before
        assert not (tmp_path / "elsewhere").exists()

    def test_which_stays_when_another_cannot_be_written(
        self, tmp_path, study, reported, monkeypatch
    ):
        before = contents(reported)
        jobs = script.read_study(study)
        known, others = script.read_report(jobs, reported)
        assert len(known) == 4
        assert not others
        monkeypatch.setattr(script, "plot", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            script.report(jobs[:1], tmp_path / "runs", reported, known)
        assert contents(reported) == before
        assert not list(tmp_path.glob(".report*"))

    def test_but_not_from_one_that_does_not_say_how_it_was_made(
        self, tmp_path, study, run, reported
    ):
        (reported / "overrides.yaml").unlink()
        before = contents(reported)
        with pytest.raises(SystemExit, match=r"expected overrides\.yaml"):
            run(study, "--out", tmp_path / "elsewhere", "--report", reported)
        assert contents(reported) == before


def test_some_seeds(study):
    study.write_text(STUDY.replace("seeds: 2", "seeds: [3, 1]"))
    assert [(job.candidate, job.seed) for job in script.read_study(study)] == [
        (candidate, seed) for seed in (3, 1) for candidate in ("mappo", "mixture")
    ]


def test_it_goes_on_after_a_run_that_fails(tmp_path, study, run, capsys):
    study.write_text(STUDY.replace("[algorithm=mappo", "[algorithm=mapo"))
    with pytest.raises(SystemExit, match="2 runs failed"):
        run(study, "--out", tmp_path / "runs", "--processes", 1)
    assert "mapo" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "runs" / "climbing").iterdir()) == ["mixture"]


def test_a_run_that_is_listed_twice_is_refused(tmp_path, study, run):
    study.write_text(STUDY * 2)
    with pytest.raises(SystemExit, match=r"\('climbing', 'mappo', 0\)"):
        run(study, "--out", tmp_path)


def test_probability_of_improvement_against_counting():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([1.0, -1.0])
    # pairs (x, y): 0<1, 0>-1, 1=1, 1>-1, 2>1, 2>-1
    estimate, low, high = script.probability_of_improvement(x, y)
    assert estimate == pytest.approx(4.5 / 6)
    assert 0 <= low <= estimate <= high <= 1
    assert script.probability_of_improvement(y + 9, y) == (1.0, 1.0, 1.0)
    assert script.probability_of_improvement(y[:1], y[:1]) == (0.5, 0.5, 0.5)
