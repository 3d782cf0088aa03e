"""A study: runs, resume, reports, and runs that are taken from a report."""

from __future__ import annotations

import csv
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from torchrl_agentmixer.algorithms import make_algorithm, registry
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.training import RunDirectory

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import study as script
import study_report

STUDY = """
experiments:
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
# Evaluations of runs without training.
SCORES = {"mappo": [[5, 7], [6, 6]], "mixture": [[0, 11], [7, 7]]}


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


class Inline:
    """In place of a process: calls the function in this one."""

    def __init__(self, target, args, name):
        self.call = lambda: target(*args)
        self.sentinel = self
        self.exitcode = 0

    def start(self):
        try:
            self.call()
        except SystemExit as error:
            self.exitcode = error.code

    def join(self):
        pass


@pytest.fixture
def run(monkeypatch, capsys):
    """The script with its runs in this process; returns what it printed."""
    monkeypatch.setattr(script, "get_context", lambda _: SimpleNamespace(Process=Inline))
    monkeypatch.setattr(script, "wait", list)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def trained(monkeypatch):
    """A stand-in for training; returns the overrides that it was called with."""
    called = []

    def train(job, folder):
        shutil.rmtree(folder, ignore_errors=True)
        called.append((*job.overrides, f"seed={job.seed}"))
        if "algorithm=mapo" in job.overrides:
            raise ValueError("unknown algorithm 'mapo'")
        directory = RunDirectory(folder)
        for frames in (20, 40, 60):
            row = {"frames": frames, "eval_score": frames / 7 + job.seed}
            directory.log(row)
        return row

    monkeypatch.setattr(script, "train", train)
    return called


@pytest.fixture
def reported(tmp_path, study, run):
    """A report of the study; its runs are gone."""
    for job in script.read_study(study).jobs:
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


def test_it_runs_resumes_and_reports(tmp_path, study, run, trained):
    out = tmp_path / "runs"
    command = (study, "--out", out, "--processes", 1)
    assert "2 of 4 runs complete or left out" in run(*command, "--only", "mappo")
    stopped = out / "climbing" / "mixture" / "0.unfinished"
    stopped.mkdir(parents=True)
    (stopped / "metrics.csv").write_text("from a run that was killed")
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
    assert len(trained) == 4
    assert trained[0][-3:] == ("algorithm=mappo", "algorithm.epochs=1", "seed=0")


@pytest.mark.slow
def test_it_trains_and_resumes(tmp_path, study, run):
    """With the real training, in a process."""
    pytest.importorskip("torchrl_agentmixer.experiment")
    job = script.read_study(study).jobs[0]
    last = script.train(job, tmp_path / "runs" / "0.unfinished")
    assert last["frames"] == 60
    assert script.train(job, tmp_path / "runs" / "0.unfinished") == last  # resumed at its end


def test_the_page_by_hand(reported):
    lines = (reported / "README.md").read_text().splitlines()
    assert lines[:4] == ["---", "orphan: true", "---", "# report"]
    assert "kept as results" not in "".join(lines)
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


class TestRunsOfAReport:
    def test_are_not_repeated(self, tmp_path, study, run, reported):
        before = contents(reported)
        out = ("--out", tmp_path / "elsewhere", "--processes", 1)
        assert "4 of 4 runs complete or left out" in run(study, *out, "--report", reported)
        assert contents(reported) == before
        assert not (tmp_path / "elsewhere").exists()

    def test_a_missing_seed_is_added(self, tmp_path, study, run, reported, trained):
        study.write_text(STUDY.replace("seeds: 2", "seeds: 3"))
        before = (reported / "evaluations.csv").read_text()
        out = ("--out", tmp_path / "elsewhere", "--processes", 1)
        output = run(study, *out, "--report", reported, "--only", "mappo")
        assert "5 of 6 runs complete or left out" in output
        after = (reported / "evaluations.csv").read_text()
        assert after.startswith(before)
        assert after.removeprefix(before).count("climbing,mappo,2,") == 3

    def test_with_other_options_are_repeated(self, tmp_path, study, run, reported, monkeypatch):
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

    def test_that_the_study_lacks_are_not_printed(self, tmp_path, study, run, reported):
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
    def test_are_never_lost(self, tmp_path, study, run, reported, old, new, lost):
        study.write_text(STUDY.replace(old, new))
        before = contents(reported)
        with pytest.raises(SystemExit, match=f"got runs of {lost},"):
            run(study, "--out", tmp_path / "elsewhere", "--report", reported)
        assert contents(reported) == before
        assert not (tmp_path / "elsewhere").exists()

    def test_stay_if_a_new_report_cannot_be_written(self, tmp_path, study, reported, monkeypatch):
        before = contents(reported)
        report = study_report.read_report(reported)
        assert len(report.rows) == 4
        monkeypatch.setattr(study_report, "plot", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study_report.write_report(report, reported, set())
        assert contents(reported) == before
        assert not list(tmp_path.glob(".report*"))

    def test_without_overrides_are_refused(self, tmp_path, study, run, reported):
        (reported / "overrides.yaml").unlink()
        before = contents(reported)
        with pytest.raises(SystemExit, match=r"expected overrides\.yaml"):
            run(study, "--out", tmp_path / "elsewhere", "--report", reported)
        assert contents(reported) == before


def test_some_seeds(study):
    study.write_text(STUDY.replace("seeds: 2", "seeds: [3, 1]"))
    assert [(job.candidate, job.seed) for job in script.read_study(study).jobs] == [
        (candidate, seed) for seed in (3, 1) for candidate in ("mappo", "mixture")
    ]


def test_other_runs_follow_one_that_fails(tmp_path, study, run, trained, capsys):
    study.write_text(STUDY.replace("[algorithm=mappo", "[algorithm=mapo"))
    with pytest.raises(SystemExit, match="2 runs failed"):
        run(study, "--out", tmp_path / "runs", "--processes", 1)
    assert "mapo" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "runs" / "climbing").iterdir()) == ["mixture"]


def test_other_runs_follow_one_that_is_killed(tmp_path, study, run, monkeypatch, capsys):
    monkeypatch.setattr(script, "get_context", lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setattr(script, "wait", multiprocessing.connection.wait)
    monkeypatch.setattr(script, "train", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit, match="4 runs failed"):
        run(study, "--out", tmp_path / "runs")
    printed = capsys.readouterr().out.splitlines()[1:]
    folders = [job.folder(tmp_path / "runs") for job in script.read_study(study).jobs]
    assert sorted(printed) == sorted(f"{folder}: killed by SIGKILL" for folder in folders)


def test_a_run_that_is_listed_twice_is_refused(tmp_path, study, run):
    study.write_text(STUDY + STUDY.replace("experiments:", ""))
    with pytest.raises(SystemExit, match=r"\('climbing', 'mappo', 0\)"):
        run(study, "--out", tmp_path)


def test_a_file_registers_candidates(tmp_path, study, run, monkeypatch):
    """Before the run, in the process of the run; the path is relative to the study."""
    (tmp_path / "my_candidates.py").write_text("from study_report import ADDED\nADDED.append(1)")
    monkeypatch.setattr(study_report, "ADDED", [], raising=False)
    study.write_text("candidates_from: my_candidates.py\n" + STUDY)
    (job, *_) = script.read_study(study).jobs
    script.load(job.candidates_from)
    script.load(job.candidates_from)
    assert study_report.ADDED == [1]


class TestArchived:
    """Candidates whose options were deleted: they cannot run, and their rows stay."""

    @pytest.fixture
    def archived(self, study, reported):
        names = yaml.safe_load((reported / "overrides.yaml").read_text())
        names["climbing"]["mixture"][-2] = "algorithm.num_plans=2"  # does not exist any more
        (reported / "overrides.yaml").write_text(yaml.safe_dump(names))
        line = next(line for line in STUDY.splitlines() if "mixture" in line)
        study.write_text("archived: [mixture]" + STUDY.replace(line, ""))
        return names

    def test_rows_stay(self, tmp_path, study, run, reported, archived):
        before = evaluations(reported)
        page = run(study, "--out", tmp_path / "elsewhere", "--processes", 0, "--report", reported)
        key = lambda row: (row["candidate"], row["seed"], row["frames"])  # noqa: E731
        assert sorted(evaluations(reported), key=key) == sorted(before, key=key)
        assert yaml.safe_load((reported / "overrides.yaml").read_text()) == archived
        assert "earlier options and defaults, and kept as results: `mixture`." in page
        assert "| mixture | 11 7; **9.000** |" in page

    def test_does_not_hide_other_overrides(self, tmp_path, study, run, reported, archived):
        study.write_text("archived: [mixture]" + STUDY)
        with pytest.raises(SystemExit, match="got runs of climbing/mixture,"):
            run(study, "--out", tmp_path / "elsewhere", "--report", reported)


@pytest.mark.soak
def test_a_signal_ends_all_processes(tmp_path, study):
    """Trainings that run save a checkpoint, and no other one begins."""
    study.write_text(STUDY.replace("total_frames=60", "total_frames=20_000_000"))
    out = tmp_path / "out"
    command = [sys.executable, script.__file__, study, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not any(path.stat().st_size for path in out.glob("*/*/*/metrics.csv")):
            assert process.poll() is None
            time.sleep(0.5)
        process.terminate()
        printed, _ = process.communicate(timeout=60)  # until the last process ends
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143
    assert "SIGTERM at frame" in printed
    assert len(list(out.glob("*/*/*/checkpoints"))) <= 2
    assert any(out.glob("*/*/*/checkpoints/*"))


@pytest.mark.parametrize(
    "name",
    [path.stem for path in (script.TRAIN.parents[1] / "benchmarks" / "studies").glob("*.yaml")],
)
def test_published_reports_are_those_of_the_studies(name):
    """Every run of a report is one of its study with the same overrides, or archived."""
    root = script.TRAIN.parents[1]
    study = script.read_study(root / "benchmarks" / "studies" / f"{name}.yaml")
    kept, others = script.usable(study, study_report.read_report(root / "docs" / "results" / name))
    assert kept
    assert not others


@pytest.mark.parametrize(("count", "columns"), [(6, study_report.CURVES), (7, ("eval",))])
def test_many_candidates_are_plotted_by_their_evaluations(monkeypatch, count, columns):
    drawn = {}
    monkeypatch.setattr(study_report, "plot_panels", lambda panels, *_, **__: drawn.update(panels))
    row = dict.fromkeys(study_report.COLUMNS, 1.0)
    rows = [
        {**row, "environment": "climbing", "candidate": str(i), "seed": 0, "frames": 20.0 * k}
        for i in range(count)
        for k in (1, 2)
    ]
    study_report.plot(rows, "climbing", Path("unused.png"))
    assert list(drawn) == [study_report.COLUMNS[column] for column in columns]
    assert all(len(curves) == count for curves in drawn.values())
    assert (drawn["decentralized modes"]["0"].joint is None) == (count == 6)


class TestModifierAblation:
    """The candidates of ``modifier_ablation.py``."""

    @pytest.fixture(scope="class")
    def candidates(self):
        with pytest.MonkeyPatch.context() as patch:  # other tests list the package's methods only
            patch.setattr(registry, "_ALGORITHMS", dict(registry._ALGORITHMS))
            root = script.TRAIN.parents[1]
            yield script.load(root / "benchmarks" / "studies" / "modifier_ablation.py")

    def test_they_train_without_unused_parameters(self, candidates):
        torch.manual_seed(0)
        env = make_env("grid/predator_prey", num_envs=4, seed=0)
        options = {"epochs": 1, "num_minibatches": 1, "strength": 1.0}
        for name in candidates.CANDIDATES:
            method = make_algorithm(name, env, 100, options)
            assert type(method.policy.modifier) is candidates.CANDIDATES[name]
            batch = env.rollout(5, method.policy, break_when_any_done=False)
            before = [p.clone() for p in method.policy.modifier.parameters()]
            method.update(batch.detach())
            after = method.policy.modifier.named_parameters()
            same = [n for x, (n, y) in zip(before, after, strict=True) if torch.equal(x, y)]
            constant = "state_encoder" if name == "agent_mixer_no_state" else "none"
            assert [n for n in same if not n.startswith(constant)] == []

    @pytest.mark.parametrize(
        ("block", "over_agents", "over_channels"),
        [
            ("AttentionBlock", True, True),
            ("NoAgentMixingBlock", False, True),
            ("NoChannelMixingBlock", True, False),
        ],
    )
    def test_what_blocks_mix(self, candidates, block, over_agents, over_channels):
        """Which outputs a token changes: of other agents, and other channels of its agent."""
        torch.manual_seed(0)
        mixer = getattr(candidates, block)(3, 8)
        tokens = torch.randn(2, 3, 8)
        changed = tokens.clone()
        changed[:, 0, 0] += 1.0
        difference = (mixer(changed) - mixer(tokens)).abs() > 1e-6
        assert difference[:, 1:].any() == over_agents
        mixer.mix_agents = torch.zeros_like
        difference = (mixer(changed) - mixer(tokens)).abs() > 1e-6
        assert difference[:, 0, 1:].any() == over_channels

    def test_attention_treats_agents_alike(self, candidates):
        torch.manual_seed(0)
        mixer, tokens = candidates.AttentionBlock(3, 8), torch.randn(2, 3, 8)
        order = [2, 0, 1]
        torch.testing.assert_close(mixer(tokens[:, order]), mixer(tokens)[:, order])

    def test_no_state(self, candidates):
        env = make_env("grid/predator_prey", num_envs=4)
        policy = make_algorithm("agent_mixer_no_state", env, 100).policy
        data = policy.actors[0](env.reset())
        changed = data.clone()
        changed["state"] += 1.0
        for actor in policy.actors:
            actor(data), actor(changed)
        outputs = [policy.modifier(x)["agents", "perturbation"] for x in (data, changed)]
        torch.testing.assert_close(*outputs)
