"""The benchmark scripts run, and their tables say what was measured."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from torchrl_agentmixer.training import RunDirectory

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import scale_out  # noqa: E402


def test_throughput(tmp_path, run_script):
    out = tmp_path / "t.csv"
    sizes = ("--num-envs", 4, 8, "--steps", 4, "--rounds", 1)
    output = run_script("benchmarks/throughput.py", *sizes, "--csv", out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["num_envs"], r["method"]) for r in rows] == [
        (n, m) for n in ("4", "8") for m in ("mappo", "agent_mixer")
    ]
    assert all(float(r["collection_fps"]) > 0 and float(r["update_fps"]) > 0 for r in rows)
    assert output.count("| vmas/predator_prey |") == 4


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
    sizes = ("--frames", 100, "--batch", 100, "--interval", 100, "--episodes", 1, "--seeds", 1)
    output = run_script("benchmarks/beside_benchmarl.py", *sizes, "--out", tmp_path)
    assert "| BenchMARL |" in output
    with (tmp_path / "returns.csv").open() as file:
        rows = [(row["side"], row["seed"], row["frames"]) for row in csv.DictReader(file)]
    sides = ("torchrl_agentmixer", "BenchMARL")
    assert rows == [(side, "1", frames) for side in sides for frames in ("0", "100")]
    assert (tmp_path / "returns.png").stat().st_size > 5_000


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
    assert output.count("| penalty_25 |") == len({row["form"] for row in rows}) == 5
    assert [row["seed"] for row in rows] == ["0", "1"] * 5
    for row in rows:  # no deviation earns more than 10
        assert 0 <= float(row["correlated_gap"]) <= 10 - float(row["joint_payoff"]) + 1e-3


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
