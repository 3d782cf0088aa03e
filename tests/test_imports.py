"""The core needs no extra: importing it takes torch, torchrl and tensordict alone."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = (
    "benchmarl",
    "gymnasium_robotics",
    "hydra",
    "jax",
    "jaxmarl",
    "matplotlib",
    "mlflow",
    "mujoco",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
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
MISSING = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))  # as if not installed\n"
CORE = """
from torchrl_agentmixer import AgentMixerPolicy, IGCCategorical, IGCMixture, IGCNormal
from torchrl_agentmixer import IGCTanhNormal, PolicyModifier, agent_groups, export_decentralized
from torchrl_agentmixer.algorithms import available_algorithms, make_algorithm
from torchrl_agentmixer.diagnostics import correlated_equilibrium_gap, nash_gap
from torchrl_agentmixer.envs import MatrixGameEnv, available_envs, make_env
from torchrl_agentmixer.modules import CentralCritic, MixerBlock
from torchrl_agentmixer.reporting import read_runs, write_report
from torchrl_agentmixer.training import LoopConfig, RunDirectory, evaluate, train

env = make_env("grid/predator_prey", num_envs=2, seed=0)
for name in available_algorithms():
    if name != "agent_mixer_sac":
        make_algorithm(name, env, 100)
AgentMixerPolicy.from_env(env)(env.reset())
"""
HINTS = """
from torchrl_agentmixer.envs import make_env

for name, extra in (
    ("vmas/predator_prey", "vmas"), ("mamujoco/ant_4x2", "mamujoco"), ("smax/3m", "smax")
):
    try:
        make_env(name, num_envs=1)
    except ImportError as error:
        assert f'pip install "torchrl_agentmixer[{extra}]"' in str(error), error
    else:
        raise AssertionError(name)
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
