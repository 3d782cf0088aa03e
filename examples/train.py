"""Train one algorithm in one environment, with Hydra.

    python examples/train.py
    python examples/train.py env=grid_predator_prey algorithm=mappo seed=1
    python examples/train.py env=climbing algorithm=agent_mixer algorithm.head_gain=2 device=cpu
    python examples/train.py --multirun env=climbing algorithm=agent_mixer,mappo seed=0,1,2
    python examples/train.py --multirun hydra/launcher=joblib env=climbing algorithm=mat seed=0,1,2
    python examples/train.py env=grid_predator_prey logger=tensorboard early_stopping.patience=10
    python examples/train.py resume=runs/grid_predator_prey/mappo/seed_1_20260101_120000
    torchrun --nproc-per-node 2 examples/train.py env=grid_predator_prey algorithm=mappo

The fields are in ``examples/conf`` and :class:`torchrl_agentmixer.experiment.ExperimentConfig`.
The run directory contains the config, versions, metrics and evaluation episodes as CSV,
parameters, checkpoints, a learning curve and an animation. Sweeps: ``docs/sweeps.md``. Resume:
``docs/checkpoints.md``. Loggers: ``docs/logging.md``. ``torchrun``: ``docs/how_to/scale_out.md``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import available_algorithms, default_options
from torchrl_agentmixer.config import ExperimentConfig, resumed_config
from torchrl_agentmixer.experiment import run
from torchrl_agentmixer.reporting import plot_learning_curve, results_table
from torchrl_agentmixer.training import Interrupted

CONF = Path(__file__).resolve().parent / "conf"


def register_configs() -> None:
    """Give Hydra the defaults of ``ExperimentConfig`` and of each algorithm."""
    store = ConfigStore.instance()
    defaults = {}
    for f in fields(ExperimentConfig):
        value = f.default if f.default_factory is MISSING else f.default_factory()
        if value is not MISSING:
            defaults[f.name] = asdict(value) if is_dataclass(value) else value
    store.store("experiment", defaults)
    for name in available_algorithms():
        store.store(name, {"name": name, **default_options(name)}, group="algorithm")


def compose(overrides: Iterable[str]) -> ExperimentConfig:
    """The configuration of ``python examples/train.py <overrides>``."""
    register_configs()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return from_hydra(hydra.compose("config", overrides=list(overrides)))


def from_hydra(config: DictConfig) -> ExperimentConfig:
    return ExperimentConfig.from_dict(OmegaConf.to_container(config, resolve=True))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> float | None:
    config, changed = from_hydra(composed), []
    folder = Path(config.resume or HydraConfig.get().runtime.output_dir)
    if config.resume is not None:
        overrides = HydraConfig.get().overrides.task
        changed = [override.partition("=")[0].lstrip("+") for override in overrides]
        config = resumed_config(config, changed)
    try:
        row = run(config, folder, changed=changed)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_code)
    if distributed.rank() == 0:
        if config.plots and (folder / "algorithm.pt").exists():
            print(f"learning curve: {plot_learning_curve(folder)}")
        print(f"{results_table([folder])}\nrun directory: {folder}")
    return row["eval_return"]


if __name__ == "__main__":
    register_configs()
    with distributed.process_group(), tempfile.TemporaryDirectory() as unused:
        if distributed.rank():  # the first rank's Hydra folder is the run directory of all
            sys.argv += [f"hydra.run.dir={unused}", f"hydra.sweep.dir={unused}"]
        main()
