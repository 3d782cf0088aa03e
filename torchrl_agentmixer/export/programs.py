"""Exported programs: traced once per group, written with the parameters of each agent."""

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
Unit = AgentActor | TeamActor  # content of a file


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@_quiet()
def write_files(
    units: Sequence[Unit], folder: Path, formats: Sequence[Format]
) -> list[dict[str, Any]]:
    """Write all files; return the agents' cards. A group's agents differ in parameters only."""
    cards = []
    for _, group in itertools.groupby(units, lambda unit: unit.agents[0].group.name):
        alike = list(group)
        traced = deepcopy(alike[0])
        inputs = inputs_of(traced, [random_inputs(actor, 3) for actor in traced.agents])
        outputs = traced(**inputs)
        program = _trace(traced, inputs)
        model = _OnnxModel(program, inputs, outputs) if "onnx" in formats else None
        for unit in alike:
            traced.load_state_dict(unit.state_dict())  # shared with the program
            files: dict[str, dict[str, Any]] = {}
            for name in dict.fromkeys(formats):
                file = folder / f"{unit.name}{SUFFIX[name]}"
                if name == "onnx" and model is not None:
                    model.save(file)
                else:
                    torch.export.save(program, file)
                files[name] = file_entry(file)
            for actor in unit.agents:
                cards.append(agent_card(actor, inputs, outputs, files, unit.prefix(actor)))
    return cards


def inputs_of(unit: Unit, inputs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Inputs of a file, from the inputs of its agents."""
    return {
        f"{unit.prefix(actor)}{leaf}": value
        for actor, own in zip(unit.agents, inputs, strict=True)
        for leaf, value in own.items()
    }


def random_inputs(
    actor: AgentActor, batch: int, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """Random inputs of an agent by name, ``[batch, ...]``; masks have at least one valid action."""
    group = actor.group
    inputs = {"observation": torch.randn(batch, *group.observation_shape, generator=generator)}
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
    program = torch.export.export(unit, (), inputs, dynamic_shapes=shapes)
    for node in program.graph.nodes:  # stack traces contain local paths
        node.meta.pop("stack_trace", None)
    return program


def _with_names(
    forward: Callable[..., dict[str, torch.Tensor]], names: Iterable[str]
) -> Callable[..., dict[str, torch.Tensor]]:
    """Give ``forward(**inputs)`` a signature with these names, as ``torch.export`` requires."""

    def named(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return forward(**inputs)

    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    named.__signature__ = signature  # type: ignore[attr-defined]
    return named


class _OnnxModel:
    """ONNX model of a program, translated once; :meth:`save` inserts the current parameters."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
    ) -> None:
        self._program = program
        self._options = {"input_names": list(inputs), "output_names": list(outputs)}
        for tensor in program.state_dict.values():
            tensor.normal_()  # the translation would merge equal tensors
        self._translated = self._translate()
        names = set(self._translated.model.graph.initializers)
        self._complete = set(program.state_dict) <= names

    def _translate(self) -> torch.onnx.ONNXProgram:
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
        else:  # some parameters are folded into constants
            self._translated = self._translate()
        model = self._translated.model_proto
        _clean(model)
        onnx.checker.check_model(model)
        onnx.save_model(model, file)


def _clean(model: Any) -> None:
    """Name the batch dimension, and remove metadata, half of a small file."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for item in [model, graph, *graph.node, *graph.initializer, *values]:
        del item.metadata_props[:]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "batch"
