"""The card of an export: all that a runtime without this package must know, as JSON."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from torchrl_agentmixer.export.actors import AgentActor

SCHEMA = "torchrl_agentmixer.decentralized_actors"
SCHEMA_VERSION = 1
_PACKAGES = ("torchrl_agentmixer", "torch", "torchrl", "tensordict", "onnx", "onnxscript")

_LEAVES = ("observation", "action_mask", "memory", "action", "logits", "next_memory")

_MASK_RULE = (
    "action_mask is true where an action is allowed. At least one must be; forbidden actions are "
    "never chosen."
)
_MEMORY_RULE = (
    "Feed `start` everywhere at the first step of every episode, and at each later step the "
    "next_memory of the step before it."
)
_NORMALIZATION_RULE = (
    "Feed observations as the environment writes them: (observation - loc) / scale, where given, "
    "and layer normalization are inside of the graph."
)


def agent_card(
    actor: AgentActor,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    files: dict[str, dict[str, Any]],
    prefix: str = "",
) -> dict[str, Any]:
    """One agent: names, keys, sizes and rules of its inputs and outputs.

    Args:
        actor (AgentActor): the agent.
        inputs (dict): an example of what its file reads, ``[B, ...]``.
        outputs (dict): what the file writes then.
        files (dict): :func:`file_entry` of its files, by format.
        prefix (str): what the agent's own names in the file begin with.
    """
    group = actor.group

    def described(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {
            name: {
                "key": _key(group.name, name.removeprefix(prefix)),
                "shape": ["batch", *tensor.shape[1:]],
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for name, tensor in tensors.items()
            if name.removeprefix(prefix) in _LEAVES
        }

    return {
        "name": actor.name,
        "group": group.name,
        "index": actor.index,
        "files": files,
        "inputs": described(inputs),
        "outputs": described(outputs),
        "normalization": {
            "rule": _NORMALIZATION_RULE,
            "loc": actor.loc.tolist() if actor.normalized else None,
            "scale": actor.scale.tolist() if actor.normalized else None,
            "layer_norm": actor.network.layer_norm,
        },
        "action": _action(actor),
        "memory": {
            "input": f"{prefix}memory",
            "output": f"{prefix}next_memory",
            "size": actor.memory_dim,
            "start": 0.0,
            "rule": _MEMORY_RULE,
        }
        if actor.memory_dim
        else None,
    }


def _action(actor: AgentActor) -> dict[str, Any]:
    if actor.group.discrete:
        masked = actor.group.masked
        return {
            "kind": "discrete",
            "n_actions": actor.group.action_dim,
            "rule": "argmax of logits, the first of equal ones",
            "mask_rule": _MASK_RULE if masked else None,
        }
    return {
        "kind": "continuous",
        "size": actor.group.action_dim,
        "low": actor.bounds[0].tolist() if actor.bounds else None,
        "high": actor.bounds[1].tolist() if actor.bounds else None,
        "rule": "mean, squashed by tanh into the bounds"
        if actor.squashed
        else "mean, clamped to the bounds where there are any",
    }


def _key(group: str, name: str) -> list[str]:
    """Where TorchRL's environments and policies have the entry."""
    return ["next", group, "memory"] if name == "next_memory" else [group, name]


def file_entry(path: Path) -> dict[str, Any]:
    """Name, size in bytes and check sum of a file."""
    content = path.read_bytes()
    return {
        "name": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions that the export was made with; packages that are missing are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
