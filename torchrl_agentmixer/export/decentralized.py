"""Export of a decentralized policy to a folder: one file per agent and format, and a card."""

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

from torchrl_agentmixer.export.actors import Normalization, TeamActor, agent_actors
from torchrl_agentmixer.export.card import SCHEMA, SCHEMA_VERSION, versions
from torchrl_agentmixer.export.programs import Format, Unit, write_files
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
    """Export the actors of a decentralized policy to a folder.

    ``<group>_<index>.onnx`` is an ONNX model, ``<group>_<index>.pt2`` a ``torch.export`` program.
    Both have a dynamic batch size, float32, and the parameters of one agent. ``card.json``
    describes them: names, sizes, normalization, bounds, masks and memory. Inputs are
    ``observation`` and, if the agent has them, ``action_mask`` and ``memory``; outputs ``action``
    and ``logits`` or ``next_memory``, see :class:`AgentActor`. The action is the mode.

    With ``one_file`` the folder contains ``team.onnx`` and ``team.pt2``, which compute all agents'
    actions in one call, for example in a simulator. Each agent still reads its own inputs only,
    and names have the agent's as prefix, such as ``agents_0_observation``.

    The outputs of every file are compared with those of the policy on random observations, with
    independent ones per agent. The folder is created with all its files or not at all.

    Args:
        policy (TensorDictModuleBase): an :class:`AgentMixerPolicy`, or the ``execution_policy`` of
            a method with decentralized execution.
        path (str or Path): the folder; missing parents are created.

    Keyword Args:
        formats (sequence of str): ``"onnx"``, which needs the extra ``export``, and ``"torch"``.
        one_file (bool): one file for all agents, instead of one file per agent.
        normalization (mapping, optional): by group, ``(loc, scale)`` of observations, each
            broadcastable to ``[n_agents, o]``, for a policy that was trained on
            ``(observation - loc) / scale``. The files contain it.
        metadata (mapping, optional): additional JSON content of the card, such as the
            environment's name.
        overwrite (bool): replace an earlier export.

    Returns:
        Path: the card.

    Raises:
        ValueError: for a policy that is not decentralized or that samples, an unknown format or
            group, or files whose outputs differ from the policy's.
        ImportError: without ``onnx`` and ``onnxscript``, with the install command.
        FileExistsError: if the path exists, unless it is an export and ``overwrite`` is set.

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
        units: list[Unit] = [TeamActor(actors).eval()] if one_file else [*actors]
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
            f"{path} exists and was not changed: expected a new folder, or `overwrite=True`."
        )
    if path.is_symlink() or not (path / CARD).is_file() or _schema(path / CARD) != SCHEMA:
        raise FileExistsError(
            f"{path} was not changed: expected an earlier export to overwrite, a folder with a "
            f"{CARD} of the schema {SCHEMA!r}."
        )


def _schema(card: Path) -> str | None:
    try:
        return json.loads(card.read_text()).get("schema")
    except (ValueError, AttributeError):
        return None


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    """Rename the complete folder; restore an earlier one if that fails."""
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
