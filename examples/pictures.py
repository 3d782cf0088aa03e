"""Two pictures of what the Policy Modifier does: along an episode, and over training.

python examples/pictures.py --out docs/_static
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from correlate_frozen_actors import main as correlate
from matplotlib.figure import Figure
from PIL import Image
from torchrl.envs.utils import step_mdp

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.diagnostics import joint_action_probs
from torchrl_agentmixer.envs import climbing, make_env

MOVES = ("down", "left", "up", "right", "stay")
ONE_SHOT = {"lr_modifier": 1e-2, "clip_epsilon": 0.2, "epochs": 15, "num_minibatches": 1}
ANNEALED = {"temperature": 1.0, "strength": {"start": 4.0, "end": 0.0, "until": 0.667}}


def heat_map(axes, probs: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    axes.imshow(probs, cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=range(probs.shape[1]), yticks=range(probs.shape[0]))
    for row, column in torch.ones_like(probs).nonzero().tolist() if labels is not None else ():
        color = "white" if probs[row, column] > 0.6 else "black"
        axes.text(column, row, f"{labels[row, column]:g}", ha="center", va="center", color=color)


def episode(path: Path, frames: int, steps: int = 6) -> None:
    """The scene, the frozen individual policies, and what the Modifier makes of them."""
    policy, _, _ = correlate(seed=0, frames=frames)
    env = make_env("grid/predator_prey", penalty=0.0, seed=4)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(3, steps, height_ratios=(2, 1, 1))
    data = env.reset()
    torch.manual_seed(1)
    for step, (scene, individual, joint) in enumerate(panels.T):
        scene.imshow(env.render()[:-20])
        scene.set(xticks=[], yticks=[], title=f"step {step}")
        with torch.no_grad():
            data = policy(data)
            heat_map(individual, data["agents", "logits"][0].softmax(-1))
            heat_map(joint, policy.get_dist(data.copy()).probs[0])
        individual.set(xticks=[])
        joint.set_xticks(range(5), MOVES, rotation=90)
        data = step_mdp(env.step(data))
        if data["done"].any():
            break
    for unused in panels[:, step + 1 :].flat:
        unused.set_axis_off()
    for axes, name in zip(panels[1:, 0], ("individual", "joint"), strict=True):
        axes.set_ylabel(f"{name}\nagent")
    save(figure, path)


def game(path: Path, frames: int, batch: int = 2_500, columns: int = 5) -> None:
    """The joint policy, and the product of its individual policies, as payoff-matrix heat maps."""
    torch.manual_seed(0)
    env = make_env("matrix/climbing", num_envs=batch, seed=0)
    algorithm = make_algorithm("agent_mixer", env, frames, ONE_SHOT | ANNEALED)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(2, columns)
    updates = frames // batch
    shown = [round(k * updates / (columns - 1)) for k in range(columns)]
    for update in range(updates + 1):
        with torch.no_grad():
            rollout = env.rollout(1, algorithm.policy)
        if update in shown:
            column = panels[:, shown.index(update)]
            column[0].set_title(f"{update * batch:,} games")
            product = algorithm.policy.decentralized(deterministic=False)
            for axes, policy in zip(column, (algorithm.policy, product), strict=True):
                with torch.no_grad():
                    dist = policy.get_dist(rollout[:1, 0].copy())
                heat_map(axes, joint_action_probs(dist)[0], climbing())
        if update < updates:
            algorithm.update(rollout)
    for axes, name in zip(panels[:, 0], ("joint", "product of individuals"), strict=True):
        axes.set_ylabel(f"{name}\nrow player's action")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    picture = Image.open(path).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--frames", type=int, default=50_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    game(arguments.out / "climbing_policies.png", arguments.frames)
    episode(arguments.out / "modifier_along_an_episode.png", arguments.frames)
