"""One source of defaults: Python, the command line and the BenchMARL plug-in agree."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from torchrl_agentmixer import algorithms
from torchrl_agentmixer.algorithms import (
    AgentMixerConfig,
    ContinuousAgentMixerConfig,
    PPOConfig,
    available_algorithms,
    default_options,
)
from torchrl_agentmixer.envs import make_env

ROOT = Path(__file__).parents[1]


def table(**columns):
    """Table of options with different values, for error messages."""
    names = sorted({name for column in columns.values() for name in column})
    rows = [[name, *(column.get(name, "missing") for column in columns.values())] for name in names]
    differ = [row for row in rows if any(value != row[1] for value in row[2:])]
    return "\n".join(" | ".join(map(str, row)) for row in [["option", *columns], *differ])


def plain(config):
    return json.loads(json.dumps(asdict(config)))


@pytest.fixture(scope="module")
def compose():
    """``examples/train.py``'s configuration of a command line."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "examples" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.compose


@pytest.mark.parametrize("name", available_algorithms())
def test_python_and_the_command_line(compose, name):
    continuous = not algorithms.algorithm_class(name).discrete
    env = make_env("vmas/predator_prey" if continuous else "matrix/climbing", num_envs=2)
    python = plain(algorithms.make_algorithm(name, env, 100).config)
    command_line = compose([f"algorithm={name}"]).to_dict()["algorithm"]
    assert command_line.pop("name") == name
    declared = default_options(name)
    assert python == command_line == declared, table(
        python=python, command_line=command_line, declared=declared
    )


@pytest.mark.parametrize(
    ("recipe", "differs"), [("paper", "num_components"), ("one_shot", "epochs")]
)
def test_recipes_change_few_options(compose, recipe, differs):
    written = compose([f"algorithm=agent_mixer_{recipe}"]).to_dict()["algorithm"]
    assert written.pop("name") == "agent_mixer"
    default = default_options("agent_mixer")
    assert written.keys() == default.keys()
    assert written[differs] != default[differs]


@pytest.mark.parametrize("recipe", [AgentMixerConfig, ContinuousAgentMixerConfig])
def test_benchmarl(recipe):
    plugin = pytest.importorskip("torchrl_agentmixer.benchmarl.algorithm", exc_type=ImportError)
    options = vars(plugin.AgentMixerConfig.get_from_yaml())
    given = SimpleNamespace(options={name: options[name] for name in plugin.OPTIONS})
    built = plugin.AgentMixer._recipe(given, continuous=recipe is ContinuousAgentMixerConfig)
    expected, actual = plain(recipe()), plain(built)
    assert actual == expected, table(python=expected, benchmarl=actual)


def test_benchmarl_has_every_option_of_the_joint_policy():
    plugin = pytest.importorskip("torchrl_agentmixer.benchmarl.algorithm", exc_type=ImportError)
    own = {f.name for cls in (AgentMixerConfig, ContinuousAgentMixerConfig) for f in fields(cls)}
    own -= {field.name for field in fields(PPOConfig)}
    assert set(plugin.OPTIONS) == own - {"ratio"} | {
        "optimism"
    }  # BenchMARL's loss has one ratio per team
