"""Fingerprint of all methods, to compare before and after a change of structure.

    python benchmarks/fingerprint.py write before.json     # and after.json after the change
    python benchmarks/fingerprint.py compare before.json after.json

Each case trains one method for three batches on a small environment (discrete and continuous
actions, two groups of agents, memory): without a stop, and stopped after every batch and resumed.
The file has hashes of parameters, evaluation episodes and columns of ``metrics.csv``. Use one
machine and one PyTorch. ``compare`` exits with 1 if hashes or resumed runs differ.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.training import LoopConfig, RunDirectory, train

GRID, VMAS, TAG = "grid/predator_prey", "vmas/predator_prey", "vmas/simple_tag"
PPO = {"epochs": 2, "num_minibatches": 2, "clip_epsilon": 0.2}
MEMORY = {"memory_dim": 8, "sequence_length": 4}
DISCRETE = {**PPO, "channels": 32, "head_gain": 2.0, "temperature": 1.0}
STRENGTH = {"strength": {"start": 3.0, "end": 0.0, "until": 0.5}}
MIXTURE = {**DISCRETE, **STRENGTH, "num_components": 3}
PAPER = {**DISCRETE, "num_components": 0, "strength": 1.0}
SHIFTS = {"strength": {"start": 1.0, "end": 0.0, "until": 0.5}}
CONTINUOUS = {**PPO, **SHIFTS, "channels": 32, "head_gain": 0.5, "lr_modifier": 1e-3}
SAC = {"gradient_steps": 3, "batch_size": 32}
SHARED = {"modified_share": 0.5, "consistency": 0.5}
Case = tuple[str, str, dict[str, Any]]  # method, environment, hyperparameters


def cases() -> dict[str, Case]:
    found = {
        "mixture/grid": ("agent_mixer", GRID, MIXTURE),
        "mixture/grid/share": ("agent_mixer", GRID, MIXTURE | SHARED),
        "mixture/grid/memory": ("agent_mixer", GRID, MIXTURE | MEMORY),
        "paper/grid": ("agent_mixer", GRID, PAPER),
        "paper/grid/memory": ("agent_mixer", GRID, PAPER | MEMORY),
        "sac/vmas": ("agent_mixer_sac", VMAS, SAC),
        "masac/vmas": ("masac", VMAS, SAC),
        "hasac/vmas": ("hasac", VMAS, SAC),
        "maven/grid": ("maven", GRID, {"epochs": 2, "num_minibatches": 4}),
    }
    tanh, agent = {"distribution": "tanh_normal"}, {"ratio": "agent"}
    for name, changed in {"": {}, "/agent": agent, "/tanh": tanh, "/memory": MEMORY}.items():
        found[f"continuous/vmas{name}"] = ("agent_mixer_continuous", VMAS, CONTINUOUS | changed)
    for method in ("mappo", "ippo", "happo", "armappo", "mat", "mat_dec", "magpo", "ail"):
        found[f"{method}/grid"] = (method, GRID, PPO)
        found[f"{method}/vmas"] = (method, VMAS, PPO)
        if method != "mat":
            found[f"{method}/grid/memory"] = (method, GRID, PPO | MEMORY)
        if method != "magpo" and not method.startswith("mat"):
            found[f"{method}/tag"] = (method, TAG, PPO)
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def train_case(case: Case, folder: Path, *, resume: bool = False, **loop: Any) -> torch.nn.Module:
    """Train three batches of 160 steps, or what is left of them."""
    method, env_name, options = case
    torch.manual_seed(0)
    kwargs = {GRID: {"penalty": -1.0}, TAG: {"reward": "mean"}}.get(env_name, {})
    env, eval_env = (make_env(env_name, num_envs=n, seed=0, **kwargs) for n in (10, 5))
    torch.manual_seed(0)
    algorithm = make_algorithm(method, env, 480, options)
    loop |= {"total_frames": 480, "frames_per_batch": 160, "eval_interval": 160, "eval_steps": 16}
    config = LoopConfig(checkpoint_interval=160, **loop)
    train(algorithm, env, eval_env, config, RunDirectory(folder, resume=resume))
    return algorithm


def hashes(algorithm: torch.nn.Module, folder: Path) -> dict[str, str]:
    """Hashes of the parameters, the evaluation episodes and the columns of the metrics."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    columns = [column for column in rows[0] if not column.startswith("fps")]
    arrays = [p.detach().contiguous().numpy().tobytes() for p in algorithm.parameters()]
    return {
        "parameters": digest("".join(sorted(map(digest, arrays))).encode()),
        "evaluation": digest((folder / "evaluation.csv").read_bytes()),
        **{column: digest(",".join(row[column] for row in rows).encode()) for column in columns},
    }


def fingerprint(case: Case) -> dict[str, dict[str, str]]:
    """Hashes of a run without a stop, and of one that is stopped after every batch and resumed."""
    with tempfile.TemporaryDirectory() as name:
        whole, parts = Path(name) / "whole", Path(name) / "resumed"
        found = {"whole": hashes(train_case(case, whole), whole)}
        for resume in (False, True):
            train_case(case, parts, resume=resume, max_time=1e-9)
        return found | {"resumed": hashes(train_case(case, parts, resume=True), parts)}


def write(path: Path, only: str) -> int:
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    for name, case in cases().items():
        if only in name:
            try:
                found[name] = fingerprint(case)
            except Exception as error:
                found[name] = {"error": {"error": f"{type(error).__name__}: {error}"}}
            print(f"{name}: {'failed' if 'error' in found[name] else 'done'}", flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any("error" in case for case in found.values()) else 0


def compare(before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    """One line per case that differs or failed."""
    found = [f"{name}: only in one file" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        x, y = (
            {(f"{kind} {key}", h) for kind, found in file[name].items() for key, h in found.items()}
            for file in (before, after)
        )
        different = sorted({key for key, _ in x ^ y})
        if after[name].get("whole") != after[name].get("resumed"):
            different.append("a resumed run differs from a run without a stop")
        different += after[name].get("error", {}).values()
        if different:
            found.append(f"{name}: {', '.join(different)}")
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("files", type=Path, nargs="+", help="one to write, two to compare")
    parser.add_argument("--only", default="", help="part of the names of cases to write")
    arguments = parser.parse_args()
    if arguments.command == "write":
        return write(arguments.files[0], arguments.only)
    before, after = (json.loads(path.read_text()) for path in arguments.files)
    found = compare(before, after)
    print("\n".join([*found, f"{len(after)} cases, {len(found)} differ"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
