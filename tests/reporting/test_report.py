"""Reports on folders of runs: statistics, refused runs, exported data, and failures."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from torchrl_agentmixer.reporting import (
    marl_eval_data,
    median_table,
    plots,
    read_metrics,
    read_runs,
    write_report,
)
from torchrl_agentmixer.reporting.__main__ import main
from torchrl_agentmixer.reporting.plots import MAX_CURVES, Curve, plot_panels
from torchrl_agentmixer.reporting.statistics import (
    aligned,
    by_task,
    estimate,
    normalize,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
    summary,
    values_at,
)
from torchrl_agentmixer.reporting.tables import within_one_deviation
from torchrl_agentmixer.training import Evaluation, RunDirectory

ENV = {"name": "matrix/climbing", "kwargs": {}, "total_frames": 40, "eval_interval": 20}
EPISODES = torch.tensor([1.0, -1.0])  # added to the return of two episodes
COMMAND = [sys.executable, "-W", "ignore", "-m", "torchrl_agentmixer.reporting"]


def make_run(path, scores=(1.0, 2.0), *, algorithm="mappo", seed=0, env=None, options=None):
    """A complete run with evaluations at 20 and 40 frames, and a row without one at 30.

    Only "mat" has a joint policy and executes with others' observations; "my_own" does not say.
    """
    run = RunDirectory(path)
    config = {"env": {**ENV, **(env or {})}, "seed": seed}
    config["algorithm"] = {"name": algorithm, "lr": 5e-4, **(options or {})}
    if algorithm != "my_own":
        config["decentralized_execution"] = algorithm != "mat"
    run.save_config(config)
    for frames, score in zip((20, 30, 40), (scores[0], None, scores[1]), strict=True):
        row = {"frames": frames, "eval_return": score, "eval_score": score}
        if algorithm == "mat":
            row["eval_joint_score"] = None if score is None else score + 0.5
        run.log(row)
        if score is not None:
            run.log_episodes(frames, Evaluation(EPISODES + score, torch.tensor([1, 1])))
    return run.path


def set_version(path, package, version):
    versions = json.loads((path / "versions.json").read_text())
    (path / "versions.json").write_text(json.dumps({**versions, package: version}))


@pytest.fixture
def study(tmp_path):
    """Two tasks, two methods; three seeds of one and two of the other."""
    root = tmp_path / "runs"
    for task, gain in (("easy", 1.0), ("hard", 10.0)):
        for seed, score in enumerate((1.0, 2.0, 6.0)):
            make_run(root / task / "mappo" / str(seed), (0.0, gain * score), seed=seed)
        for seed, score in enumerate((3.0, 7.0)):
            path = root / task / "transformer" / str(seed)
            make_run(path, (0.0, gain * score), seed=seed, algorithm="mat")
    return root


class TestStatistics:
    def test_of_one_task_by_hand(self):
        statistics = summary(np.array([[0.0], [1.0], [2.0], [3.0], [100.0]]), resamples=200)
        assert statistics["mean"].value == pytest.approx(21.2)
        assert statistics["median"].value == 2.0
        assert statistics["IQM"].value == pytest.approx(2.0)  # of 1, 2 and 3
        for name, result in statistics.items():
            assert 0.0 <= result.low < result.value < result.high <= 100.0, name
        constant = summary(np.full((4, 1), 3.0), resamples=20)["mean"]
        assert (constant.low, constant.value, constant.high) == (3.0, 3.0, 3.0)

    def test_of_all_tasks_by_hand(self):
        scores = np.array([[0.0, 10.0, 2.0], [2.0, 20.0, 4.0]])  # task means 1, 15, 3
        statistics = summary(scores, resamples=50)
        assert statistics["mean"].value == pytest.approx(19 / 3)
        assert statistics["median"].value == 3.0  # of the task means
        assert statistics["IQM"].value == pytest.approx(18 / 4)  # 2, 2, 4, 10

    def test_draws_stay_within_their_task(self):
        scores = np.array([[0.0, 100.0]] * 3)
        result = summary(scores, resamples=50)["mean"]
        assert (result.low, result.high) == (50.0, 50.0)

    def test_interval_is_that_of_the_draws(self):
        """Two runs, 0 and 1: means of draws are 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
        result = estimate(np.array([[0.0], [1.0]]), np.mean, resamples=400)
        assert (result.low, result.value, result.high) == (0.0, 0.5, 1.0)

    def test_draws_are_the_same_every_time_and_leave_the_global_generator(self):
        scores = np.array([[0.1], [0.7], [1.0]])
        np.random.seed(5)
        expected = np.random.random()
        np.random.seed(5)
        result = estimate(scores, np.mean, resamples=40)
        assert np.random.random() == expected
        assert estimate(scores, np.mean, resamples=40) == result
        assert estimate(scores, np.mean, resamples=40, seed=1) != result

    def test_probability_of_improvement_by_counting(self):
        x = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
        y = np.array([[1.0, 5.0], [-1.0, 4.0]])
        # first task: 0<1, 0>-1, 1=1, 1>-1, 2>1, 2>-1; second task: three ties, three wins
        result = probability_of_improvement(x, y, resamples=50)
        assert result.value == pytest.approx((4.5 / 6 + 4.5 / 6) / 2)
        assert 0 <= result.low <= result.value <= result.high <= 1

    def test_performance_profile_by_counting(self):
        scores = np.array([[0.1, 0.9], [0.5, 0.7]])
        profile = performance_profile(scores, np.array([0.0, 0.5, 0.8, 1.0]), resamples=20)
        assert profile.value.tolist() == [1.0, 0.5, 0.25, 0.0]

    def test_sample_efficiency_by_hand(self):
        curves = np.stack([np.array([[0.0, 2.0], [1.0, 3.0]]), np.array([[5.0, 9.0], [2.0, 4.0]])])
        # points: 0, 1, 5, 2 and 2, 3, 9, 4
        assert sample_efficiency(curves, resamples=10).value.tolist() == [1.5, 3.5]

    def test_normalized_by_hand(self, study):
        cells = by_task(read_runs(study))
        result = normalize(cells, "eval_score")
        assert not result.notes
        assert result.shares.tolist() == [k / 20 for k in range(10, 21)]  # from the first one on
        assert result.curves["mappo"].shape == (3, 2, 11)
        expected = np.array([[1, 1], [2, 2], [6, 6]]) / 7  # of 0 to 7, and of 0 to 70
        np.testing.assert_allclose(result.final["mappo"], expected)
        assert (result.curves["mappo"][..., :10] == 0).all()

    def test_seeds_and_tasks_that_lack_are_said(self, study):
        make_run(study / "hard" / "mappo" / "3", seed=3)
        make_run(study / "hard" / "alone" / "0", algorithm="ippo")
        result = normalize(by_task(read_runs(study)), "eval_score")
        assert result.final["mappo"].shape == (3, 2)
        assert "the 3 lowest seeds of each task (of easy 3, hard 4)" in result.notes["mappo"]
        assert "alone" not in result.curves
        assert "lacks a task (seeds: easy 0, hard 1)" in result.notes["alone"]

    def test_points_take_the_last_evaluation_before(self):
        values = values_at(np.array([20, 40]), np.array([1.0, 2.0]), np.array([10, 20, 30, 40]))
        np.testing.assert_array_equal(values, [np.nan, 1.0, 1.0, 2.0])

    def test_curves_of_different_evaluations_are_aligned(self):
        a = np.array([10, 20]), np.array([0.0, 1.0])
        b = np.array([5, 40]), np.array([3.0, 4.0])
        frames, values = aligned([a, a])
        np.testing.assert_array_equal(frames, [10, 20])
        np.testing.assert_array_equal(values, [[0, 1], [0, 1]])
        frames, values = aligned([a, b])
        np.testing.assert_array_equal(frames, np.arange(10, 21))
        np.testing.assert_array_equal(values, [[0] * 10 + [1], [3] * 11])


# Table 1 of arXiv 2401.08728: medians, deviations, and which of them are in bold there.
TABLE_1 = [
    ("51 38 55 53 49 50 68", "10 8 11 4 11 9 4", "0010001"),
    ("48 39 63 45 47 41 71", "11 12 11 6 3 4 10", "0010001"),
    ("48 39 48 51 46 44 66", "5 5 10 10 8 6 3", "0000001"),
    ("40 13 32 52 36 36 47", "8 2 9 2 5 4 2", "0001000"),
    ("29 12 46 33 26 20 50", "5 9 14 5 2 2 11", "0010001"),
    ("38 29 52 36 46 36 52", "12 7 9 5 5 6 6", "1010101"),
]


@pytest.mark.parametrize(("medians", "deviations", "bold"), TABLE_1)
def test_bold_is_that_of_the_paper(medians, deviations, bold):
    center, deviation = (np.array(list(map(float, x.split()))) for x in (medians, deviations))
    assert within_one_deviation(center, deviation).tolist() == [x == "1" for x in bold]


def test_median_table_by_hand(study):
    table = median_table(by_task(read_runs(study)), "eval_score", {"transformer": "MAT"})
    assert table.splitlines() == [
        "| task | mappo | MAT |",
        "|---|---|---|",
        "| easy | **2<sub>2.2</sub>** (3) | **5<sub>2</sub>** (2) |",
        "| hard | **20<sub>22</sub>** (3) | **50<sub>20</sub>** (2) |",
    ]
    make_run(study / "easy" / "worse" / "0", (0.0, 0.0), algorithm="ippo")
    table = median_table(by_task(read_runs(study)), "eval_score")
    assert "| 0<sub>0</sub> (1) |" in table.splitlines()[2]
    assert table.splitlines()[3].endswith("|  |")


class TestRefusals:
    def refused(self, root, *words):
        with pytest.raises(ValueError, match="expected") as error:
            read_runs(root)
        for word in words:
            assert str(word) in str(error.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("kwargs", {"k": -25.0}),
            ("total_frames", 30),
            ("eval_interval", 10),
            ("eval_envs", 9),
            ("name", "matrix/penalty"),
        ],
    )
    def test_environments_and_budgets_that_differ(self, study, key, value):
        path = make_run(study / "easy" / "mappo" / "9", seed=9, env={key: value})
        self.refused(study, f"env.{key}", repr(value), path, study / "easy" / "mappo" / "0")

    def test_simulators_that_differ(self, tmp_path):
        for seed, version in enumerate(("1.5.2", "1.6.0")):
            env = {"name": "vmas/navigation"}
            path = make_run(tmp_path / "vmas" / "mappo" / str(seed), seed=seed, env=env)
            set_version(path, "jax", version)
        read_runs(tmp_path)  # which VMAS has nothing to do with
        set_version(path, "vmas", "1.6.0")
        self.refused(tmp_path, "version of vmas", "'1.6.0'", path)

    def test_hyperparameters_that_differ(self, study):
        make_run(study / "easy" / "mappo" / "8", seed=8, options={"lr": 5e-4})
        read_runs(study)
        path = make_run(study / "easy" / "mappo" / "9", seed=9, options={"lr": 1.0})
        self.refused(study, "algorithm.lr", "1.0", path)

    def test_methods_that_are_two(self, study):
        path = make_run(study / "third" / "mappo" / "0", algorithm="ippo")
        self.refused(study, "algorithm.name", "'ippo'", path)

    def test_a_seed_twice(self, study):
        path = make_run(study / "easy" / "mappo" / "again", seed=1)
        self.refused(study, "seed 1", path, study / "easy" / "mappo" / "1")

    def test_a_run_that_stopped(self, study):
        path = make_run(study / "easy" / "mappo" / "9", seed=9)
        lines = (path / "metrics.csv").read_text().splitlines(keepends=True)
        (path / "metrics.csv").write_text("".join(lines[:-1]))
        self.refused(study, "a complete run of 40 frames, got 30", path)
        path.rename(path.with_suffix(".unfinished"))
        assert len(read_runs(study)) == 10
        assert len(read_runs(study.rename(study.with_suffix(".unfinished")))) == 10

    @pytest.mark.parametrize("cut", [1, 3, 6])
    def test_a_half_written_line(self, study, cut):
        path = study / "easy" / "mappo" / "1" / "metrics.csv"
        path.write_text(path.read_text()[:-cut])
        self.refused(study, path, "truncated")

    def test_damaged_files(self, study):
        path = study / "easy" / "mappo" / "1"
        text = (path / "metrics.csv").read_text()
        (path / "metrics.csv").write_text(text.replace("40,", "4o,"))
        self.refused(study, path / "metrics.csv", "4o")
        (path / "metrics.csv").write_text("")
        self.refused(study, path / "metrics.csv", "a header and complete lines of 0 numbers")
        (path / "metrics.csv").write_text(text)
        config = (path / "config.json").read_text()
        (path / "config.json").write_text(config[:20])
        self.refused(study, path / "config.json", "expected JSON")
        (path / "config.json").write_text(config.replace('"seed"', '"sead"'))
        self.refused(study, path / "config.json", "'seed'")
        (path / "config.json").write_text(config)
        (path / "versions.json").unlink()
        self.refused(study, path / "versions.json")

    def test_folders_without_runs(self, tmp_path):
        self.refused(tmp_path, tmp_path, "run directories")
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_runs(tmp_path / "nowhere")

    def test_metrics_that_runs_do_not_have(self, study, tmp_path):
        with pytest.raises(ValueError, match=r"'eval_win_rate' in metrics.csv, got \['eval_return"):
            write_report(study, tmp_path / "report", metric="win_rate")
        with pytest.raises(ValueError, match="unknown metric 'scores'; did you mean 'score'"):
            write_report(study, tmp_path / "report", metric="scores")
        with pytest.raises(ValueError, match="unknown baseline 'mapo'; did you mean 'mappo'"):
            write_report(study, tmp_path / "report", baseline="mapo")
        assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("root", "names"), [("", ("easy", "mappo")), ("easy", ("matrix/climbing", "mappo"))]
)
def test_names_come_from_the_folders_above(study, root, names):
    run = read_runs(study / root)[0]
    assert (run.task, run.method, run.seed) == (*names, 0)
    (deep, *_) = read_runs(study.parent)
    assert (deep.task, deep.method) == ("easy", "mappo")
    (run,) = read_runs(study / "easy" / "transformer" / "0")
    assert (run.task, run.method) == ("matrix/climbing", "mat")


def test_marl_eval_format(study):
    """Environment, task, algorithm, run, step; lists of numbers; survives JSON as it is."""
    data = marl_eval_data(read_runs(study))
    assert json.loads(json.dumps(data)) == data
    assert list(data) == ["matrix"]
    assert list(data["matrix"]) == ["easy", "hard"]
    assert list(data["matrix"]["hard"]) == ["mappo", "transformer"]
    assert list(data["matrix"]["hard"]["mappo"]) == ["seed_0", "seed_1", "seed_2"]
    assert data["matrix"]["hard"]["mappo"]["seed_2"] == {
        "step_1": {"step_count": 20, "return": [1.0, -1.0], "score": [0.0]},
        "step_2": {"step_count": 40, "return": [61.0, 59.0], "score": [60.0]},
        "absolute_metrics": {"return": [60.0], "score": [60.0]},
    }


def test_marl_eval_reads_it(study):
    """Its own check of the format, and its aggregation over runs, of what was written as JSON."""
    pytest.importorskip("marl_eval", reason="needs: pip install --no-deps id-marl-eval")
    from marl_eval.utils.data_processing_utils import (
        data_process_pipeline,
        get_and_aggregate_data_single_task,
    )
    from marl_eval.utils.diagnose_data_errors import DiagnoseData

    runs = [run for run in read_runs(study) if run.seed < 2]  # it wants as many of every method
    data = json.loads(json.dumps(marl_eval_data(runs)))
    assert all(DiagnoseData(data).check_data()["matrix"].values())
    processed = data_process_pipeline(data, metrics_to_normalize=[])
    hard = get_and_aggregate_data_single_task(processed, "return", [], "hard", "matrix")
    mappo = data["matrix"]["hard"]["mappo"].values()
    means = [sum(sum(run[f"step_{k}"]["return"]) / 2 for run in mappo) / 2 for k in (1, 2)]
    assert hard["mappo"]["mean"] == pytest.approx(means)


def test_marl_eval_needs_every_episode(study):
    path = study / "easy" / "mappo" / "1" / "evaluation.csv"
    text = path.read_text()
    path.write_text(text[:-8])
    with pytest.raises(ValueError, match=r"evaluation.csv: expected"):
        marl_eval_data(read_runs(study))
    path.write_text("".join(text.splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match=r"at frames \[20, 40\], got \[20\]"):
        marl_eval_data(read_runs(study))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestReport:
    def test_command_line(self, study, tmp_path):
        out = tmp_path / "deep" / "report"
        main([str(study), "--out", str(out), "--resamples", "20", "--baseline", "transformer"])
        pictures = {path.name for path in out.glob("*.png")}
        assert pictures == {
            "aggregate.png",
            "curves.png",
            "performance_profiles.png",
            "probability_of_improvement.png",
            "sample_efficiency.png",
        }
        assert {path.name for path in out.iterdir()} - pictures == {
            "marl_eval.json",
            "report.md",
            "scores.csv",
        }
        text = (out / "report.md").read_text()
        assert all(f"({name})" in text for name in pictures)
        assert "| easy | transformer † | 2 | 5 [" in text
        assert "† executes with other agents' observations or actions" in text
        assert "mappo †" not in text
        assert "| X | P(X > transformer †) |" in text
        # of 3 x 2 pairs in each task, mappo's is better in one
        assert "| mappo | 0.167 [" in text
        scores = (out / "scores.csv").read_text().splitlines()
        assert scores[0] == "task,method,seed,frames,eval_score,eval_joint_score"
        assert scores[1] == "easy,mappo,0,40,1.0,1.0"  # no joint policy: the executed one
        assert scores[-1] == "hard,transformer,1,40,70.0,70.5"
        assert len(scores) == 11

    def test_one_run_is_enough(self, tmp_path):
        make_run(tmp_path / "runs", algorithm="my_own")
        write_report(tmp_path / "runs", tmp_path / "report", resamples=5)
        text = (tmp_path / "report" / "report.md").read_text()
        assert "my_own ‡" in text
        assert "does not say whether the execution is decentralized" in text

    def test_a_failure_leaves_an_earlier_report_as_it_was(self, study, tmp_path):
        out = tmp_path / "report"
        write_report(study, out, resamples=5)
        (out / "notes.txt").write_text("of the user")
        before = files(out)
        damaged = study / "hard" / "transformer" / "1" / "evaluation.csv"
        damaged.unlink()  # what is read last
        with pytest.raises(ValueError, match=r"evaluation.csv"):
            write_report(study, out, resamples=5)
        assert files(out) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]

    def test_a_new_report_replaces_the_earlier_one(self, study, tmp_path):
        out = tmp_path / "report"
        write_report(study, out, resamples=5)
        (out / "notes.txt").write_text("of the user")
        before = files(out)
        make_run(study / "easy" / "mappo" / "3", seed=3)
        written = write_report(study, out, resamples=5)
        after = files(out)
        assert after["notes.txt"] == before["notes.txt"]
        assert {path.name for path in written} == set(after) - {"notes.txt"}
        assert after["report.md"] != before["report.md"]

    def test_the_same_runs_give_the_same_files(self, study, tmp_path):
        for name in ("a", "b"):
            write_report(study, tmp_path / name, resamples=20)
        assert files(tmp_path / "a") == files(tmp_path / "b")

    def test_errors_are_one_line(self, tmp_path):
        command = [*COMMAND, str(tmp_path), "--out", str(tmp_path / "report")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.startswith("ValueError: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("package", "extra"), [("rliable", "report"), ("matplotlib", "plots")])
def test_missing_packages_are_explained(study, tmp_path, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    for name in list(sys.modules):
        if name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "torchrl_agentmixer\[{extra}\]"'):
        write_report(study, tmp_path / "report", resamples=5)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("count", "panels"), [(MAX_CURVES, 1), (MAX_CURVES + 1, 7)])
def test_a_panel_has_at_most_six_curves(tmp_path, monkeypatch, count, panels):
    """More curves get one panel each, with the first curve as the reference."""
    by_panel = {}

    def draw(axes, curve, label, color):
        by_panel.setdefault(axes, []).append((label, color))
        return {}

    monkeypatch.setattr(plots, "_draw", draw)
    curves = {f"m{i}": Curve((np.arange(3), np.arange(3))) for i in range(count)}
    plot_panels({"task": curves}, tmp_path / "a.png", "frames")
    assert len(by_panel) == panels
    assert max(map(len, by_panel.values())) <= MAX_CURVES
    if panels > 1:
        assert list(by_panel.values())[1] == [("m0", "0.6"), ("m1", "C0")]


def test_importing_needs_no_extra():
    code = (
        "import sys; import torchrl_agentmixer.reporting, torchrl_agentmixer.training;"
        "print(sorted({'rliable', 'matplotlib', 'pandas', 'arch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_empty_cells_of_metrics_are_none(tmp_path):
    path = make_run(tmp_path / "run")
    assert read_metrics(path)["eval_score"] == [1.0, None, 2.0]
