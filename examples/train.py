"""Train one algorithm in one environment, with Hydra.

    python examples/train.py
    python examples/train.py env=grid_predator_prey algorithm=mappo seed=1
    python examples/train.py env=climbing algorithm=agent_mixer algorithm.head_gain=2 device=cpu
    python examples/train.py --multirun env=climbing algorithm=agent_mixer,mappo seed=0,1,2
    python examples/train.py --multirun hydra/launcher=joblib env=climbing algorithm=mat seed=0,1,2
    python examples/train.py env=grid_predator_prey logger=tensorboard early_stopping.patience=10
    python examples/train.py resume=runs/grid_predator_prey/mappo/seed_1_20260101_120000
    python examples/train.py env=climbing algorithm=mappo init_from=runs/climbing/mappo/first
    torchrun --nproc-per-node 2 examples/train.py env=grid_predator_prey algorithm=mappo

The fields are in ``examples/conf`` and :class:`torchrl_agentmixer.experiment.ExperimentConfig`.
The run directory contains the config, versions, metrics and evaluation episodes as CSV,
parameters, checkpoints, a learning curve and an animation. Sweeps: ``docs/sweeps.md``. Resume:
``docs/checkpoints.md``. A mistake ends with one line and exit code 2; HYDRA_FULL_ERROR=1 adds the
traceback. Loggers: ``docs/logging.md``. ``torchrun``: ``docs/how_to/scale_out.md``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import available_algorithms, default_options
from torchrl_agentmixer.config import ExperimentConfig, resumed_config
from torchrl_agentmixer.experiment import is_older, prepare
from torchrl_agentmixer.reporting import plot_learning_curve, results_table
from torchrl_agentmixer.training import Interrupted

TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # of mistakes in the configuration
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
        composed = hydra.compose("config", overrides=list(overrides))
    return from_hydra(composed, overrides)[0]


def from_hydra(
    composed: DictConfig, overrides: Iterable[str]
) -> tuple[ExperimentConfig, list[str]]:
    """The configuration, and the names of the fields that a resumed run changes."""
    values = OmegaConf.to_container(composed, resolve=True)
    if values["resume"] is None:
        return ExperimentConfig.from_dict(values), []
    changed = [override.partition("=")[0].lstrip("+") for override in overrides]
    return resumed_config(values, changed), changed


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config, changed = from_hydra(composed, hydra_config.overrides.task)
        if config.plots and find_spec("matplotlib") is None:
            raise ImportError('`plots` needs matplotlib: pip install "torchrl_agentmixer[plots]"')
        prepared = prepare(config, config.resume or folder, changed=changed)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        remove_empty(folder, Path(composed.runs))
        if hydra_config.mode is RunMode.MULTIRUN:  # other runs of the sweep continue
            raise ConfigCompositionException(one_line(error)) from error
        end(error)
    folder = prepared.output.directory.path
    try:
        row = prepared.train()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_code)
    if distributed.rank() == 0:
        curve, parameters = folder / "learning_curve.png", folder / "algorithm.pt"
        if config.plots and parameters.exists() and is_older(curve, parameters):
            print(f"learning curve: {plot_learning_curve(folder)}")
        print(f"{results_table([folder])}\nrun directory: {folder}")
    return row["eval_return"]


def one_line(error: Exception) -> str:
    """The message, without line breaks, and with the override that Hydra could not parse."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    override = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
    return " ".join(f"{override}{message}".split())


def end(error: Exception) -> NoReturn:
    """End with one line about a mistake in the configuration."""
    if TRACEBACK:
        raise error
    print(one_line(error), file=sys.stderr)
    sys.exit(2)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove the folder that Hydra made, and its parents in the root, where they are empty."""
    with suppress(OSError):  # not empty
        folder.rmdir()
        for parent in folder.parents:
            if root.absolute() not in parent.parents:
                break
            parent.rmdir()


if __name__ == "__main__":
    register_configs()
    with distributed.process_group(), tempfile.TemporaryDirectory() as unused:
        if distributed.rank():  # the first rank's Hydra folder is the run directory of all
            sys.argv += [f"hydra.run.dir={unused}", f"hydra.sweep.dir={unused}"]
        try:
            with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra raises errors as they are
                main()
        except (HydraException, OmegaConfBaseException) as error:
            end(error)
        except (FileExistsError, NotADirectoryError) as error:
            end(ValueError(f"hydra.run.dir: expected a directory, found a file: {error.filename}"))
