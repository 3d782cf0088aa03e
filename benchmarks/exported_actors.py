"""Exported actors: difference from the policy, latency on one core, and file size.

    python benchmarks/exported_actors.py                  # the table in docs/export.md
    python benchmarks/exported_actors.py --only smax/3m

Policies have random parameters. One row per environment: the largest difference between exported
and original actions (discrete: the share of actions that differ), on random observations and in an
episode; then, for the first agent, the time of a step of batch size 1 and the sizes of its files.
Times are medians (and 99th percentiles) of single calls in one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import print_rows
from tensordict import TensorDict
from torch import nn
from torchrl.envs import EnvBase, step_mdp

from torchrl_agentmixer import AgentMixerPolicy, export_decentralized
from torchrl_agentmixer.envs import make_env, with_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from run_exported_team import load_team

# Environment, and options of the environment, the policy and the actors.
CASES: list[tuple[str, dict, dict, dict]] = [
    ("matrix/climbing", {}, {}, {}),
    ("grid/bridge_crossing", {}, {}, {}),
    ("grid/predator_prey", {}, {}, {}),
    ("vmas/predator_prey", {"max_steps": 100}, {}, {}),
    ("vmas/predator_prey", {"max_steps": 100}, {}, {"memory_dim": 64}),
    ("mamujoco/ant_4x2", {}, {}, {"hidden": (64, 64)}),
    ("mamujoco/humanoid_9_8", {}, {"distribution": "tanh_normal"}, {"hidden": (256, 256)}),
    ("smax/3m", {}, {}, {}),
    ("smax/smacv2_5_units", {}, {}, {"memory_dim": 64}),
]


def random_data(policy: nn.Module, env: EnvBase, batch: int) -> TensorDict:
    """Random observations, action masks and memories ``[batch]``, as the policy reads them."""
    data = TensorDict({"is_init": torch.zeros(batch, 1, dtype=torch.bool)}, [batch])
    specs = env.observation_spec_unbatched
    for key in policy.in_keys:
        if key == "is_init":
            continue
        shape = (batch, *specs[key].shape)
        if key[-1] == "action_mask":
            mask = torch.rand(shape) < 0.5
            data[key] = mask.scatter(-1, torch.randint(shape[-1], (*shape[:-1], 1)), True)
        else:
            data[key] = torch.randn(shape)
    return data


def act(team: dict, data: TensorDict) -> dict[tuple[str, int], torch.Tensor]:
    """Actions of the exported actors by group and index."""
    actions = {}
    for actor in team.values():
        group, index = actor.card["group"], actor.card["index"]
        leaves = [leaf for leaf in actor.card["inputs"] if leaf != "memory"]
        inputs = {leaf: data[group, leaf][:, index].numpy() for leaf in leaves}
        actions[group, index] = torch.from_numpy(actor.act(**inputs))
    return actions


def difference(actions: dict, data: TensorDict, env: EnvBase) -> tuple[float, float]:
    """Largest difference from the policy's (continuous), and share that differs (discrete)."""
    largest, differ = 0.0, 0.0
    for (group, index), action in actions.items():
        spec = env.full_action_spec_unbatched[group, "action"]
        expected = data[group, "action"][:, index]
        if action.is_floating_point():
            if hasattr(spec.space, "low"):
                expected = expected.clamp(spec.space.low[index], spec.space.high[index])
            largest = max(largest, (action - expected).abs().max().item())
        else:
            differ = max(differ, (action != expected).double().mean().item())
    return largest, differ


def observations(team: dict, policy: nn.Module, env: EnvBase, batch: int) -> tuple[float, float]:
    data = random_data(policy, env, batch)
    for actor in team.values():
        actor.reset(batch)
        if actor.memory:
            group, index = actor.card["group"], actor.card["index"]
            actor.memory = {"memory": data[group, "memory"][:, index].numpy()}
    return difference(act(team, data), policy(data), env)


def episode(team: dict, policy: nn.Module, env: EnvBase) -> tuple[int, float, float]:
    """Steps of an episode of the exported team, and the differences in it."""
    for actor in team.values():
        actor.reset()
    data, steps, worst = env.reset(), 0, (0.0, 0.0)
    while not data["done"].all():
        actions = act(team, data)
        data = policy(data)
        pair = difference(actions, data, env)
        worst = (max(worst[0], pair[0]), max(worst[1], pair[1]))
        for (group, index), action in actions.items():
            data[group, "action"][:, index] = action
        data, steps = step_mdp(env.step(data)), steps + 1
    return steps, *worst


def times(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median and 99th percentile of a call, in microseconds."""
    for _ in range(50):
        call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    median, slow = np.percentile(taken, [50, 99]) * 1e6
    return float(median), float(slow)


def measure(case: tuple[str, dict, dict, dict], batch: int, rounds: int) -> list[str]:
    """The cells of a row."""
    name, env_options, policy_options, actor_options = case
    env = make_env(name, num_envs=1, seed=0, **env_options)
    joint = AgentMixerPolicy.from_env(env, actor_kwargs=actor_options, **policy_options)
    policy = joint.decentralized()
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.2)
    env = with_memory(env, policy)
    with tempfile.TemporaryDirectory() as folder:
        card = export_decentralized(joint, Path(folder) / "team")
        agent = json.loads(card.read_text())["agents"][0]
        team = load_team(card.parent)
        drawn = observations(team, policy, env, batch)
        steps, *played = episode(team, policy, env)
        first = next(iter(team.values()))
        first.reset()
        one = random_data(policy, env, 1)
        inputs = {k: one[tuple(x["key"])][:, 0] for k, x in agent["inputs"].items()}
        arrays = {k: x.numpy() for k, x in inputs.items() if k != "memory"}
        program = torch.export.load(card.parent / agent["files"]["torch"]["name"]).module()
        median, slow = times(lambda: first.act(**arrays), rounds)
        by_torch, _ = times(lambda: program(**inputs), rounds // 10)
        team_of_torch, _ = times(lambda: policy(one.clone(False)), rounds // 10)
    kind = "discrete" if agent["action"]["kind"] == "discrete" else "continuous"
    errors = [f"{pair[kind == 'discrete']:.2g}" for pair in (drawn, played)]
    widths = "-".join(map(str, actor_options.get("hidden", (64,))))
    network = f"{widths}, GRU {first.card['memory']['size']}" if first.memory else widths
    sizes = [agent["files"][f]["bytes"] / 1000 for f in ("onnx", "torch")]
    return [
        name,
        network,
        f"{agent['inputs']['observation']['shape'][1]}, {kind}",
        errors[0],
        f"{errors[1]} in {steps}",
        f"{median:.0f} ({slow:.0f})",
        f"{by_torch:.0f}",
        f"{team_of_torch:.0f}",
        *(f"{size:.0f}" for size in sizes),
    ]


def main(only: str | None, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    heads = [
        "environment",
        "hidden",
        "observation, action",
        f"difference in {batch:,} observations",
        "difference in an episode",
        "onnxruntime, us (99 %)",
        "torch.export, us",
        "whole policy in torch, us",
        "onnx, kB",
        "pt2, kB",
    ]
    for index, case in enumerate(case for case in CASES if only in (None, case[0])):
        with torch.no_grad():
            cells = measure(case, batch, rounds)
        print_rows([dict(zip(heads, cells, strict=True))], header=index == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="one of the environments")
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10_000)
    arguments = parser.parse_args()
    main(arguments.only, arguments.batch, arguments.rounds)
