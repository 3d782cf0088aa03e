"""Benchmark scripts: they run, and their tables have what was measured."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.experiment import load_run
from torchrl_agentmixer.training import RunDirectory, evaluate

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import fingerprint  # noqa: E402
import scale_out  # noqa: E402
import structure  # noqa: E402


def test_throughput(tmp_path, run_script):
    out = tmp_path / "t.csv"
    sizes = ("--num-envs", 4, 8, "--steps", 4, "--rounds", 1)
    output = run_script("benchmarks/throughput.py", *sizes, "--csv", out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["num_envs"], r["method"]) for r in rows] == [
        (n, m) for n in ("4", "8") for m in ("mappo", "agent_mixer", "joint_plans")
    ]
    assert all(float(r["collection_fps"]) > 0 and float(r["update_fps"]) > 0 for r in rows)
    assert output.count("| vmas/predator_prey |") == 6


def test_rates_of_methods(run_script):
    which = ("--envs", "climbing", "--methods", "mappo", "masac")
    output = run_script("benchmarks/methods.py", *which, "--batches", 5, "--rounds", 1)
    header, _, *rows = [line for line in output.splitlines() if line.startswith("|")]
    assert header == "| method | climbing |"
    assert [row.split(" | ")[0] for row in rows] == ["| mappo", "| masac"]
    assert [bool(re.search(r"\d", row)) for row in rows] == [True, False]
    output = run_script("benchmarks/methods.py", "--batches", 4, ok=False)
    assert "--batches: expected at least 5, got 4." in output


@pytest.mark.parametrize("options", [(), ("--compile", "--methods", "agent_mixer")])
def test_gpu_script_on_a_cpu(tmp_path, run_script, options, compiled):
    methods = options[2:] or ("mappo", "agent_mixer", "joint_plans")
    sizes = ("--envs", "grid/predator_prey", "--num-envs", 8, "--steps", 4, "--batches", 2)
    run_script("benchmarks/gpu.py", "--device", "cpu", *sizes, *options, "--csv", tmp_path / "csv")
    with (tmp_path / "csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(methods)
    assert bool(compiled) == ("--compile" in options)
    assert {row["compiled"] for row in rows} == {str("--compile" in options)}
    assert all(float(row["train_fps"]) > 0 for row in rows)


def test_throughput_by_number_of_agents(tmp_path, run_script):
    sizes = ("--num-envs", 2, "--n-agents", 2, 3, "--steps", 2, "--rounds", 1)
    run_script("benchmarks/throughput.py", *sizes, "--plot", tmp_path / "agents.png")
    assert (tmp_path / "agents.png").stat().st_size > 5_000


def test_final_scores_of_runs(tmp_path, run_script):
    folder = tmp_path / "noisy"
    small = ("env.num_envs=2", "env.frames_per_batch=20", "env.total_frames=20", "env.eval_envs=2")
    run_script(
        "examples/train.py",
        "env=grid_predator_prey",
        "algorithm=mappo",
        "env.kwargs.spread=5",
        "env.eval_interval=20",
        "algorithm.num_minibatches=1",
        "plots=false",
        f"hydra.run.dir={folder / 'mappo' / '3'}",
        *small,
    )
    output = run_script("benchmarks/final_scores.py", folder, "--episodes", 50)
    (row,) = [line for line in output.splitlines() if line.startswith("| noisy | mappo |")]
    algorithm, _, _ = load_run(folder / "mappo" / "3")
    certain = make_env("grid/predator_prey", penalty=-1.0, num_envs=50)
    score = evaluate(algorithm.execution_policy, certain, max_steps=128).score
    assert f"| {score:.2f} | {score:.2f} |" in row
    (tmp_path / "empty").mkdir()
    run_script("benchmarks/final_scores.py", tmp_path / "empty", ok=False)


def test_environments(run_script):
    output = run_script(
        "benchmarks/environments.py", "--seconds", 0.01, "--only", "matrix/", "vmas/simple"
    )
    assert "| matrix/stag_hunt | 4 | 1 | 2 | 1 |" in output
    assert "| vmas/simple_tag | 3 + 1 |" in output
    assert "grid" not in output


def test_mamujoco(run_script):
    pytest.importorskip("gymnasium_robotics")
    sizes = ("--tasks", "half_cheetah_6x1", "--num-envs", 2, "--steps", 10, "--rounds", 1)
    output = run_script("benchmarks/mamujoco.py", *sizes, "--workers", 2)
    assert "| 2 / 1 workers |" in output
    assert "half_cheetah_6x1" in output


def test_beside_benchmarl(tmp_path, run_script):
    sizes = ("--frames", 200, "--batch", 100, "--interval", 200, "--episodes", 1, "--seeds", 1)
    what = ("--task", "predator_prey", "--actions", "continuous")
    output = run_script("benchmarks/beside_benchmarl.py", *what, *sizes, "--out", tmp_path)
    assert "| BenchMARL's MAPPO |" in output
    with (tmp_path / "returns.csv").open() as file:
        rows = [(row["side"], row["seed"], row["frames"]) for row in csv.DictReader(file)]
    sides = ("MAPPO", "AgentMixer", "BenchMARL's MAPPO")
    assert rows == [(side, "1", frames) for side in sides for frames in ("0", "200")]
    assert (tmp_path / "returns.png").stat().st_size > 5_000


@pytest.mark.soak
def test_beside_script(run_script):
    output = run_script("benchmarks/beside_script.py", "--frames", 30_000, "--rounds", 1)
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert rows[-1][0] == "| plain_mappo.py"
    assert rows[-1][2] == "1.00 |"


def test_beside_jaxmarl(tmp_path, run_script):
    jax = pytest.importorskip("jax")
    pytest.importorskip("jaxmarl")
    output = run_script("benchmarks/beside_jaxmarl.py", "--jaxmarl", tmp_path, ok=False)
    assert "expected a checkout with baselines/MAPPO" in output
    (tmp_path / "baselines/MAPPO").mkdir(parents=True)
    few = ("--jaxmarl", tmp_path, "--batches", 4)
    output = run_script("benchmarks/beside_jaxmarl.py", *few, ok=False)
    assert "--batches: expected at least 5, got 4" in output
    import beside_jaxmarl

    logits, action = torch.randn(7, 3, 5), torch.randint(5, (7, 3))
    expected = torch.distributions.Categorical(logits=logits)
    got = beside_jaxmarl.Categorical(jax.numpy.asarray(logits.numpy()))
    log_prob, entropy = got.log_prob(action.numpy()), got.entropy()
    torch.testing.assert_close(torch.tensor(log_prob.tolist()), expected.log_prob(action))
    torch.testing.assert_close(torch.tensor(entropy.tolist()), expected.entropy())


def test_tabular_games(run_script):
    output = run_script(
        "benchmarks/tabular_games.py", "--seeds", 3, "--components", 16, "--strengths", 4
    )
    assert "| 16 | 4 |" in output
    assert output.count("3 of 3") >= 2  # of climbing and the two penalty games


def test_equilibrium_gaps(tmp_path, run_script):
    sizes = ("--games", "penalty_25", "--seeds", 2, "--frames", 2500)
    output = run_script("benchmarks/equilibrium_gaps.py", *sizes, "--csv", tmp_path / "gaps.csv")
    with (tmp_path / "gaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert output.count("| penalty_25 |") == len({row["form"] for row in rows}) == 3
    assert [row["seed"] for row in rows] == ["0", "1"] * 3
    for row in rows:  # no deviation earns more than 10
        assert 0 <= float(row["correlated_gap"]) <= 10 - float(row["joint_payoff"]) + 1e-3


def test_scale_out(tmp_path, monkeypatch, capsys):
    """Tables of complete runs: rates of two parts, ratios, and returns of all seeds."""
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
    assert "did 1.50, 1.50 times the steps of one process" in output


def test_fingerprint(tmp_path, run_script):
    """Of one method, twice: equal, and a resumed run equals one without a stop."""
    path = tmp_path / "a.json"
    run_script("benchmarks/fingerprint.py", "write", path, "--only", "mat/grid")
    (case,) = json.loads(path.read_text()).values()
    assert case["whole"] == case["resumed"]
    assert {"parameters", "evaluation", "frames", "eval_score"} < case["whole"].keys()
    output = run_script("benchmarks/fingerprint.py", "compare", path, path)
    assert output == "1 cases, 0 differ\n"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"whole": {"a": "2"}, "resumed": {"a": "2"}}, "x: resumed a, whole a"),
        ({"whole": {"a": "1"}, "resumed": {"a": "2"}}, "x: resumed a, a resumed run differs"),
        ({"whole": {"a": "1"}, "resumed": {"a": "1"}, "error": {"error": "no env"}}, "no env"),
    ],
)
def test_fingerprints_that_differ(change, line):
    same = {"whole": {"a": "1"}, "resumed": {"a": "1"}}
    (found,) = fingerprint.compare({"x": same, "y": same}, {"x": change, "y": same})
    assert line in found
    assert fingerprint.compare({"x": same}, {}) == ["x: only in one file"]


FILES = {
    "__init__.py": "from house.training import train",
    "groups.py": "",
    "envs/__init__.py": "from house.envs.base import Env",
    "envs/base.py": "from house import groups\nclass Env: ...",
    "training.py": "from house.envs import Env\ndef train(): ...",
}


class TestStructure:
    """Of a small package."""

    @pytest.fixture
    def check(self, tmp_path, capsys):
        def check(**changed):
            changed = {name.replace("__", "/") + ".py": text for name, text in changed.items()}
            for name, text in (FILES | changed).items():
                path = tmp_path / "house" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            code = structure.main(tmp_path / "house")
            lines = capsys.readouterr().out.splitlines()
            assert code == (lines[3:] != ["no import cycle, no upward import"])
            return lines[3:]

        return check

    def test_sizes(self, check, tmp_path, capsys):
        assert check() == ["no import cycle, no upward import"]
        structure.main(tmp_path / "house")
        first, second, third, _ = capsys.readouterr().out.splitlines()
        assert first == "house: 6 lines, 5 files"
        assert second.endswith("envs/base.py, 2 lines")
        assert third.endswith("training.py:2 train, 1 lines")

    @pytest.mark.parametrize(
        "text",
        [
            "from house.training import train",
            "import house.training",
            "from house import training",
            "from . import training",
            "def late():\n    from house.training import train",
            "if TYPE_CHECKING:\n    from house.training import train",
        ],
    )
    def test_upward_imports(self, check, text):
        assert check(groups=text)[-1] == "upward import: house.groups imports house.training"

    def test_imports_of_the_whole_package(self, check):
        assert "upward import: house.groups imports house" in check(
            groups="from house import train"
        )

    def test_cycles(self, check):
        (line,) = check(envs__grid="from .base import Env", envs__base="from . import grid")
        assert line.startswith("import cycle: ")
        assert {"house.envs.base", "house.envs.grid"} < set(line.split())

    def test_long_files_and_functions(self, check):
        body = "\n".join(["    x = 1"] * structure.MAX_FUNCTION)
        docstring = "\n".join(['    """Start', *["    of text"] * 50, '    """'])
        allowed = f"def f():\n{docstring}\n{body}\n"
        assert check(groups=allowed) == ["no import cycle, no upward import"]
        (line,) = check(groups=f"{allowed}    x = 2\n")
        assert "groups.py:1 f, 61 lines" in line
        (line,) = check(groups="x = 1\n" * (structure.MAX_FILE + 1))
        assert "groups.py, 301 lines" in line

    def test_modules_without_a_layer(self, check):
        with pytest.raises(SystemExit, match=r"'attic' in LAYERS"):
            check(attic="import house.groups")
