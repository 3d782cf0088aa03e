"""The card of an export: a JSON description for runtimes without this package."""

from __future__ import annotations

import hashlib
import platform
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
    "action_mask is true for valid actions; at least one must be valid. Masked actions are never "
    "chosen."
)
_MEMORY_RULE = (
    "At the first step of an episode, all entries are `start`; at later steps, the next_memory of "
    "the step before."
)
_NORMALIZATION_RULE = (
    "Observations are those of the environment: (observation - loc) / scale, clamped to "
    "[-bound, bound], if given, and layer normalization are part of the graph."
)


def agent_card(
    actor: AgentActor,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    files: dict[str, dict[str, Any]],
    prefix: str = "",
) -> dict[str, Any]:
    """Card of one agent: names, keys, sizes and rules of its inputs and outputs.

    ``inputs`` and ``outputs`` are examples ``[B, ...]`` of those of its file; ``prefix`` begins the
    agent's names in it.
    """
    group, memory = actor.group, None
    if actor.memory_dim:
        memory = {
            "input": f"{prefix}memory",
            "output": f"{prefix}next_memory",
            "size": actor.memory_dim,
            "start": 0.0,
            "rule": _MEMORY_RULE,
        }

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
            "bound": actor.normalization_bound,
            "layer_norm": actor.network.layer_norm,
        },
        "action": _action(actor),
        "memory": memory,
    }


def _action(actor: AgentActor) -> dict[str, Any]:
    group = actor.group
    if group.discrete:
        return {
            "kind": "discrete",
            "n_actions": group.action_dim,
            "rule": "argmax of logits, the first of equal ones",
            "mask_rule": _MASK_RULE if group.masked else None,
        }
    low, high = actor.bounds or (None, None)
    squashed, clamped = "mean, squashed by tanh into the bounds", "mean, clamped to bounds, if any"
    return {
        "kind": "continuous",
        "size": group.action_dim,
        "low": None if low is None else low.tolist(),
        "high": None if high is None else high.tolist(),
        "rule": squashed if actor.squashed else clamped,
    }


def _key(group: str, name: str) -> list[str]:
    """Key of an entry in TorchRL's environments and policies."""
    return ["next", group, "memory"] if name == "next_memory" else [group, name]


def file_entry(path: Path) -> dict[str, Any]:
    """Name, size in bytes and checksum of a file."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": path.name, "bytes": len(content), "sha256": digest}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
