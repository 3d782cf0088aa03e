"""From a decentralized policy to a folder: files for each agent, and a card."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer.export.actors import Normalization, agent_actors
from torchrl_agentmixer.export.card import SCHEMA, SCHEMA_VERSION, versions
from torchrl_agentmixer.export.programs import Format, units_of, write_files
from torchrl_agentmixer.export.verification import verify
from torchrl_agentmixer.policies import AgentMixerPolicy

CARD = "card.json"


@torch.no_grad()
def export_decentralized(
    policy: TensorDictModuleBase,
    path: str | Path,
    *,
    formats: Sequence[Format] = ("onnx", "torch"),
    one_file: bool = False,
    normalization: Normalization | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the actors of a decentralized policy to a folder, each agent's to files of its own.

    ``<group>_<index>.onnx`` is an ONNX model, ``<group>_<index>.pt2`` a ``torch.export`` program.
    Both take batches of any size, in float32, and hold the parameters of their agent alone.
    ``card.json`` says what they read and write: names, sizes, normalization, bounds, masks and
    memory. Inputs are named ``observation`` and, where the agent has them, ``action_mask`` and
    ``memory``; outputs ``action`` and ``logits`` or ``next_memory``, see :class:`AgentActor`. The
    action is the mode, as the environment takes it.

    With ``one_file`` the folder holds ``team.onnx`` and ``team.pt2`` instead, for where all agents
    are in one place, such as a simulator: one call for the team, in which each agent still reads
    its own inputs alone. Names then begin with the agent's, such as ``agents_0_observation``.

    Every file's answers are compared with the policy's on random observations, in which the other
    agents' differ, before the folder gets its name. The folder is written whole or not at all.

    Args:
        policy (TensorDictModuleBase): an :class:`AgentMixerPolicy`, or the ``execution_policy`` of
            a method whose execution is decentralized.
        path (str or Path): the folder; its parent is made if it is missing.

    Keyword Args:
        formats (sequence of str): ``"onnx"``, which needs the extra ``export``, and ``"torch"``.
        one_file (bool): all agents in one file, instead of one file each.
        normalization (mapping, optional): by group, ``(loc, scale)`` of observations, each
            broadcastable to ``[n_agents, o]``, for a policy that was trained on
            ``(observation - loc) / scale``. It becomes part of the files.
        metadata (mapping, optional): what else the card should say, JSON, such as the
            environment's name.
        overwrite (bool): replace an earlier export.

    Returns:
        Path: of the card.

    Raises:
        ValueError: for a policy whose execution is not decentralized or that samples its actions,
            an unknown format or group, or files that do not answer as the policy does.
        ImportError: without ``onnx`` and ``onnxscript``, with the command that installs them.
        FileExistsError: if the path exists and ``overwrite`` is not set, or it is no export.

    Examples:
        >>> import tempfile
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> policy = AgentMixerPolicy.from_env(make_env("grid/predator_prey"))
        >>> card = export_decentralized(policy, tempfile.mkdtemp() + "/team", formats=["torch"])
        >>> sorted(file.name for file in card.parent.iterdir())
        ['agents_0.pt2', 'agents_1.pt2', 'card.json']
        >>> program = torch.export.load(card.parent / "agents_0.pt2").module()
        >>> program(observation=torch.zeros(7, 28))["action"].shape
        torch.Size([7])
    """
    path = Path(path)
    _check_formats(formats)
    _check_free(path, overwrite)
    if isinstance(policy, AgentMixerPolicy):
        policy = policy.decentralized()
    policy = deepcopy(policy).to("cpu", torch.float32).eval()
    actors = [actor.eval() for actor in agent_actors(policy, normalization)]
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        units = units_of(actors, one_file)
        cards = write_files(units, partial, formats)
        errors = verify(policy, actors, units, partial, formats)
        card = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "versions": versions(),
            "metadata": dict(metadata or {}),
            "largest_difference_from_the_policy": errors,
            "agents": cards,
        }
        (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
        _publish(partial, path, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path / CARD


def _check_formats(formats: Sequence[Format]) -> None:
    known = get_args(Format)
    if not formats or isinstance(formats, str) or set(formats) - set(known):
        raise ValueError(f"export: expected `formats` out of {known}, got {formats!r}.")
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if "onnx" in formats and missing:
        raise ImportError(
            f'ONNX files need {", ".join(missing)}: pip install "torchrl_agentmixer[export]"; or '
            'export `formats=["torch"]`.'
        )


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} exists and is left as it is: expected a new folder, or `overwrite=True`."
        )
    if path.is_symlink() or not (path / CARD).is_file() or _schema(path / CARD) != SCHEMA:
        raise FileExistsError(
            f"{path} is left as it is: expected an earlier export to overwrite, a folder with a "
            f"{CARD} of the schema {SCHEMA!r}."
        )


def _schema(card: Path) -> str | None:
    try:
        return json.loads(card.read_text()).get("schema")
    except (ValueError, AttributeError):
        return None


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    """Give the finished folder its name."""
    _check_free(path, overwrite)
    if not path.exists():
        os.rename(partial, path)
        return
    old = partial.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(partial, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)
