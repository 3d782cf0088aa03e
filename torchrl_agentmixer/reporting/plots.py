"""Learning curves."""

from __future__ import annotations

from pathlib import Path

from torchrl_agentmixer.reporting.tables import read_metrics

_CURVES = {
    "return": "joint policy, training",
    "eval_joint_return": "joint policy, mode",
    "eval_return": "decentralized policy, mode",
}


def plot_learning_curve(run: str | Path, path: str | Path | None = None) -> Path:
    """Draw a run's returns, of the joint and of the decentralized policy, over frames.

    Args:
        run (path): a run directory.
        path (path, optional): of the PNG; ``learning_curve.png`` in the run directory by default.

    Returns:
        Path: of the PNG.

    Raises:
        FileNotFoundError: if the folder holds no metrics.
        ImportError: without matplotlib, with the command that installs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib: pip install "torchrl_agentmixer[plots]"'
        ) from error
    metrics = read_metrics(run)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label in _CURVES.items():
        points = [
            (frames, value)
            for frames, value in zip(metrics["frames"], metrics[name], strict=True)
            if value is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.6)
    axes.set(xlabel="frames", ylabel="team return of an episode")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path = Path(path) if path is not None else Path(run) / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path
