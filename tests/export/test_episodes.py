"""Full episodes of exported teams, run by the script without torch, equal the policy's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv, VecNormV2, step_mdp
from torchrl.envs.libs import smacv2 as torchrl_smacv2

from torchrl_agentmixer import AgentMixerPolicy, export_decentralized
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.envs import MatrixGameEnv, make_env, with_memory

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
SCRIPT = EXAMPLES / "run_exported_team.py"
RECURRENT = {"memory_dim": 8}
# Options of environment, policy and actors. SMAX compiles slowly, and is tested in
# `benchmarks/exported_actors.py`.
FAMILIES: dict[str, tuple[dict, dict, dict]] = {
    "matrix/climbing": ({}, {}, {}),
    "matrix masked": ({}, {}, {}),
    "grid/bridge_crossing": ({}, {}, {}),
    "grid/predator_prey": ({"max_steps": 50}, {}, RECURRENT),
    "mamujoco/ant_4x2": ({"max_steps": 40}, {}, {"share_params": True}),
    "mamujoco/humanoid_9_8": ({"max_steps": 40}, {"distribution": "tanh_normal"}, {}),
    "memory/recall": ({}, {}, RECURRENT),
    "vmas/predator_prey": ({"max_steps": 40}, {}, {}),
    "vmas/simple_tag": (
        {"max_steps": 40, "reward": "mean"},
        {"distribution": "tanh_normal"},
        RECURRENT,
    ),
    "smacv2/terran_5_vs_5": ({"parallel": False}, {}, RECURRENT),
}


def load(path: Path):
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture
def smacv2_stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "envs" / "smacv2_stand_in"))
    monkeypatch.setattr(torchrl_smacv2, "_has_smacv2", True)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "smacv2"]:
        del sys.modules[name]


def build(name: str, options: dict) -> EnvBase:
    if name == "matrix masked":
        return MatrixGameEnv(torch.randn(2, 4, 3), seed=0)
    return make_env(name, num_envs=1, seed=0, **options)


def act(team, data: TensorDictBase, env: EnvBase) -> dict:
    """The script's actions for an environment's tensordict, by group."""
    actions: dict = {group: [] for group in env.group_map}
    for actor in team.values():
        group, index = actor.card["group"], actor.card["index"]
        leaves = [leaf for leaf in actor.card["inputs"] if leaf != "memory"]
        inputs = {leaf: data[group, leaf][:, index].numpy() for leaf in leaves}
        actions[group].append(torch.from_numpy(actor.act(**inputs)))
    return {group: torch.stack(each, 1) for group, each in actions.items()}


def play(team, policy, env: EnvBase, episodes: int, normalize=lambda data: data) -> int:
    """Compare actions of team and policy over episodes; return the number of steps."""
    steps = 0
    for _ in range(episodes):
        for actor in team.values():
            actor.reset()
        data, done = env.reset(), False
        while not done:
            actions = act(team, data, env)
            data = policy(normalize(data))  # also writes its memory
            for group, action in actions.items():
                spec = env.full_action_spec[group, "action"]
                expected = spec.project(data[group, "action"].clone())
                torch.testing.assert_close(action, expected, atol=1e-5, rtol=0)
                data[group, "action"] = action
            data = env.step(data)
            done = data["next", "done"].all()
            data = step_mdp(data)
            steps += 1
    return steps


@pytest.mark.parametrize("name", list(FAMILIES))
def test_full_episodes(name, tmp_path, script, randomized, request):
    if name.startswith("smacv2"):
        request.getfixturevalue("smacv2_stand_in")
    env_options, policy_options, actor_options = FAMILIES[name]
    env = build(name, env_options)
    joint = AgentMixerPolicy.from_env(env, actor_kwargs=actor_options, **policy_options)
    policy = randomized(joint.decentralized(), std=0.3)
    card = export_decentralized(joint, tmp_path / "team", formats=["onnx"])
    with torch.no_grad():
        steps = play(script.load_team(card.parent), policy, with_memory(env, policy), episodes=2)
    env.close()
    assert steps >= 2 * (1 if name.startswith("matrix") else 3)


def test_an_episode_with_normalized_observations(tmp_path, script, randomized):
    env = make_env("vmas/predator_prey", num_envs=1, seed=0, max_steps=30)
    keys = [("agents", "observation")], [("agents", "normalized")]
    norm = VecNormV2(*keys)
    normalized = TransformedEnv(env, norm)
    normalized.rollout(20)
    norm.freeze()
    loc, scale = (x["agents", "observation"].squeeze(0) for x in (norm.loc, norm.scale))
    joint = AgentMixerPolicy.from_env(env, actor_kwargs={"input_norm": False})
    policy = randomized(joint.decentralized(), std=0.3)
    card = export_decentralized(
        joint, tmp_path / "team", formats=["onnx"], normalization={"agents": (loc, scale)}
    )

    def as_trained(data):
        return data.clone().set(("agents", "observation"), data["agents", "normalized"])

    with torch.no_grad():
        play(script.load_team(card.parent), policy, normalized, 1, normalize=as_trained)


def test_export_of_a_run(tmp_path, script, randomized):
    name, env = "grid/bridge_crossing", make_env("grid/bridge_crossing", num_envs=1, seed=0)
    lengths = ("num_envs", "total_frames", "frames_per_batch", "eval_interval", "eval_envs")
    options = {"name": name, "kwargs": {"step_cost": 0.1}, "eval_steps": 12}
    values = {"env": options | dict.fromkeys(lengths, 1), "seed": 3}
    values |= {
        "algorithm": {"name": "mappo", "memory_dim": 8, "sequence_length": 1, "num_minibatches": 1}
    }
    config = ExperimentConfig.from_dict(values).to_dict()
    algorithm = make_algorithm("mappo", env, 1, {"memory_dim": 8})
    policy = randomized(algorithm.execution_policy, std=0.3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(algorithm.state_dict(), tmp_path / "algorithm.pt")
    card = load(EXAMPLES / "export_actors.py").main(tmp_path, tmp_path / "exported")
    metadata = json.loads(card.read_text())["metadata"]
    assert metadata == {name: config[name] for name in ("env", "algorithm", "seed")}
    with torch.no_grad():
        play(script.load_team(card.parent), policy, with_memory(env, policy), episodes=1)


def test_the_script_runs_without_torch(tmp_path):
    env = make_env("memory/recall")
    joint = AgentMixerPolicy.from_env(env, actor_kwargs=RECURRENT)
    card = export_decentralized(joint, tmp_path / "team", formats=["onnx"])
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'tensordict', 'torchrl', 'torchrl_agentmixer', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['script', {str(card.parent)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["agents_0", "agents_1"]
    assert all(0 <= int(action) < 3 for line in lines for action in line.split()[1:])


def test_the_script_is_short():
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_benchmark_measures_a_team(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    benchmark = load(TESTS.parent / "benchmarks" / "exported_actors.py")
    with torch.no_grad():
        cells = benchmark.measure(("matrix/climbing", {}, {}, {}), batch=50, rounds=20)
    row = " | ".join(map(str, cells))
    assert row.startswith("matrix/climbing | 64 | ")
    assert "discrete | 0 | 0 in 1 |" in row
