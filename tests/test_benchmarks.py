"""The benchmark scripts run, and their tables say what was measured."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchrl_agentmixer.training import RunDirectory

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import scale_out  # noqa: E402
from study import probability_of_improvement, read_report, read_study, report  # noqa: E402


def run(*arguments):
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_throughput(tmp_path):
    out = tmp_path / "t.csv"
    sizes = ("--num-envs", 4, 8, "--steps", 4, "--rounds", 1)
    output = run("benchmarks/throughput.py", *sizes, "--csv", out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["num_envs"], r["method"]) for r in rows] == [
        (n, m) for n in ("4", "8") for m in ("mappo", "agent_mixer")
    ]
    assert all(float(r["collection_fps"]) > 0 and float(r["update_fps"]) > 0 for r in rows)
    assert output.count("| vmas/predator_prey |") == 4


def test_environments():
    output = run(
        "benchmarks/environments.py", "--seconds", 0.01, "--only", "matrix/", "vmas/simple"
    )
    assert "| matrix/stag_hunt | 4 | 1 | 2 | 1 |" in output
    assert "| vmas/simple_tag | 3 + 1 |" in output
    assert "grid" not in output


def test_mamujoco():
    pytest.importorskip("gymnasium_robotics")
    sizes = ("--tasks", "half_cheetah_6x1", "--num-envs", 2, "--steps", 10, "--rounds", 1)
    output = run("benchmarks/mamujoco.py", *sizes, "--workers", 2)
    assert "| 2 / 1 workers |" in output
    assert "half_cheetah_6x1" in output


def test_beside_benchmarl(tmp_path):
    sizes = ("--frames", 100, "--batch", 100, "--interval", 100, "--episodes", 1, "--seeds", 1)
    output = run("benchmarks/beside_benchmarl.py", *sizes, "--out", tmp_path)
    assert "| BenchMARL |" in output
    with (tmp_path / "returns.csv").open() as file:
        rows = [(row["side"], row["seed"], row["frames"]) for row in csv.DictReader(file)]
    sides = ("torchrl_agentmixer", "BenchMARL")
    assert rows == [(side, "1", frames) for side in sides for frames in ("0", "100")]
    assert (tmp_path / "returns.png").stat().st_size > 5_000


def test_tabular_games():
    output = run("benchmarks/tabular_games.py", "--seeds", 3, "--components", 16, "--strengths", 4)
    assert "| 16 | 4 |" in output
    assert output.count("3 of 3") >= 2  # of climbing and the two penalty games


STUDY = """
- environments:
    climbing: [env=climbing, env.num_envs=20, env.frames_per_batch=20]
  candidates:
    mappo: [algorithm=mappo]
    mixture: [algorithm=agent_mixer_one_shot, algorithm.num_components=2]
  seeds: 2
"""
TINY = ["env.total_frames=60", "env.eval_interval=20", "algorithm.epochs=1"]


def write_study(folder):
    path = folder / "study.yaml"
    path.write_text(STUDY.replace("env.num_envs=20", ", ".join([*TINY, "env.num_envs=20"])))
    return path


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def test_equilibrium_gaps(tmp_path):
    sizes = ("--games", "penalty_25", "--seeds", 2, "--frames", 5000)
    output = run("benchmarks/equilibrium_gaps.py", *sizes, "--csv", tmp_path / "gaps.csv")
    with (tmp_path / "gaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert output.count("| penalty_25 |") == len({row["form"] for row in rows}) == 5
    assert [row["seed"] for row in rows] == ["0", "1"] * 5
    for row in rows:  # no deviation earns more than 10
        assert 0 <= float(row["correlated_gap"]) <= 10 - float(row["joint_payoff"]) + 1e-3


def test_study_runs_resumes_and_reports(tmp_path, study):
    out = tmp_path / "runs"
    command = ("benchmarks/study.py", study, "--out", out, "--processes", 1)
    assert "2 of 4 runs complete or left out" in run(*command, "--only", "mappo")
    stopped = out / "climbing" / "mixture" / "0.unfinished"
    stopped.mkdir(parents=True)
    (stopped / "metrics.csv").write_text("left behind by a run that was killed")
    kept = (out / "climbing" / "mappo" / "1" / "metrics.csv").read_bytes()
    assert "2 of 4 runs complete or left out" in run(*command)
    assert (out / "climbing" / "mappo" / "1" / "metrics.csv").read_bytes() == kept
    assert not stopped.exists()

    report = run(*command[:-1], 0, "--report", tmp_path / "report")
    with (tmp_path / "report" / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["candidate"], r["seed"], r["frames"]) for r in rows] == [
        (candidate, seed, frames)
        for seed in ("0", "1")
        for candidate in ("mappo", "mixture")
        for frames in ("20", "40", "60")
    ]
    last = [float(r["eval"]) for r in rows if r["candidate"] == "mappo"][2::3]
    assert f"| mappo | {' '.join(f'{x:.3g}' for x in last)}; **{sum(last) / 2:.3f}** |" in report
    assert (tmp_path / "report" / "climbing.png").stat().st_size > 1000


class TestStudyGoesOnFromAReport:
    @pytest.fixture(scope="class")
    def reported(self, tmp_path_factory):
        """A report of the study; its runs are gone."""
        folder = tmp_path_factory.mktemp("reported")
        runs = ("--out", folder / "runs", "--processes", 1)
        run("benchmarks/study.py", write_study(folder), *runs, "--report", folder / "report")
        return folder / "report"

    @pytest.fixture
    def command(self, tmp_path, study, reported):
        shutil.copytree(reported, tmp_path / "report")
        return ("benchmarks/study.py", study, "--out", tmp_path / "elsewhere")

    @staticmethod
    def report(tmp_path):
        return ("--report", tmp_path / "report", "--processes", 1)

    @staticmethod
    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_that_has_all(self, tmp_path, command):
        before = self.contents(tmp_path / "report")
        output = run(*command, *self.report(tmp_path))
        assert "4 of 4 runs complete or left out" in output
        assert self.contents(tmp_path / "report") == before
        assert not (tmp_path / "elsewhere").exists()

    def test_that_lacks_a_seed(self, tmp_path, study, command):
        study.write_text(study.read_text().replace("seeds: 2", "seeds: 3"))
        before = (tmp_path / "report" / "evaluations.csv").read_text()
        output = run(*command, *self.report(tmp_path), "--only", "mappo")
        assert "5 of 6 runs complete or left out" in output
        after = (tmp_path / "report" / "evaluations.csv").read_text()
        assert after.startswith(before)
        assert after.removeprefix(before).count("climbing,mappo,2,") == 3

    def test_unless_it_was_made_with_other_options(self, tmp_path, study, command):
        text = study.read_text().replace(
            "[algorithm=mappo]", "[algorithm=mappo, algorithm.lr=0.01]"
        )
        study.write_text(text)
        output = run(*command, "--known", tmp_path / "report", "--only", "nothing")
        assert "4 of 4 runs complete or left out" in output
        output = run(*command, "--known", tmp_path / "report", "--processes", 1)
        assert "2 of 4 runs complete or left out" in output
        assert "report: not in this study, or with other overrides: climbing/mappo\n" in output
        assert sorted(p.name for p in (tmp_path / "elsewhere" / "climbing").iterdir()) == ["mappo"]

    def test_which_stays_when_another_cannot_be_written(
        self, tmp_path, study, command, monkeypatch
    ):
        before = self.contents(tmp_path / "report")
        jobs = read_study(study)
        known = read_report(jobs, tmp_path / "report")
        assert len(known) == 4
        monkeypatch.setattr("study.plot", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(jobs[:1], tmp_path / "runs", tmp_path / "report", known)
        assert self.contents(tmp_path / "report") == before
        assert not list(tmp_path.glob(".report*"))

    def test_but_not_from_one_that_does_not_say_how_it_was_made(self, tmp_path, command):
        (tmp_path / "report" / "overrides.yaml").unlink()
        before = self.contents(tmp_path / "report")
        arguments = [sys.executable, *map(str, (*command, *self.report(tmp_path)))]
        result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert "expected overrides.yaml" in result.stderr
        assert self.contents(tmp_path / "report") == before


def test_study_of_some_seeds(tmp_path, study):
    study.write_text(study.read_text().replace("seeds: 2", "seeds: [3, 1]"))
    assert [(job.candidate, job.seed) for job in read_study(study)] == [
        (candidate, seed) for seed in (3, 1) for candidate in ("mappo", "mixture")
    ]


def test_study_goes_on_after_a_run_that_fails(tmp_path, study):
    study.write_text(study.read_text().replace("[algorithm=mappo]", "[algorithm=mapo]"))
    command = [sys.executable, "benchmarks/study.py", study, "--out", tmp_path / "runs"]
    result = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "mapo" in result.stdout
    assert "2 runs failed" in result.stderr
    assert sorted(p.name for p in (tmp_path / "runs" / "climbing").iterdir()) == ["mixture"]


def test_study_rejects_a_run_that_is_listed_twice(tmp_path, study):
    study.write_text(study.read_text() * 2)
    command = [sys.executable, "benchmarks/study.py", str(study), "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "('climbing', 'mappo', 0)" in result.stderr


def test_probability_of_improvement_against_counting():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([1.0, -1.0])
    # pairs (x, y): 0<1, 0>-1, 1=1, 1>-1, 2>1, 2>-1
    estimate, low, high = probability_of_improvement(x, y)
    assert estimate == pytest.approx(4.5 / 6)
    assert 0 <= low <= estimate <= high <= 1
    assert probability_of_improvement(y + 9, y) == (1.0, 1.0, 1.0)
    assert probability_of_improvement(y[:1], y[:1]) == (0.5, 0.5, 0.5)


def test_scale_out(tmp_path, monkeypatch, capsys):
    """The tables on runs that are there: rates of two parts, ratios, and returns of all seeds."""
    for index, engine in enumerate(scale_out.ENGINES):
        for seed in (0, 1):
            folder = tmp_path / "grid_predator_prey" / engine.replace(" ", "_") / f"seed_{seed}"
            directory = RunDirectory(folder)
            for frames in (10, 20, 30, 40):
                rate = 100.0 * (1 + index) * (1 + seed)
                row = {"frames": frames, "eval_return": float(seed) if frames == 40 else None}
                directory.log(row | {"fps_collect": rate, "fps_update": 3 * rate})
            (folder / "algorithm.pt").touch()
    command = ["scale_out", "--out", str(tmp_path), "--seeds", "0", "1", "--tasks"]
    monkeypatch.setattr(sys, "argv", [*command, "grid/predator_prey"])
    monkeypatch.setattr(scale_out, "two_at_once", lambda: 1.5)
    scale_out.main()
    output = capsys.readouterr().out
    assert "| one process | 200 (1.00) | 600 (1.00) | 150 (1.00) |" in output
    assert "| 2 ranks | 400 (2.00) | 1,200 (2.00) | 300 (2.00) |" in output
    assert "| 2 workers | 0.5 (0.0 to 1.0) |" in output
    assert "together 1.50, 1.50 times what one did alone" in output
