"""The benchmark scripts run, and their tables say what was measured."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from torchrl_agentmixer.training import RunDirectory

ROOT = Path(__file__).parent.parent


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


def test_one_shot_games(tmp_path):
    out = tmp_path / "games.csv"
    sizes = ("--seeds", 2, "--frames", 200, "--batch", 100, "--games", "climbing")
    output = run("benchmarks/one_shot_games.py", *sizes, "--methods", "MAPPO", "--csv", out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    payoffs = {0, 5, 6, 7, 11, -30}
    assert all(float(row["decentralized_modes"]) in payoffs for row in rows)
    assert "| MAPPO | 2 |" in output


def test_collect_results(tmp_path):
    for seed, scores in ((0, (0.1, 0.3)), (1, (0.2, 0.5))):
        directory = RunDirectory(tmp_path / "runs" / "mappo" / str(seed))
        for i, score in enumerate(scores):
            directory.log({"frames": 10 * (i + 1), "eval_score": score, "eval_joint_score": score})
    output = run("benchmarks/collect_results.py", tmp_path / "runs", "--out", tmp_path / "out")
    assert "| mappo | 20 | 0.3 0.5; **0.400** |" in output
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 5
    assert (tmp_path / "out.png").stat().st_size > 1000
