"""Exported actors: outputs, cards, errors, and folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import MultiAgentMLP

from torchrl_agentmixer import AgentGroup, AgentMixerPolicy, export_decentralized
from torchrl_agentmixer.algorithms import (
    algorithm_class,
    available_algorithms,
    make_algorithm,
)
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.export import SCHEMA_VERSION, agent_actors, verification
from torchrl_agentmixer.export import decentralized as exporting
from torchrl_agentmixer.modules.body import MultiAgentBody
from torchrl_agentmixer.policies.product import actor_module, mode_policy, product_policy

LOW, HIGH = torch.tensor([[-1.0, 0.0, -3.0]] * 2), torch.tensor([[1.0, 0.5, 100.0]] * 2)
BOUNDS = {"low": LOW, "high": HIGH}
PICKERS = AgentGroup("pickers", 3, 7, 5, discrete=True, masked=True)
TALKERS = AgentGroup("talkers", 1, 4, 3, discrete=True)
WALKERS = AgentGroup("walkers", 2, 9, 3, discrete=False, **BOUNDS)
FLYERS = AgentGroup("flyers", 2, 3, 1, discrete=False)


def tanh_team():
    """All kinds of actors, in groups of different sizes."""
    groups = [PICKERS, TALKERS, WALKERS, FLYERS]
    options = [
        {"share_params": True},  # with a one-hot
        {"memory_dim": 6, "input_norm": False},
        {"memory_dim": 4, "hidden": (16, 8)},
        {"share_params": True, "agent_one_hot": False, "memory_dim": 5},
    ]
    return groups, options, "tanh_normal"


def normal_team():
    return [WALKERS, FLYERS], [{}, {"agent_one_hot": True}], "normal"


@pytest.fixture(scope="module", params=[tanh_team, normal_team])
def exported(request, tmp_path_factory):
    """A policy and its export."""
    torch.manual_seed(0)
    groups, options, distribution = request.param()
    actors = [actor_module(g, **kw) for g, kw in zip(groups, options, strict=True)]
    policy = mode_policy(groups, actors, distribution)
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.4)
    card = export_decentralized(policy, tmp_path_factory.mktemp("export") / "team")
    return groups, policy, card.parent


@pytest.fixture(scope="module")
def one_file(exported, tmp_path_factory):
    _, policy, _ = exported
    folder = tmp_path_factory.mktemp("one_file") / "team"
    return export_decentralized(policy, folder, one_file=True).parent


def random_team(groups, policy, batch: int) -> TensorDict:
    data = TensorDict({"is_init": torch.zeros(batch, 1, dtype=torch.bool)}, [batch])
    for group in groups:
        shape = (batch, group.n_agents)
        data[group.key("observation")] = 3 * torch.randn(*shape, group.observation_dim)
        if group.masked:
            mask = torch.rand(*shape, group.action_dim) < 0.4
            mask.scatter_(-1, torch.randint(group.action_dim, (*shape, 1)), True)
            data[group.key("action_mask")] = mask
        for key in policy.in_keys:
            if key == group.key("memory"):
                width = next(m.module.memory_dim for m in policy.module if key in m.in_keys)
                data[key] = torch.rand(*shape, width) * 2 - 1
    return data


def by_torch(folder, agent):
    program = torch.export.load(folder / agent["files"]["torch"]["name"]).module()
    return lambda inputs: program(**inputs)


def by_onnx(folder, agent):
    session = onnxruntime.InferenceSession(folder / agent["files"]["onnx"]["name"])

    def run(inputs):
        values = session.run(list(agent["outputs"]), {k: x.numpy() for k, x in inputs.items()})
        return dict(zip(agent["outputs"], map(torch.from_numpy, values), strict=True))

    return run


def agents_of(folder: Path) -> list[dict]:
    return json.loads((folder / "card.json").read_text())["agents"]


@pytest.mark.parametrize("batch", [1, 7, 10_000])
@pytest.mark.parametrize("runtime", [by_torch, by_onnx])
def test_outputs_equal_the_policy(exported, runtime, batch):
    groups, policy, folder = exported
    data = random_team(groups, policy, batch)
    with torch.no_grad():
        expected = policy(data.clone())
    by_name = {group.name: group for group in groups}
    for agent in agents_of(folder):
        group, index = by_name[agent["group"]], agent["index"]
        inputs = {k: data[tuple(x["key"])][:, index] for k, x in agent["inputs"].items()}
        got = runtime(folder, agent)(inputs)
        assert set(got) == set(agent["outputs"])
        action = expected[group.key("action")][:, index]
        assert got["action"].dtype == action.dtype
        if group.discrete:
            mask = inputs.get("action_mask", torch.ones_like(got["logits"], dtype=torch.bool))
            logits = expected[group.key("logits")][:, index]
            torch.testing.assert_close(got["logits"][mask], logits[mask], atol=1e-5, rtol=1e-5)
            assert mask.gather(-1, got["action"].unsqueeze(-1)).all()
            best = logits.masked_fill(~mask, -math.inf).topk(2).values
            clear = best[:, 0] - best[:, 1] > 1e-4
            assert clear.float().mean() > 0.9
            assert torch.equal(got["action"][clear], action[clear])
        else:
            if group.low is not None:
                action = action.clamp(group.low[index], group.high[index])
            torch.testing.assert_close(got["action"], action, atol=1e-5, rtol=1e-5)
        if "memory" in inputs:
            memory = expected["next", group.name, "memory"][:, index]
            torch.testing.assert_close(got["next_memory"], memory, atol=1e-5, rtol=1e-5)


def test_the_card_describes_the_files(exported):
    groups, _, folder = exported
    card = json.loads((folder / "card.json").read_text())
    assert card["schema_version"] == SCHEMA_VERSION
    assert card["versions"]["torch"] == torch.__version__
    assert set(card["largest_difference_from_the_policy"]) == {"onnx", "torch"}
    expected = [f"{g.name}_{i}" for g in groups for i in range(g.n_agents)]
    assert [agent["name"] for agent in card["agents"]] == expected
    listed = {f["name"]: f for agent in card["agents"] for f in agent["files"].values()}
    assert {*listed, "card.json"} == {file.name for file in folder.iterdir()}
    for name, file in listed.items():
        content = (folder / name).read_bytes()
        assert file["bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        for machine in (Path.cwd(), Path(sys.prefix), Path(torch.__file__).parent):
            assert str(machine).encode() not in content
    for agent in card["agents"]:
        session = onnxruntime.InferenceSession(folder / agent["files"]["onnx"]["name"])
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [value.name for value in values] == list(agent[kind])
            for value in values:
                assert value.shape == agent[kind][value.name]["shape"]
        assert (agent["memory"] is None) == ("memory" not in agent["inputs"])
        if agent["memory"]:
            assert agent["memory"]["size"] == agent["inputs"]["memory"]["shape"][1]
    walker = next(agent for agent in card["agents"] if agent["group"] == "walkers")
    assert walker["action"]["low"] == LOW[0].tolist()
    assert walker["action"]["high"] == HIGH[0].tolist()


@pytest.mark.parametrize("batch", [1, 500])
@pytest.mark.parametrize("runtime", [by_torch, by_onnx])
def test_one_file_equals_the_files_of_agents(exported, one_file, runtime, batch):
    groups, policy, folder = exported
    assert {file.name for file in one_file.iterdir()} == {"team.onnx", "team.pt2", "card.json"}
    data = random_team(groups, policy, batch)
    team = agents_of(one_file)

    def inputs_of(agent):
        return {k: data[tuple(x["key"])][:, agent["index"]] for k, x in agent["inputs"].items()}

    joined = {k: x for agent in team for k, x in inputs_of(agent).items()}
    outputs = {k: x for agent in team for k, x in agent["outputs"].items()}
    got = runtime(one_file, {"files": team[0]["files"], "outputs": outputs})(joined)
    assert set(got) == set(outputs)
    for alone, together in zip(agents_of(folder), team, strict=True):
        assert [x["name"] for x in together["files"].values()] == ["team.onnx", "team.pt2"]
        expected = runtime(folder, alone)(inputs_of(alone))
        assert len(together["outputs"]) == len(expected)
        for leaf, value in expected.items():
            torch.testing.assert_close(got[f"{alone['name']}_{leaf}"], value, atol=1e-5, rtol=1e-5)
        for part in ("key", "shape", "dtype"):
            assert [x[part] for x in together["inputs"].values()] == [
                x[part] for x in alone["inputs"].values()
            ]
        if alone["memory"]:
            assert together["memory"]["input"] == f"{alone['name']}_memory"
            assert together["memory"]["output"] == f"{alone['name']}_next_memory"


def test_names_in_one_file(tmp_path):
    """With a group named like an agent, and with more than ten agents."""
    groups = [AgentGroup(n, k, 4, 3, discrete=True) for n, k in [("a", 11), ("a_0", 1)]]
    policy = mode_policy(groups, [actor_module(group) for group in groups])
    card = export_decentralized(policy, tmp_path / "team", formats=["torch"], one_file=True)
    for agent in agents_of(card.parent):
        assert list(agent["inputs"]) == [f"{agent['name']}_observation"]
        assert [x["key"] for x in agent["inputs"].values()] == [[agent["group"], "observation"]]
        assert list(agent["outputs"]) == [f"{agent['name']}_{x}" for x in ("action", "logits")]


def test_agents_with_constant_parameters(tmp_path, randomized):
    """The first agent's parameters are constant; the second's are not."""
    group = AgentGroup("agents", 2, 4, 4, discrete=True)
    policy = mode_policy([group], [randomized(actor_module(group, hidden=(4,)))])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[0] = 0.5
    card = export_decentralized(policy, tmp_path / "team")
    data = TensorDict({"agents": {"observation": torch.randn(9, 2, 4)}}, [9])
    expected = policy(data)["agents", "logits"]
    for agent in agents_of(card.parent):
        inputs = {"observation": data["agents", "observation"][:, agent["index"]]}
        got = by_onnx(card.parent, agent)(inputs)["logits"]
        torch.testing.assert_close(got, expected[:, agent["index"]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", available_algorithms())
def test_every_method_with_decentralized_execution(tmp_path, name):
    continuous = not algorithm_class(name).discrete
    env = make_env("vmas/predator_prey" if continuous else "grid/predator_prey", num_envs=2)
    policy = make_algorithm(name, env, 100).execution_policy
    if algorithm_class(name).decentralized_execution:
        card = export_decentralized(policy, tmp_path / "team", formats=["torch"])
        names = [f"agents_{i}" for i in range(len(env.group_map["agents"]))]
        assert [agent["name"] for agent in agents_of(card.parent)] == names
    else:
        with pytest.raises(ValueError, match="expected a decentralized, deterministic policy"):
            export_decentralized(policy, tmp_path / "team", formats=["torch"])
        assert list(tmp_path.iterdir()) == []


def test_files_contain_one_agents_parameters_only(tmp_path):
    policy = AgentMixerPolicy.from_env(make_env("grid/predator_prey"))
    card = export_decentralized(policy, tmp_path / "team", formats=["torch"])
    held = torch.export.load(card.parent / "agents_0.pt2").state_dict
    body, head = policy.actors[0].module.body, policy.actors[0].module.head
    numbers = sum(p.numel() for net in (body, head) for p in net.parameters())
    assert sum(x.numel() for x in held.values()) == numbers // 2  # of two agents


@pytest.mark.parametrize("groups", [1, 2])
def test_autoregressive_policies(tmp_path, groups):
    name = "mamujoco/humanoid_9_8" if groups == 2 else "matrix/climbing"
    policy = make_algorithm("armappo", make_env(name), 100).execution_policy
    with pytest.raises(ValueError, match=r"expected a decentralized, deterministic policy.* got "):
        export_decentralized(policy, tmp_path / "team")


def test_sampling_policies(tmp_path):
    policy = product_policy([TALKERS], [actor_module(TALKERS)])
    with pytest.raises(ValueError, match="expected a decentralized, deterministic policy"):
        export_decentralized(policy, tmp_path / "team")


def test_policies_that_read_the_state(tmp_path):
    network = nn.Linear(2, 3)
    actor = TensorDictModule(
        lambda x, s: network(x) + s.unsqueeze(-2),
        in_keys=[TALKERS.key("observation"), "state"],
        out_keys=TALKERS.param_keys,
    )
    with pytest.raises(ValueError, match=r"reads .*'state'\] and writes"):
        export_decentralized(mode_policy([TALKERS], [actor]), tmp_path / "team")


def foreign(network, group=WALKERS):
    modules = [
        TensorDictModule(
            network, in_keys=[group.key("observation")], out_keys=[group.key("params")]
        ),
        TensorDictModule(
            NormalParamExtractor(), in_keys=[group.key("params")], out_keys=group.param_keys
        ),
    ]
    return TensorDictSequential(*modules)


def torchrl_mlp(**kwargs):
    options = {"centralized": False, "share_params": False, "depth": 1, "num_cells": 8}
    return MultiAgentMLP(9, 6, 2, **{**options, **kwargs})


@pytest.mark.parametrize("share_params", [True, False])
def test_other_actors(tmp_path, share_params):
    actor = foreign(torchrl_mlp(share_params=share_params))
    other = actor_module(FLYERS)
    policy = mode_policy([WALKERS, FLYERS], [TensorDictSequential(actor, other)], "tanh_normal")
    card = export_decentralized(policy, tmp_path / "team", formats=["torch"])
    errors = json.loads(card.read_text())["largest_difference_from_the_policy"]
    assert errors["torch"] < 1e-5


@pytest.mark.parametrize("share_params", [True, False])
def test_layer_norm_of_memory_per_agent(tmp_path, randomized, share_params):
    """Each file contains its agent's copy; the export compares the outputs."""
    actor = actor_module(PICKERS, memory_dim=4, share_params=share_params)
    actor.module.memory_norm = MultiAgentBody(3, 4, hidden=(), share_params=share_params)
    policy = randomized(mode_policy([PICKERS], [actor]))
    card = export_decentralized(policy, tmp_path / "team", formats=["torch"])
    errors = json.loads(card.read_text())["largest_difference_from_the_policy"]
    assert errors["torch"] < 1e-5


class Gated(nn.Module):
    """A network with parameters that the exporter folds into constants."""

    def __init__(self):
        super().__init__()
        self.gate, self.linear = nn.Parameter(torch.randn(9)), nn.Linear(9, 6)

    def forward(self, observation):
        return self.linear(observation * self.gate.sigmoid())


def test_folded_parameters(tmp_path):
    policy = mode_policy([WALKERS], [foreign(Gated())])
    assert export_decentralized(policy, tmp_path / "team", formats=["onnx"]).exists()


class OtherAgents(nn.Module):
    """A network whose outputs depend on other agents' observations."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 6)

    def forward(self, observation):
        return self.linear(observation + observation.mean(-2, keepdim=True))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: torchrl_mlp(centralized=True), "centralized=True"),
        (OtherAgents, "more than its agent's own observation"),
    ],
)
def test_actors_that_read_other_agents(tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        export_decentralized(
            mode_policy([WALKERS], [foreign(network())]), tmp_path / "team", formats=["torch"]
        )
    assert list(tmp_path.iterdir()) == []


def test_normalization_in_the_files(tmp_path, randomized):
    actor = randomized(actor_module(WALKERS, input_norm=False))
    policy = mode_policy([WALKERS], [actor])
    loc, scale = torch.randn(2, 9), torch.rand(2, 9) + 0.5
    card = export_decentralized(
        policy, tmp_path / "team", formats=["torch"], normalization={"walkers": (loc, scale)}
    )
    raw = torch.randn(5, 2, 9)
    data = TensorDict({"walkers": {"observation": (raw - loc) / scale}}, [5])
    expected = policy(data)["walkers", "action"].clamp(LOW, HIGH)
    for agent in agents_of(card.parent):
        got = by_torch(card.parent, agent)({"observation": raw[:, agent["index"]]})["action"]
        torch.testing.assert_close(got, expected[:, agent["index"]])
        torch.testing.assert_close(torch.tensor(agent["normalization"]["loc"]), loc[agent["index"]])


def test_the_policy_is_unchanged(tmp_path):
    policy = mode_policy([PICKERS], [actor_module(PICKERS)]).double().train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    exported = agent_actors(policy)
    export_decentralized(policy, tmp_path / "team", formats=["torch"])
    assert policy.training
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter in exported[0].parameters():
        parameter.data.zero_()
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_saturated_actions_equal_the_policy_and_are_inside_the_bounds():
    """TorchRL excludes the bounds, where the density of squashed actions is infinite."""
    policy = mode_policy([WALKERS], [actor_module(WALKERS)], "tanh_normal")
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=30.0)
    data = random_team([WALKERS], policy, 100)
    with torch.no_grad():
        expected = policy(data.clone())["walkers", "action"]
        for actor in agent_actors(policy):
            observation = data["walkers", "observation"][:, actor.index]
            action = actor(observation)["action"]
            torch.testing.assert_close(action, expected[:, actor.index], atol=1e-7, rtol=1e-7)
            low, high = LOW[actor.index], HIGH[actor.index]
            assert ((action > low) & (action < high)).all()
            assert (action > low + 0.999999 * (high - low)).any()  # close to the bound


class TestFolder:
    """A folder is created with all its files or not at all."""

    policy = mode_policy([TALKERS], [actor_module(TALKERS)])

    def export(self, path, **kwargs):
        return export_decentralized(self.policy, path, **{"formats": ["torch"], **kwargs})

    def test_a_failure_writes_nothing(self, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            Path(args[1]).write_bytes(b"half")
            raise OSError("disk is full")

        monkeypatch.setattr(torch.export, "save", full)
        with pytest.raises(OSError, match="disk is full"):
            self.export(tmp_path / "team")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_keeps_the_earlier_export(self, tmp_path, monkeypatch):
        card = self.export(tmp_path / "team", metadata={"run": 1})

        def wrong(*args, **kwargs):
            raise ValueError("wrong answers")

        monkeypatch.setattr(exporting, "verify", wrong)
        with pytest.raises(ValueError, match="wrong answers"):
            self.export(tmp_path / "team", overwrite=True)
        assert json.loads(card.read_text())["metadata"] == {"run": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["team"]

    def test_a_failed_replacement_is_undone(self, tmp_path, monkeypatch):
        card = self.export(tmp_path / "team", metadata={"run": 1})
        rename = os.rename

        def no_new_one(source, target):
            if str(source).endswith(".partial"):
                raise OSError("no")
            rename(source, target)

        monkeypatch.setattr(os, "rename", no_new_one)
        with pytest.raises(OSError, match="no"):
            self.export(tmp_path / "team", overwrite=True)
        assert json.loads(card.read_text())["metadata"] == {"run": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["team"]

    def test_an_earlier_export_is_kept_or_replaced(self, tmp_path):
        card = self.export(tmp_path / "deep" / "team", metadata={"run": 1})
        (card.parent / "old.pt2").touch()
        with pytest.raises(FileExistsError, match="or `overwrite=True`"):
            self.export(card.parent, metadata={"run": 2})
        assert json.loads(card.read_text())["metadata"] == {"run": 1}
        self.export(card.parent, metadata={"run": 2}, overwrite=True)
        assert json.loads(card.read_text())["metadata"] == {"run": 2}
        assert {file.name for file in card.parent.iterdir()} == {"card.json", "talkers_0.pt2"}
        assert [file.name for file in card.parent.parent.iterdir()] == ["team"]

    @pytest.mark.parametrize("card", [None, "[]", "{", '{"schema": "other"}'])
    def test_other_folders_are_never_replaced(self, tmp_path, card):
        (tmp_path / "thesis.txt").write_text("all of it")
        if card is not None:
            (tmp_path / "card.json").write_text(card)
        with pytest.raises(FileExistsError, match="expected an earlier export"):
            self.export(tmp_path, overwrite=True)
        assert (tmp_path / "thesis.txt").read_text() == "all of it"

    def test_a_folder_that_is_created_meanwhile_is_kept(self, tmp_path, monkeypatch):
        verify = exporting.verify

        def slowly(*args):
            (tmp_path / "team").mkdir()
            (tmp_path / "team" / "theirs").touch()
            return verify(*args)

        monkeypatch.setattr(exporting, "verify", slowly)
        with pytest.raises(FileExistsError):
            self.export(tmp_path / "team")
        assert [file.name for file in (tmp_path / "team").iterdir()] == ["theirs"]

    @pytest.mark.parametrize("formats", [[], ["tflite"], "onnx"])
    def test_unknown_formats(self, tmp_path, formats):
        with pytest.raises(ValueError, match="expected `formats` out of"):
            self.export(tmp_path / "team", formats=formats)

    def test_missing_packages(self, tmp_path, monkeypatch):
        monkeypatch.setattr(exporting, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'pip install "torchrl_agentmixer\[export\]"'):
            self.export(tmp_path / "team", formats=["torch", "onnx"])

    def test_unknown_groups(self, tmp_path):
        with pytest.raises(ValueError, match=r"'walkers'.* Available: talkers"):
            self.export(tmp_path / "team", normalization={"walkers": (0.0, 1.0)})


def test_files_with_other_outputs(tmp_path, monkeypatch):
    def other(file, inputs):
        answers = verification._run_torch(file.with_suffix(".pt2"), inputs)
        return {name: value + 0.01 for name, value in answers.items()}

    monkeypatch.setattr(verification, "_run_onnx", other)
    policy = mode_policy([TALKERS], [actor_module(TALKERS)])
    with pytest.raises(
        ValueError, match=r"talkers_0\.onnx to write 'logits' of talkers_0 as the policy"
    ):
        export_decentralized(policy, tmp_path / "team")
    assert list(tmp_path.iterdir()) == []


def test_torch_programs_do_not_need_onnx(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    policy = mode_policy([TALKERS], [actor_module(TALKERS)])
    assert export_decentralized(policy, tmp_path / "team", formats=["torch"]).exists()


def test_masks_with_one_valid_action(exported):
    """The only valid action is taken for all observations."""
    _, _, folder = exported
    for agent in agents_of(folder):
        if "action_mask" not in agent["inputs"]:
            continue
        size = agent["inputs"]["observation"]["shape"][1]
        valid = torch.arange(5).repeat(20)
        inputs = {
            "observation": 1e3 * torch.randn(100, size),
            "action_mask": torch.eye(5, dtype=torch.bool)[valid],
        }
        for runtime in (by_torch, by_onnx):
            np.testing.assert_array_equal(runtime(folder, agent)(inputs)["action"], valid)
