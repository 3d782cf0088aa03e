"""Train one method on one environment.

    python examples/train.py
    python examples/train.py env=grid_predator_prey algorithm=mappo seed=1
    python examples/train.py env=climbing algorithm=agent_mixer algorithm.head_gain=2 device=cpu
    python examples/train.py --multirun env=climbing algorithm=agent_mixer,mappo seed=0,1,2
    python examples/train.py --multirun hydra/launcher=joblib env=climbing algorithm=mat seed=0,1,2
    python examples/train.py env=grid_predator_prey logger=tensorboard early_stopping.patience=10
    python examples/train.py resume=runs/grid_predator_prey/mappo/seed_1_20260101_120000
    torchrun --nproc-per-node 2 examples/train.py env=grid_predator_prey algorithm=mappo

``hydra/launcher=joblib`` runs on all cores at once, with the ``sweep`` extra: ``docs/sweeps.md``.
A run that was stopped goes on by ``resume=``, to the same numbers: ``docs/checkpoints.md``.
``logger``, ``video_interval`` and ``early_stopping``: ``docs/logging.md``. Several processes, by
``torchrun``: ``docs/how_to/scale_out.md``.

Fields are in ``examples/conf``. The run directory gets the config, the versions, metrics and
evaluation episodes as CSV, the parameters (and the statistics that observations are normalized by,
where they are), a learning curve, an animation of the decentralized
policy and a table of results.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import (
    CorrelationSeed,
    make_env,
    normalize_observations,
    observation_normalizer,
)
from torchrl_agentmixer.reporting import plot_learning_curve, results_table
from torchrl_agentmixer.training import (
    EarlyStopping,
    LoopConfig,
    MetricLoggers,
    ProgressBar,
    RunDirectory,
    Workers,
    keep_freed_memory,
    record_gif,
    train,
)


def build_env(
    config: DictConfig, num_envs: int, seed: int, *, like: EnvBase | None = None
) -> EnvBase:
    """The configured environment, with a correlation seed where the method uses one.

    Observations are normalized by the statistics of the environment that it is ``like``.
    """
    env = make_env(
        config.env.name, num_envs=num_envs, device=config.device, seed=seed, **config.env.kwargs
    )
    if config.get("normalize_observations"):  # older runs lack it
        env = normalize_observations(env, like=like)
    seed_dim = config.algorithm.get("seed_dim", 0)
    if seed_dim:
        env = TransformedEnv(env, CorrelationSeed(seed_dim, per=config.algorithm.seed_per))
    return env


def build_workers(config: DictConfig, num_envs: int, seed: int) -> Workers | None:
    """The processes that collect, with their shares of the environments; ``None`` for this one."""
    options = config.get("collector")  # older runs lack it
    count = options.num_workers if options else 0
    if not count:
        return None
    if num_envs % count:
        raise ValueError(
            f"expected `env.num_envs` to be a multiple of `collector.num_workers` {count} for each "
            f"rank, got {num_envs}."
        )
    seeds = np.random.SeedSequence([seed, 1]).generate_state(count) >> 1
    functions = [partial(build_env, config, num_envs // count, int(own)) for own in seeds]
    return Workers(env_functions=functions, seed=seed, backend=options.backend)


# What may differ between a run and its continuation: read anew, and kept if nothing is said.
ANEW = ("auto_resume", "max_time", "num_threads", "plots", "resume", "runs")
KEPT = ("collector", "early_stopping", "logger", "logger_options", "video_interval")


def run(
    config: DictConfig, folder: Path, *, changed: Sequence[str] = ()
) -> dict[str, float | None]:
    """Train, and leave everything in ``folder``; the last row of metrics.

    ``changed`` are fields that a resumed run goes on with, others than it was begun with.
    """
    folder, first = distributed.from_first(lambda: folder), distributed.rank() == 0
    resume = distributed.from_first(
        lambda: config.resume is not None or (config.auto_resume and can_resume(folder))
    )
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    num_envs = distributed.share(config.env.num_envs, "env.num_envs")
    seed = distributed.own_seed(config.seed)
    workers = build_workers(config, num_envs, seed)
    env = build_env(config, num_envs, seed)
    eval_env = build_env(config, config.env.eval_envs, config.seed, like=env)
    torch.manual_seed(config.seed)  # building an environment may have seeded the generator
    options = OmegaConf.to_container(config.algorithm, resolve=True)
    algorithm = make_algorithm(options.pop("name"), env, config.env.total_frames, options)
    loop = LoopConfig(
        total_frames=config.env.total_frames,
        frames_per_batch=config.env.frames_per_batch,
        eval_interval=config.env.eval_interval,
        eval_steps=config.env.eval_steps,
        checkpoint_interval=config.checkpoint_interval,
        keep_checkpoints=config.keep_checkpoints,
        max_time=config.max_time,
        video_interval=config.video_interval,
        early_stopping=EarlyStopping(**(config.early_stopping or {})),
    )
    plain = OmegaConf.to_container(config, resolve=True)
    loggers = MetricLoggers(
        config.logger if first else None, folder, options=plain["logger_options"]
    )
    bar = ProgressBar(loop.total_frames)
    directory = RunDirectory(folder, resume=resume)  # not before all that a wrong config can break
    if resume and first:
        for other in directory.check_config(plain, free=(*ANEW, *KEPT, *changed)):
            print(f"{folder}: {other}; the numbers may differ from those of one run")
    elif first:
        directory.save_config(plain)

    def start(frames: int) -> None:
        if resume:
            directory.change_config(plain, frames, free=ANEW)
        loggers.start(frames, plain)
        bar.start(frames)

    def show(row: dict[str, float | None]) -> None:
        loggers.log(row)
        bar.update(row)

    with closing(loggers), closing(bar):
        last = train(
            algorithm,
            env,
            eval_env,
            loop,
            directory,
            workers=workers,
            on_start=start if first else None,
            on_metrics=show if first else None,
            on_message=bar.say,
        )
    ended = first and (folder / "algorithm.pt").exists()
    normalizer = observation_normalizer(env)
    if ended and normalizer is not None:
        torch.save(normalizer.state_dict(), folder / "normalization.pt")
    if ended and config.plots:
        report(folder, algorithm, eval_env, config.env.eval_steps)
    return last


def can_resume(folder: Path) -> bool:
    """Whether a run was begun there; one that ended before its first checkpoint is forgotten."""
    if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        return True
    claim = folder / "metrics.csv"
    if claim.exists() and not claim.stat().st_size:
        claim.unlink()
    return False


def report(path: Path, algorithm, eval_env: EnvBase, eval_steps: int) -> None:
    """Learning curve and animation of the decentralized policy."""
    curve = plot_learning_curve(path)
    animation = record_gif(
        algorithm.execution_policy, eval_env, path / "decentralized.gif", max_steps=eval_steps
    )
    print(f"learning curve: {curve}\nanimation:      {animation}")


def continuation(config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The config of the run to resume, with what the command line changes, and the changed fields.

    Raises:
        ValueError: for a change of what makes it another run.
    """
    begun = RunDirectory(config.resume, resume=True).saved_config()
    fields = [override.partition("=")[0].lstrip("+") for override in overrides]
    for field in fields:
        if field.partition(".")[0] not in (*ANEW, *KEPT) and not field.startswith("algorithm."):
            raise ValueError(
                f"{config.resume}: {field!r} cannot change when a run is resumed; expected fields "
                f"of algorithm, or {', '.join((*ANEW, *KEPT))}."
            )
    new = [*ANEW, *(name for name in KEPT if name not in begun)]  # older runs lack some
    merged = OmegaConf.merge(begun, {name: config[name] for name in new})
    for field in fields:
        OmegaConf.update(merged, field, OmegaConf.select(config, field), force_add=True)
    return merged, fields


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    folder, changed = Path(HydraConfig.get().runtime.output_dir), []
    if config.resume is not None:
        folder = Path(config.resume)
        config, changed = continuation(config, HydraConfig.get().overrides.task)
    last = run(config, folder, changed=changed)
    if distributed.rank() == 0:
        print(results_table([folder]))
        print(f"run directory: {folder}")
    return last["eval_return"]


if __name__ == "__main__":
    with distributed.process_group(), tempfile.TemporaryDirectory() as unused:
        if distributed.rank():  # Hydra's folder; all write the first rank's
            sys.argv += [f"hydra.run.dir={unused}", f"hydra.sweep.dir={unused}"]
        main()
