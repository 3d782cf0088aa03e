"""Actors as programs: traced once for agents that are alike, written with each one's parameters."""

from __future__ import annotations

import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch

from torchrl_agentmixer.export.actors import AgentActor, TeamActor
from torchrl_agentmixer.export.card import agent_card, file_entry

Format = Literal["onnx", "torch"]
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
Unit = AgentActor | TeamActor
"""What a file holds."""


def units_of(actors: Sequence[AgentActor], one_file: bool) -> list[Unit]:
    """What each of the files will hold: one agent, or the team."""
    return [TeamActor(actors).eval()] if one_file else list(actors)


def members(unit: Unit) -> list[AgentActor]:
    """The agents of a file."""
    return [unit] if isinstance(unit, AgentActor) else unit.agents


def write_files(
    units: Sequence[Unit], folder: Path, formats: Sequence[Format]
) -> list[dict[str, Any]]:
    """All files; a group's agents differ in numbers alone, and are traced once."""
    cards = []
    for _, alike in itertools.groupby(units, lambda unit: members(unit)[0].group.name):
        team = list(alike)
        traced = deepcopy(team[0])
        inputs = inputs_of(traced, [random_inputs(actor, 3) for actor in members(traced)])
        outputs = traced(**inputs)
        program = _trace(traced, inputs)
        model = _OnnxModel(program, inputs, outputs) if "onnx" in formats else None
        for unit in team:
            traced.load_state_dict(unit.state_dict())  # the program's tensors, too
            files: dict[str, dict[str, Any]] = {}
            for name in dict.fromkeys(formats):
                file = folder / f"{unit.name}{SUFFIX[name]}"
                with _quiet():
                    if name == "onnx" and model is not None:
                        model.save(file)
                    else:
                        torch.export.save(program, file)
                files[name] = file_entry(file)
            for actor in members(unit):
                cards.append(agent_card(actor, inputs, outputs, files, prefix_of(unit, actor)))
    return cards


def prefix_of(unit: Unit, actor: AgentActor) -> str:
    """What the agent's names in a file begin with."""
    return "" if unit is actor else TeamActor.prefix(actor)


def inputs_of(unit: Unit, inputs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A file's inputs out of those of its agents."""
    return {
        f"{prefix_of(unit, actor)}{leaf}": value
        for actor, own in zip(members(unit), inputs, strict=True)
        for leaf, value in own.items()
    }


def random_inputs(
    actor: AgentActor, batch: int, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """An agent's inputs by name ``[batch, ...]``; each mask allows an action."""
    group = actor.group
    inputs = {"observation": torch.randn(batch, group.observation_dim, generator=generator)}
    if group.masked:
        mask = torch.rand(batch, group.action_dim, generator=generator) < 0.5
        allowed = torch.randint(group.action_dim, (batch, 1), generator=generator)
        inputs["action_mask"] = mask.scatter(-1, allowed, True)
    if actor.memory_dim:
        inputs["memory"] = torch.rand(batch, actor.memory_dim, generator=generator) * 2 - 1
    return inputs


def _trace(unit: Unit, inputs: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
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
