"""AgentMixer's Figures 1 and 4: students of an expert that sees more than they do can fail.

python examples/asymmetric_learning_failure.py
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunDirectory, train

bridge_crossing = partial(make_env, "grid/bridge_crossing", small_prob=0.6)
# By its default options AIL's expert keeps to distinct passages: there is nothing to fail at.
EXPLORING = {"epochs": 5, "num_minibatches": 8, "lr": 2e-3, "entropy_coeff": 0.15}
METHODS = {"ail": EXPLORING, "agent_mixer": {}}
EXACT = ("full_information_optimum", "decentralized_optimum", "imitation_mode_return")
LEARNED = {"joint": ("eval_joint_return", "--"), "decentralized": ("eval_return", "-")}


def learn(method: str, frames: int, seed: int, folder: Path):
    env, eval_env = bridge_crossing(num_envs=50, seed=seed), bridge_crossing(num_envs=1000)
    torch.manual_seed(seed)
    algorithm = make_algorithm(method, env, frames, METHODS[method])
    run = LoopConfig(total_frames=frames, frames_per_batch=5000, eval_interval=10000, eval_steps=12)
    train(algorithm, env, eval_env, run, RunDirectory(folder))
    return read_metrics(folder), algorithm.execution_policy


def draw_paths(axes, policy, sizes: list[int]) -> None:
    env = bridge_crossing(seed=0)
    start = env.reset()
    while start["agents", "observation"][0, :, 2].tolist() != sizes:
        start = env.reset()
    axes.imshow(env.render()[:-20], extent=(-0.5, 3.5, 3.5, -0.5))  # in cells
    steps = env.rollout(12, policy, auto_reset=False, tensordict=start)[0].detach()
    seen = torch.cat([steps["agents", "observation"], steps["next", "agents", "observation"][-1:]])
    for agent, color in enumerate(("#3c6ebe", "#e68c28")):
        rows, columns = (3 * seen[:, agent, :2] + 0.2 * agent - 0.1).T
        axes.plot(columns, rows, color=color, linewidth=3)
    axes.set(xticks=[], yticks=[], title=f"return {steps['next', 'reward'].sum():.1f}")


def main(frames: int, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    figure = Figure(figsize=(9, 8), layout="constrained")
    top, *below = figure.subfigures(3, 1, height_ratios=(1.6, 1, 1))
    axes = top.subplots()
    for name, style in zip(EXACT, ("-", "--", ":"), strict=True):
        axes.axhline(value := getattr(bridge_crossing(), name), color="k", ls=style, label=name)
        print(f"{name:26} {value:.3f}")
    for method, color, team in zip(METHODS, ("C3", "C0"), below, strict=True):
        metrics, policy = learn(method, frames, seed, out / method)
        for name, (column, style) in LEARNED.items():
            points = [p for p in zip(metrics["frames"], metrics[column], strict=True) if p[1]]
            axes.plot(*zip(*points, strict=True), style, color=color, label=f"{method}, {name}")
            print(f"{method + ', ' + name:26} {points[-1][1]:.3f}")
        team.suptitle(f"{method}, decentralized")
        for number, panel in enumerate(team.subplots(1, 4)):
            draw_paths(panel, policy, [number // 2, number % 2])
    axes.set(xlabel="frames", ylabel="return of an episode", ylim=(-3, -1))
    axes.legend(frameon=False)
    figure.savefig(out / "picture.png", dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=time.strftime("runs/asymmetric_%Y%m%d_%H%M%S"))
    main(**vars(parser.parse_args()))
