"""Verification that exported files compute the policy's outputs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer.export.actors import AgentActor
from torchrl_agentmixer.export.programs import SUFFIX, Format, Unit, inputs_of, random_inputs


def verify(
    policy: TensorDictModuleBase,
    actors: Sequence[AgentActor],
    units: Sequence[Unit],
    folder: Path,
    formats: Sequence[Format],
    batch: int = 256,
) -> dict[str, float]:
    """Largest difference between outputs of files and policy, by format.

    A ValueError for differences beyond rounding errors.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [random_inputs(actor, batch, generator) for actor in actors]
    team = policy(_team_data(actors, inputs, batch))
    errors: dict[str, float] = {}
    for name in dict.fromkeys(formats):
        if name == "onnx" and find_spec("onnxruntime") is None:
            continue
        errors[name] = 0.0
        rest = iter(inputs)
        for unit in units:
            file = folder / f"{unit.name}{SUFFIX[name]}"
            own = inputs_of(unit, list(itertools.islice(rest, len(unit.agents))))
            written = (_run_onnx if name == "onnx" else _run_torch)(file, own)
            for actor in unit.agents:
                for leaf, expected in _expected(actor, team).items():
                    got = written[f"{unit.prefix(actor)}{leaf}"]
                    error = (got - expected).abs().max().item()
                    errors[name] = max(errors[name], error)
                    if not torch.allclose(got, expected, atol=1e-5, rtol=1e-4):
                        raise ValueError(
                            f"export: expected {file.name} to write {leaf!r} of {actor.name} as "
                            f"the policy does, got a difference of {error:.2g}: the actor reads "
                            "more than its agent's own observation, or the format does not "
                            "support its operations."
                        )
    return errors


def _team_data(
    actors: Sequence[AgentActor], inputs: Sequence[dict[str, torch.Tensor]], batch: int
) -> TensorDict:
    """The policy's input, from the inputs of all agents."""
    rows: dict[tuple[str, str], list[torch.Tensor]] = {}
    for actor, own in zip(actors, inputs, strict=True):
        for leaf, value in own.items():
            value = actor.normalize(value) if leaf == "observation" else value
            rows.setdefault((actor.group.name, leaf), []).append(value)
    data = TensorDict({"is_init": torch.zeros(batch, 1, dtype=torch.bool)}, batch_size=[batch])
    for key, values in rows.items():
        data[key] = torch.stack(values, 1)
    return data


def _expected(actor: AgentActor, team: TensorDict) -> dict[str, torch.Tensor]:
    """The policy's outputs for an agent, by the names of its file."""
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
        expected["action"] = own(group.name, "action")
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
