"""AgentMixer and BenchMARL's MAPPO, both in BenchMARL: returns and throughput.

Throughput is in frames per CPU second, of collection, updates and evaluations. It hardly depends on
other load of the machine.

.. code-block:: console

    OMP_NUM_THREADS=1 python benchmarks/benchmarl_tasks.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict

from torchrl_agentmixer.benchmarl import AgentMixerConfig  # isort: skip (before BenchMARL)
from benchmarl.algorithms import MappoConfig
from benchmarl.benchmark import Benchmark
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models import MlpConfig

from torchrl_agentmixer.reporting.tables import markdown


def experiment_config(frames: int, batch: int, folder: str, discrete: bool) -> ExperimentConfig:
    config = ExperimentConfig.get_from_yaml()
    config.max_n_frames = frames
    config.prefer_continuous_actions = not discrete
    config.lr = 1e-3
    config.on_policy_collected_frames_per_batch = batch
    config.on_policy_n_envs_per_worker = batch // 100  # episodes of 100 steps
    config.on_policy_n_minibatch_iters = 10
    config.on_policy_minibatch_size = batch // 10
    config.evaluation_interval = frames
    config.evaluation_episodes = 100
    config.render = False
    config.loggers = []
    config.save_folder = folder
    return config


def final_return(experiment: Experiment) -> float:
    """Mean return of the last evaluation, from BenchMARL's JSON file."""
    node = json.loads(experiment.logger.json_writer.path.read_text())
    for key in (
        experiment.environment_name,
        experiment.task_name,
        experiment.algorithm_name,
        f"seed_{experiment.seed}",
    ):
        node = node[key]
    steps = [value for key, value in node.items() if key.startswith("step_")]
    returns = max(steps, key=lambda step: step["step_count"])["return"]
    return sum(returns) / len(returns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["balance", "navigation", "simple_spread"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=6000)
    parser.add_argument("--discrete", action="store_true")
    arguments = parser.parse_args()
    results: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        config = experiment_config(arguments.frames, arguments.batch, folder, arguments.discrete)
        for seed in arguments.seeds:
            benchmark = Benchmark(
                algorithm_configs=[AgentMixerConfig.get_from_yaml(), MappoConfig.get_from_yaml()],
                model_config=MlpConfig.get_from_yaml(),
                tasks=[VmasTask[name.upper()].get_from_yaml() for name in arguments.tasks],
                seeds={seed},
                experiment_config=config,
            )
            for experiment in benchmark.get_experiments():
                start = time.process_time()
                experiment.run()
                speed = experiment.total_frames / (time.process_time() - start)
                key = (experiment.task_name, experiment.algorithm_name)
                results[key].append((final_return(experiment), speed))
                print(*key, seed, *results[key][-1], flush=True)
    rows = []
    for (task, algorithm), runs in sorted(results.items()):
        returns, speeds = zip(*runs, strict=True)
        mean = sum(returns) / len(returns)
        each = ", ".join(f"{value:.2f}" for value in returns)
        speed = sorted(speeds)[len(speeds) // 2]
        rows.append([f"`{task}`", algorithm, each, f"{mean:.2f}", f"{speed:,.0f}"])
    header = ["task", "algorithm", "return of each seed", "mean", "frames per CPU second"]
    print(f"\n{markdown(header, rows)}")


if __name__ == "__main__":
    main()
