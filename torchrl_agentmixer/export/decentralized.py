"""From a decentralized policy to a folder: files for each agent, and a card."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer.export.actors import AgentActor, Normalization, TeamActor, agent_actors
from torchrl_agentmixer.export.card import (
    SCHEMA,
    SCHEMA_VERSION,
    agent_card,
    file_entry,
    versions,
)
from torchrl_agentmixer.policies import AgentMixerPolicy

Format = Literal["onnx", "torch"]
CARD = "card.json"
_SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}


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
        units = _units(actors, one_file)
        cards = _write(units, partial, formats)
        errors = _verify(policy, actors, units, partial, formats)
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


_Unit = AgentActor | TeamActor
"""What a file holds."""


def _units(actors: Sequence[AgentActor], one_file: bool) -> list[_Unit]:
    return [TeamActor(actors).eval()] if one_file else list(actors)


def _members(unit: _Unit) -> list[AgentActor]:
    return [unit] if isinstance(unit, AgentActor) else unit.agents


def _write(units: Sequence[_Unit], folder: Path, formats: Sequence[Format]) -> list[dict[str, Any]]:
    """All files; a group's agents differ in numbers alone, and are traced once."""
    cards = []
    for _, alike in itertools.groupby(units, lambda unit: _members(unit)[0].group.name):
        team = list(alike)
        traced = deepcopy(team[0])
        inputs = _inputs_of(traced, [_random_inputs(actor, 3) for actor in _members(traced)])
        outputs = traced(**inputs)
        program = _trace(traced, inputs)
        model = _OnnxModel(program, inputs, outputs) if "onnx" in formats else None
        for unit in team:
            traced.load_state_dict(unit.state_dict())  # the program's tensors, too
            files: dict[str, dict[str, Any]] = {}
            for name in dict.fromkeys(formats):
                file = folder / f"{unit.name}{_SUFFIX[name]}"
                with _quiet():
                    if name == "onnx" and model is not None:
                        model.save(file)
                    else:
                        torch.export.save(program, file)
                files[name] = file_entry(file)
            for actor in _members(unit):
                prefix = _prefix(unit, actor)
                cards.append(agent_card(actor, inputs, outputs, files, prefix))
    return cards


def _prefix(unit: _Unit, actor: AgentActor) -> str:
    """What the agent's names in a file begin with."""
    return "" if unit is actor else TeamActor.prefix(actor)


def _inputs_of(unit: _Unit, inputs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A file's inputs out of those of its agents."""
    return {
        f"{_prefix(unit, actor)}{leaf}": value
        for actor, own in zip(_members(unit), inputs, strict=True)
        for leaf, value in own.items()
    }


def _random_inputs(
    actor: AgentActor, batch: int, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    group = actor.group
    inputs = {"observation": torch.randn(batch, group.observation_dim, generator=generator)}
    if group.masked:
        mask = torch.rand(batch, group.action_dim, generator=generator) < 0.5
        allowed = torch.randint(group.action_dim, (batch, 1), generator=generator)
        inputs["action_mask"] = mask.scatter(-1, allowed, True)
    if actor.memory_dim:
        inputs["memory"] = torch.rand(batch, actor.memory_dim, generator=generator) * 2 - 1
    return inputs


def _trace(unit: _Unit, inputs: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs}
    if isinstance(unit, TeamActor):
        unit.forward = _with_names(unit.forward, inputs)  # type: ignore[method-assign]
    with _quiet():
        program = torch.export.export(unit, (), inputs, dynamic_shapes=shapes)
    for node in program.graph.nodes:  # no paths of this machine in the files
        node.meta.pop("stack_trace", None)
    return program


def _with_names(
    forward: Callable[..., dict[str, torch.Tensor]], names: Iterable[str]
) -> Callable[..., dict[str, torch.Tensor]]:
    """``forward(**inputs)`` with parameters of these names, which ``torch.export`` asks for."""

    def named(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return forward(**inputs)

    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    named.__signature__ = signature  # type: ignore[attr-defined]
    return named


class _OnnxModel:
    """A program in ONNX, translated once; :meth:`save` puts the program's parameters in."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
    ) -> None:
        self._program = program
        self._options = {"input_names": list(inputs), "output_names": list(outputs)}
        for tensor in program.state_dict.values():
            tensor.normal_()  # equal ones would be merged, which other agents' need not be
        self._translated = self._translate()
        names = set(self._translated.model.graph.initializers)
        self._complete = set(program.state_dict) <= names

    def _translate(self) -> torch.onnx.ONNXProgram:
        with _quiet():
            program = torch.onnx.export(
                self._program,
                dynamo=True,
                verbose=False,
                **self._options,  # type: ignore[arg-type]
            )
        assert program is not None
        return program

    def save(self, file: Path) -> None:
        import onnx

        if self._complete:
            self._translated.apply_weights(self._program.state_dict)
        else:  # some became constants: every agent has its own model
            self._translated = self._translate()
        model = self._translated.model_proto
        _clean(model)
        onnx.checker.check_model(model)
        onnx.save_model(model, file)


def _clean(model: Any) -> None:
    """Call the batch's size so, and drop the exporter's notes, half of a small file."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for item in [model, graph, *graph.node, *graph.initializer, *values]:
        del item.metadata_props[:]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on what else could be installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _verify(
    policy: TensorDictModuleBase,
    actors: Sequence[AgentActor],
    units: Sequence[_Unit],
    folder: Path,
    formats: Sequence[Format],
    batch: int = 256,
) -> dict[str, float]:
    """Largest difference of the files' answers from the policy's, by format.

    Raises:
        ValueError: if it is larger than rounding explains.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [_random_inputs(actor, batch, generator) for actor in actors]
    team = policy(_team_data(actors, inputs, batch))
    errors: dict[str, float] = {}
    for name in dict.fromkeys(formats):
        if name == "onnx" and find_spec("onnxruntime") is None:
            continue
        errors[name] = 0.0
        rest = iter(inputs)
        for unit in units:
            file = folder / f"{unit.name}{_SUFFIX[name]}"
            own = _inputs_of(unit, list(itertools.islice(rest, len(_members(unit)))))
            written = (_run_onnx if name == "onnx" else _run_torch)(file, own)
            for actor in _members(unit):
                for leaf, expected in _expected(actor, team).items():
                    got = written[f"{_prefix(unit, actor)}{leaf}"]
                    error = (got - expected).abs().max().item()
                    errors[name] = max(errors[name], error)
                    if not torch.allclose(got, expected, atol=1e-5, rtol=1e-4):
                        raise ValueError(
                            f"export: expected {file.name} to write {actor.name}'s {leaf!r} as "
                            f"the policy does, got values up to {error:.2g} apart: the actor "
                            "reads more than its agent's own observation, or does what the "
                            "format cannot."
                        )
    return errors


def _team_data(
    actors: Sequence[AgentActor], inputs: Sequence[dict[str, torch.Tensor]], batch: int
) -> TensorDict:
    data = TensorDict({"is_init": torch.zeros(batch, 1, dtype=torch.bool)}, batch_size=[batch])
    for name in dict.fromkeys(actor.group.name for actor in actors):
        pairs = [pair for pair in zip(actors, inputs, strict=True) if pair[0].group.name == name]
        for leaf in pairs[0][1]:
            data[name, leaf] = torch.stack(
                [
                    actor.normalize(own[leaf]) if leaf == "observation" else own[leaf]
                    for actor, own in pairs
                ],
                1,
            )
    return data


def _expected(actor: AgentActor, team: TensorDict) -> dict[str, torch.Tensor]:
    """What the policy wrote for an agent, as its file should."""
    group = actor.group

    def own(*key: str) -> torch.Tensor:
        return team[key][:, actor.index]

    expected = {}
    if group.discrete:
        logits = own(group.name, "logits")
        if group.masked:
            logits = logits.masked_fill(
                ~own(group.name, "action_mask"), torch.finfo(logits.dtype).min
            )
        expected["logits"] = logits
    else:
        action = own(group.name, "action")
        expected["action"] = action if actor.bounds is None else action.clamp(*actor.bounds)
    if actor.memory_dim:
        expected["next_memory"] = own("next", group.name, "memory")
    return expected


def _run_torch(file: Path, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return torch.export.load(file).module()(**inputs)


def _run_onnx(file: Path, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}
