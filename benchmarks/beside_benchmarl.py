"""MAPPO and AgentMixer here, and BenchMARL's MAPPO, with one configuration: throughput and returns.

All have the same numbers of environments, frames, epochs and minibatches and the same layers, and
are evaluated on the same episodes, which are not timed. The sides alternate within each seed.
Times are CPU seconds, which other programs hardly change, of all batches after the first. The first
one warms up, and with ``--compile`` it compiles losses and policy here; its seconds are printed.

.. code-block:: console

    OMP_NUM_THREADS=1 python benchmarks/beside_benchmarl.py --out docs/results/beside_benchmarl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from common import write_csv
from torch import nn
from torchrl.envs import VmasEnv

import torchrl_agentmixer.benchmarl  # noqa: F401  # isort: skip (before BenchMARL)
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.environments.vmas.common import VmasClass
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models import MlpConfig

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import PredatorPreyScenario, make_env
from torchrl_agentmixer.reporting.plots import mean_curve, plot_panels
from torchrl_agentmixer.reporting.tables import markdown
from torchrl_agentmixer.training import LoopConfig, RunDirectory, evaluate, train

LR, GAMMA, LAMBDA, CLIP, ENTROPY, EPOCHS, MINIBATCHES, WIDTH = 5e-4, 0.99, 0.9, 0.2, 0.0, 10, 10, 64
ADAM_EPS, GRAD_NORM, STEPS = 1e-5, 10.0, 100
PEER = "BenchMARL's MAPPO"


@dataclass
class Course:
    """CPU seconds of collection and update of each batch, and returns by frames, not timed."""

    score: Callable[[], float]
    batch: int
    interval: int
    seconds: list[float] = field(default_factory=list)
    curve: dict[int, float] = field(default_factory=dict)
    since: float = 0.0

    def start(self) -> None:
        self.curve[0] = self.score()
        self.since = time.process_time()

    def reached(self, frames: int) -> None:
        self.seconds.append(time.process_time() - self.since)
        if frames % self.interval == 0:
            self.curve[frames] = self.score()
        self.since = time.process_time()

    @property
    def speed(self) -> float:
        """Frames per CPU second after the first batch."""
        return self.batch * len(self.seconds[1:]) / sum(self.seconds[1:])


class ReLUNorm(nn.Sequential):
    """ReLU, then LayerNorm, as after this package's hidden layers; TorchRL's MLP reverses them."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.LayerNorm(WIDTH))


class PredatorPrey(VmasClass):
    """This package's VMAS scenario as a task of BenchMARL."""

    def get_env_fun(self, num_envs, continuous_actions, seed, device):
        return lambda: VmasEnv(
            scenario=PredatorPreyScenario(),
            num_envs=num_envs,
            continuous_actions=continuous_actions,
            seed=seed,
            device=device,
            categorical_actions=True,
            clamp_actions=True,
            **self.config,
        )


def task_of(name: str) -> VmasClass:
    if name == "predator_prey":
        return PredatorPrey(name.upper(), {"max_steps": STEPS})
    return VmasTask[name.upper()].get_from_yaml()


class Watch(Callback):
    """Records the progress of a BenchMARL experiment."""

    course: Course

    def on_train_end(self, training_td, group) -> None:
        self.course.reached(self.experiment.total_frames)


def environment(task, num_envs: int, seed: int, sizes: argparse.Namespace):
    continuous = sizes.actions == "continuous"
    options = {"seed": seed, "continuous_actions": continuous, **task.config}
    return make_env(f"vmas/{task.name.lower()}", num_envs=num_envs, **options)


def ours(method: str, task, seed: int, sizes: argparse.Namespace, folder: Path) -> Course:
    torch.manual_seed(seed)
    env = environment(task, sizes.batch // STEPS, seed, sizes)
    options = {
        "lr": LR,
        "gamma": GAMMA,
        "gae_lambda": LAMBDA,
        "entropy_coeff": ENTROPY,
        "epochs": EPOCHS,
        "num_minibatches": MINIBATCHES,
        "adam_eps": ADAM_EPS,
        "max_grad_norm": GRAD_NORM,
        "actor_hidden": (WIDTH, WIDTH),
        "critic_hidden": (WIDTH, WIDTH),
        "distribution": "tanh_normal",  # of continuous actions, as BenchMARL's
        "compile": sizes.compile,
    }
    if method == "mappo":  # AgentMixer's clipping is part of the method
        options["clip_epsilon"] = CLIP
    algorithm = make_algorithm(method, env, sizes.frames, options)
    test = environment(task, sizes.episodes, seed, sizes)
    course = Course(
        lambda: evaluation(algorithm.execution_policy, test),
        sizes.batch,
        sizes.interval,
    )
    # The loop's own evaluations are timed: one of one step.
    loop = LoopConfig(
        total_frames=sizes.frames,
        frames_per_batch=sizes.batch,
        eval_interval=sizes.frames,
        eval_steps=1,
    )
    train(
        algorithm,
        env,
        environment(task, 1, seed, sizes),
        loop,
        RunDirectory(folder),
        on_start=lambda _: course.start(),
        on_metrics=lambda row: course.reached(row["frames"]),
    )
    return course


def benchmarls(task, seed: int, sizes: argparse.Namespace, folder: Path) -> Course:
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions = sizes.actions == "continuous"
    config.share_policy_params = False
    config.max_n_frames = sizes.frames
    config.lr, config.gamma, config.adam_eps = LR, GAMMA, ADAM_EPS
    config.clip_grad_val = GRAD_NORM
    config.on_policy_collected_frames_per_batch = sizes.batch
    config.on_policy_n_envs_per_worker = sizes.batch // STEPS
    config.on_policy_n_minibatch_iters = EPOCHS
    config.on_policy_minibatch_size = sizes.batch // MINIBATCHES
    config.evaluation, config.render = False, False
    config.loggers, config.create_json = [], False
    config.save_folder = str(folder)
    algorithm = MappoConfig.get_from_yaml()
    algorithm.lmbda, algorithm.clip_epsilon, algorithm.entropy_coef = LAMBDA, CLIP, ENTROPY
    layers = MlpConfig(num_cells=[WIDTH, WIDTH], activation_class=ReLUNorm, layer_class=nn.Linear)
    watch = Watch()
    experiment = Experiment(
        task=task,
        algorithm_config=algorithm,
        model_config=layers,
        seed=seed,
        config=config,
        callbacks=[watch],
    )
    test = environment(task, sizes.episodes, seed, sizes)
    watch.course = Course(lambda: evaluation(experiment.policy, test), sizes.batch, sizes.interval)
    watch.course.start()
    experiment.run()
    return watch.course


def evaluation(policy, env) -> float:
    """Mean return of the deterministic policy, always over the same episodes."""
    return float(evaluate(policy, env, max_steps=STEPS, seed=1_000_003).returns.mean())


def save(courses: dict[tuple[str, int], Course], title: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows, curves = [], {}
    for (side, seed), course in courses.items():
        speed = f"{course.speed:.0f}"
        for frames, value in course.curve.items():
            row = {"side": side, "seed": seed, "frames": frames, "return": f"{value:.3f}"}
            rows.append({**row, "frames_per_cpu_second": speed})
        points = np.array(list(course.curve)), np.array(list(course.curve.values()))
        curves.setdefault(side, []).append(points)
    write_csv(rows, out / "returns.csv")
    panels = {title: {side: mean_curve(seeds) for side, seeds in curves.items()}}
    plot_panels(panels, out / "returns.png", "frames", "return of the deterministic policy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="balance", help="of VMAS, or predator_prey")
    parser.add_argument("--actions", choices=("discrete", "continuous"), default="discrete")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=144_000)
    parser.add_argument("--batch", type=int, default=6_000)
    parser.add_argument("--interval", type=int, default=12_000, help="frames between evaluations")
    parser.add_argument("--episodes", type=int, default=100, help="per evaluation")
    parser.add_argument("--compile", action="store_true", help="losses and policy of this package")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.frames < 2 * arguments.batch:
        least = 2 * arguments.batch
        parser.error(f"--frames: expected two batches, {least}, or more, got {arguments.frames}.")
    task = task_of(arguments.task)
    mixer = "agent_mixer" if arguments.actions == "discrete" else "agent_mixer_continuous"
    sides = {"MAPPO": partial(ours, "mappo"), "AgentMixer": partial(ours, mixer)}
    sides |= {PEER: benchmarls}
    courses: dict[tuple[str, int], Course] = {}
    for seed in arguments.seeds:
        for side, run in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                course = courses[side, seed] = run(task, seed, arguments, Path(folder))
            curve = " ".join(f"{value:.1f}" for value in course.curve.values())
            first = course.seconds[0]
            print(f"{side} seed {seed}: {course.speed:.0f} /s, first batch {first:.1f} s: {curve}")
    rows = []
    for side in sides:
        of_side = [courses[side, seed] for seed in arguments.seeds]
        last = [course.curve[max(course.curve)] for course in of_side]
        speed = median(course.speed for course in of_side)
        each = ", ".join(f"{value:.1f}" for value in last)
        rows.append([side, each, f"{mean(last):.1f}", f"{speed:,.0f}"])
    print(f"\n{markdown(['', 'final return of each seed', 'mean', 'frames per CPU second'], rows)}")
    print()
    for side in list(sides)[:-1]:
        ratios = [courses[side, s].speed / courses[PEER, s].speed for s in arguments.seeds]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"throughput of {side} / {PEER}: {each}; median {median(ratios):.2f}")
    if arguments.out is not None:
        save(courses, f"vmas/{arguments.task}, {arguments.actions} actions", arguments.out)


if __name__ == "__main__":
    main()
