"""Train one method on one environment.

    python examples/train.py
    python examples/train.py env=grid_predator_prey algorithm=mappo seed=1
    python examples/train.py env=climbing algorithm=agent_mixer algorithm.head_gain=2 device=cpu
    python examples/train.py --multirun env=climbing algorithm=agent_mixer,mappo seed=0,1,2
    python examples/train.py --multirun hydra/launcher=joblib env=climbing algorithm=mat seed=0,1,2

The last one runs on all cores at once, with the ``sweep`` extra: ``docs/sweeps.md``.

Fields are in ``examples/conf``. The run directory gets the config, the versions, metrics and
evaluation episodes as CSV, the parameters, a learning curve, an animation of the decentralized
policy and a table of results.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase, TransformedEnv
from tqdm import tqdm

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import CorrelationSeed, make_env
from torchrl_agentmixer.reporting import plot_learning_curve, results_table
from torchrl_agentmixer.training import (
    LoopConfig,
    RunDirectory,
    keep_freed_memory,
    record_gif,
    train,
)


def build_env(config: DictConfig, num_envs: int, seed: int) -> EnvBase:
    """The configured environment, with a correlation seed where the method uses one."""
    env = make_env(
        config.env.name, num_envs=num_envs, device=config.device, seed=seed, **config.env.kwargs
    )
    seed_dim = config.algorithm.get("seed_dim", 0)
    if seed_dim:
        env = TransformedEnv(env, CorrelationSeed(seed_dim, per=config.algorithm.seed_per))
    return env


def progress_bar(total_frames: int):
    """A live bar with return and frames/s; quiet when the output is no terminal."""
    bar = tqdm(total=total_frames, unit="frame", unit_scale=True, disable=None)

    def show(row: dict) -> None:
        shown = {
            name: row[name]
            for name in ("score", "return", "eval_return")
            if row.get(name) is not None
        }
        bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
        bar.update(row["frames"] - bar.n)
        if row["frames"] >= total_frames:
            bar.close()

    return show


def run(config: DictConfig, folder: Path) -> dict[str, float | None]:
    """Train, and leave everything in ``folder``; the last row of metrics."""
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    env = build_env(config, config.env.num_envs, config.seed)
    eval_env = build_env(config, config.env.eval_envs, config.seed)
    torch.manual_seed(config.seed)  # building an environment may have seeded the generator
    options = OmegaConf.to_container(config.algorithm, resolve=True)
    algorithm = make_algorithm(options.pop("name"), env, config.env.total_frames, options)
    loop = LoopConfig(
        total_frames=config.env.total_frames,
        frames_per_batch=config.env.frames_per_batch,
        eval_interval=config.env.eval_interval,
        eval_steps=config.env.eval_steps,
    )
    directory = RunDirectory(folder)  # not before all that a wrong config can break
    directory.save_config(OmegaConf.to_container(config, resolve=True))
    show = progress_bar(loop.total_frames)
    last = train(algorithm, env, eval_env, loop, directory, on_metrics=show)
    if config.plots:
        report(folder, algorithm, eval_env, config.env.eval_steps)
    return last


def report(path: Path, algorithm, eval_env: EnvBase, eval_steps: int) -> None:
    """Learning curve and animation of the decentralized policy."""
    curve = plot_learning_curve(path)
    animation = record_gif(
        algorithm.execution_policy, eval_env, path / "decentralized.gif", max_steps=eval_steps
    )
    print(f"learning curve: {curve}\nanimation:      {animation}")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    last = run(config, folder)
    print(results_table([folder]))
    print(f"run directory: {folder}")
    return last["eval_return"]


if __name__ == "__main__":
    main()
