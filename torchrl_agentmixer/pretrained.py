"""Training that starts from another run: its parameters and observation normalization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms import Algorithm
from torchrl_agentmixer.config import ExperimentConfig, saved_config
from torchrl_agentmixer.envs import observation_normalizer
from torchrl_agentmixer.training import RunCheckpoints


def check_source(config: ExperimentConfig) -> None:
    """Raise a ``ValueError`` if training cannot start from the run ``config.init_from``."""
    saved = saved_config(str(config.init_from))
    for name, before, now in (
        ("algorithm.name", saved.algorithm["name"], config.algorithm["name"]),
        ("normalize_observations", saved.normalize_observations, config.normalize_observations),
    ):
        if before != now:
            raise ValueError(
                f"`init_from` {config.init_from}: expected `{name}` {before!r}, got {now!r}."
            )


def load_parameters(algorithm: Algorithm, source: str) -> None:
    """Load the parameters of a run, from ``algorithm.pt`` or its newest checkpoint."""
    path = Path(source) / "algorithm.pt"
    parameters = (
        torch.load(path, map_location="cpu", weights_only=True)
        if path.exists()
        else _checkpoint(source)["algorithm"]["parameters"]
    )
    expected, found = (
        {name: list(value.shape) for name, value in state.items() if hasattr(value, "shape")}
        for state in (algorithm.state_dict(), parameters)
    )
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"`init_from` {source}: expected the same sizes; {name} is {found.get(name)} "
                f"there and {expected.get(name)} here."
            )
    algorithm.load_state_dict(parameters)
    algorithm.on_progress(algorithm.progress)  # schedules begin anew


def load_normalization(env: EnvBase, source: str) -> None:
    """Load the statistics of the observation normalization of a run, which training updates."""
    path = Path(source) / "normalization.pt"
    normalizer: Any = observation_normalizer(env)
    try:
        if path.exists():
            normalizer.load_state_dict(torch.load(path, weights_only=True))
        else:
            statistics = TensorDict(_checkpoint(source)["collector"]["statistics"])
            normalizer.statistics.update_(statistics)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`init_from` {source}: expected statistics of observations of the same sizes: {error}"
        ) from error


def _checkpoint(source: str) -> dict[str, Any]:
    """The first rank's state in the newest checkpoint of a run."""
    return RunCheckpoints(Path(source) / "checkpoints").load_newest()[1]["ranks"][0]
