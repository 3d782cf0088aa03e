"""Metrics for TensorBoard, W&B, MLflow and Trackio, by TorchRL's loggers."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchrl.record.loggers import Logger, TensorboardLogger
from torchrl.record.loggers.mlflow import MLFlowLogger
from torchrl.record.loggers.trackio import TrackioLogger
from torchrl.record.loggers.wandb import WandbLogger

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.training.run_directory import flat_config

Opened = tuple[Logger, Any]  # and the identifier of its run


class MetricLoggers:
    """Loggers of the rows of ``metrics.csv``, over environment steps.

    A resumed run continues the backends' runs, whose identifiers are in ``loggers.json`` in the
    run directory.

    Args:
        backends (str or sequence of str, optional): of ``"mlflow"``, ``"tensorboard"``,
            ``"trackio"`` and ``"wandb"``; ``None`` for none.
        path (path): the run directory.

    Keyword Args:
        options (mapping, optional): keyword arguments of TorchRL's logger by backend.

    Raises:
        ValueError: for an unknown backend; the message names the nearest one.
        ImportError: for a missing package, with the command that installs it.

    Examples:
        >>> import tempfile
        >>> loggers = MetricLoggers("tensorboard", tempfile.mkdtemp())
        >>> loggers.start(0, {"seed": 0})
        >>> loggers.log({"frames": 10, "return": 1.5, "eval_return": None})
        >>> loggers.close()
    """

    def __init__(
        self,
        backends: str | Sequence[str] | None,
        path: str | Path,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.backends = [backends] if isinstance(backends, str) else list(backends or ())
        self.path = Path(path)
        self.options = options or {}
        self._loggers: dict[str, Logger] = {}
        for name in self.backends:
            if name not in _OPEN:
                raise ValueError(unknown_name("logger", name, _OPEN))
            if find_spec(name) is None:
                raise ImportError(f"logger {name!r} needs its package: pip install {name}")

    def start(self, frames: int, config: Mapping[str, Any]) -> None:
        """Start or continue the backends' runs after ``frames``, with their hyperparameters."""
        if not self.backends:
            return
        path = self.path / "loggers.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        name = known.setdefault("name", "-".join(self.path.absolute().parts[-3:]))
        for backend in self.backends:
            options = dict(self.options.get(backend) or {})
            is_new = backend not in known
            logger, known[backend] = _OPEN[backend](
                self.path, name, frames, known.get(backend), options
            )
            if is_new or backend in ("trackio", "wandb"):  # others reject a changed config
                logger.log_hparams({k: _scalar(v) for k, v in flat_config(config).items()})
            self._loggers[backend] = logger
        path.write_text(json.dumps(known, indent=2) + "\n")

    def log(self, row: Mapping[str, float | None]) -> None:
        """Log a row of metrics at its frames, without ``None``."""
        metrics = {k: v for k, v in row.items() if k != "frames" and v is not None}
        for logger in self._loggers.values():
            logger.log_metrics(metrics, step=int(row["frames"] or 0))

    def close(self) -> None:
        """Write everything, and end the backends' runs."""
        for backend, logger in self._loggers.items():
            logger.shutdown()
            if backend == "mlflow":  # TorchRL leaves the process's active run open
                import mlflow

                mlflow.end_run()
        self._loggers = {}


# TorchRL's `get_logger(state_dict=...)` cannot resume MLflow and Trackio, nor remove TensorBoard's
# points after the checkpoint.


class _Tensorboard(TensorboardLogger):
    """TensorBoard logger that removes points from ``purge_step`` on."""

    def __init__(self, *, log_dir: str, purge_step: int | None) -> None:
        self._purge_step = purge_step
        super().__init__(exp_name="tensorboard", log_dir=log_dir)

    def _create_experiment(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(f"{self.log_dir}/{self.exp_name}", purge_step=self._purge_step)


def _tensorboard(path: Path, name: str, frames: int, known: Any, options: dict) -> Opened:
    purge_step = None if known is None else frames + 1
    return _Tensorboard(log_dir=str(path), purge_step=purge_step, **options), True


def _wandb(path: Path, name: str, frames: int, known: Any, options: dict) -> Opened:
    run_id = known or uuid.uuid4().hex
    return WandbLogger(exp_name=name, save_dir=str(path), id=run_id, **options), run_id


def _mlflow(path: Path, name: str, frames: int, known: Any, options: dict) -> Opened:
    uri = options.setdefault("tracking_uri", f"sqlite:///{path.absolute() / 'mlflow.db'}")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if known is not None:
        os.environ["MLFLOW_RUN_ID"] = known  # `mlflow.start_run` continues this run
    logger = MLFlowLogger(**{"exp_name": "torchrl_agentmixer", **options})
    import mlflow

    mlflow.set_tag("mlflow.runName", name)
    return logger, logger.experiment.info.run_id


def _trackio(path: Path, name: str, frames: int, known: Any, options: dict) -> Opened:
    return TrackioLogger(exp_name=name, **{"project": "torchrl_agentmixer", **options}), name


_OPEN = {"mlflow": _mlflow, "tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}


def _scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
