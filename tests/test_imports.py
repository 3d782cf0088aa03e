"""Imports: the core needs torch, torchrl and tensordict only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import torchrl_agentmixer

EXTRAS = (
    "arch",
    "benchmarl",
    "gymnasium",
    "gymnasium_robotics",
    "hydra",
    "jax",
    "jaxmarl",
    "matplotlib",
    "mlflow",
    "mpe2",
    "mujoco",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pettingzoo",
    "PIL",
    "ray",
    "rliable",
    "scipy",
    "smacv2",
    "tensorboard",
    "tqdm",
    "trackio",
    "vmas",
    "wandb",
)
PACKAGE = Path(torchrl_agentmixer.__file__).parent
MISSING = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))  # as if not installed\n"
CORE = """
from torchrl_agentmixer import AgentMixerPolicy, IGCCategorical, IGCMixture, IGCNormal
from torchrl_agentmixer import IGCTanhNormal, PolicyModifier, agent_groups, export_decentralized
from torchrl_agentmixer.algorithms import available_algorithms, make_algorithm
from torchrl_agentmixer.diagnostics import correlated_equilibrium_gap, nash_gap
from torchrl_agentmixer.envs import MatrixGameEnv, available_envs, make_env
from torchrl_agentmixer.modules import CentralCritic, MixerBlock
from torchrl_agentmixer.reporting import read_runs, write_report
from torchrl_agentmixer.experiment import ExperimentConfig, run
from torchrl_agentmixer.training import LoopConfig, RunDirectory, evaluate, train

env = make_env("grid/predator_prey", num_envs=2, seed=0)
for name in available_algorithms(env):
    make_algorithm(name, env, 100)
AgentMixerPolicy.from_env(env)(env.reset())
"""
HINTS = """
from torchrl_agentmixer import envs

names = envs.available_envs()
for prefix in ("vmas", "mamujoco", "pettingzoo", "smacv2", "smax"):
    assert not [name for name in names if name.startswith(prefix + "/")], names
extra = 'pip install "torchrl_agentmixer[{}]"'
smacv2 = ("git+https://github.com/oxwhirl/smacv2", "StarCraft II", "docs/smacv2.md")
for call, parts in (
    (lambda: envs.make_env("vmas/predator_prey"), [extra.format("vmas")]),
    (lambda: envs.make_env("mamujoco/ant_4x2"), [extra.format("mamujoco")]),
    (lambda: envs.MaMujocoEnv("ant_4x2"), [extra.format("mamujoco")]),
    (lambda: envs.make_env("smax/3m"), [extra.format("smax")]),
    (lambda: envs.make_env("pettingzoo/simple_spread_v3"), [extra.format("pettingzoo")]),
    (lambda: envs.make_env("smacv2/zerg_5_vs_5"), smacv2),
    (lambda: envs.SMACv2TeamEnv("zerg"), smacv2),
    (envs.make_env("grid/predator_prey").render, [extra.format("plots")]),
):
    try:
        call()
    except ImportError as error:
        assert all(part in str(error) for part in parts), error
    else:
        raise AssertionError(parts)
"""


def run(script):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MISSING + script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_core_needs_no_extra():
    run(CORE)


def test_a_missing_extra_is_named_with_its_command():
    run(HINTS)


def importers(name):
    """Files of the package that import a module whose name contains ``name``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(name in one for one in names):
                found.add(str(path.relative_to(PACKAGE)))
    return found


def test_hydra_is_for_scripts():
    """Only the BenchMARL plug-in, which Hydra configures, imports it."""
    assert importers("hydra") == {"benchmarl/__init__.py", "benchmarl/__main__.py"}


def test_three_modules_know_of_several_processes():
    expected = {"algorithms/base.py", "experiment.py", "training/loop.py"}
    assert importers("torchrl_agentmixer.distributed") == expected
