"""PolicyModifier against a plain transcription; its keys and options."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import PolicyModifier

from .eq_5 import modifier_by_hand, scramble

BATCHES = pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 4)])


def group(name, n_agents, action_dim, discrete=True):
    return AgentGroup(name, n_agents, observation_dim=9, action_dim=action_dim, discrete=discrete)


# Groups, and the size of each group's features.
TEAMS = {
    "continuous": ([group("a", 3, 2, discrete=False)], {"a": 6}),
    "no features": ([group("a", 3, 5)], {}),
    "one agent": ([group("a", 1, 5)], {}),
    "fifty agents": ([group("a", 50, 3)], {"a": 2}),
    "discrete groups": ([group("a", 2, 5), group("b", 4, 3)], {"a": 3}),
    "both kinds": (
        [group("a", 2, 5), group("b", 4, 3, discrete=False), group("c", 1, 2)],
        {"a": 3, "c": 8},
    ),
}
DISCRETE = [name for name, (groups, _) in TEAMS.items() if all(g.discrete for g in groups)]


def build(team, **options):
    groups, features = TEAMS[team]
    options = {"channels": 8, **options}
    options = {"num_components": 0, **options}
    return scramble(PolicyModifier(groups, 7, features_dim=features, **options))


def inputs(team, batch):
    """State, and (params, features or None) per group."""
    torch.manual_seed(1)
    groups, features = TEAMS[team]

    def draw(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64)

    return draw(7), [
        (
            draw(g.n_agents, g.params_dim),
            draw(g.n_agents, features[g.name]) if g.name in features else None,
        )
        for g in groups
    ]


def modify(modifier, state, per_group):
    params, features = zip(*per_group, strict=True)
    return modifier.modify(state, params, features)


def as_tensordict(modifier, state, per_group):
    """The same under the modifier's keys."""
    batch = state.shape[:-1]
    data = TensorDict({}, batch)
    data[modifier.tensor_keys.state] = state
    for own, (params, features) in zip(modifier.groups, per_group, strict=True):
        keys = modifier.params_keys(own)
        for key, value in zip(keys, params.chunk(len(keys), -1), strict=True):
            data[key] = value
        if features is not None:
            data[modifier.key(own, "features")] = features
    return data


@BATCHES
@pytest.mark.parametrize("team", list(TEAMS))
def test_modifier_is_its_transcription(batch, team):
    options = {} if team in DISCRETE else {"scale_bound": 0.6, "scale_gain": 1.3}
    modifier = build(team, **options)
    state, per_group = inputs(team, batch)
    outputs = modify(modifier, state, per_group)
    torch.testing.assert_close(outputs, modifier_by_hand(modifier, state, per_group))
    for own, output in zip(modifier.groups, outputs, strict=True):
        assert output.shape == (*batch, own.n_agents, own.action_dim)


@BATCHES
@pytest.mark.parametrize("team", DISCRETE)
@pytest.mark.parametrize("num_components", [1, 4])
def test_components_and_their_weights(batch, team, num_components):
    modifier = build(team, num_components=num_components)
    state, per_group = inputs(team, batch)
    *perturbations, weights = modify(modifier, state, per_group)
    for own, perturbation in zip(modifier.groups, perturbations, strict=True):
        assert perturbation.shape == (*batch, own.n_agents, num_components, own.action_dim)
    assert weights.shape == (*batch, num_components)
    expected = modifier_by_hand(modifier, state, per_group)
    torch.testing.assert_close((*perturbations, weights), expected)


NESTED = {
    "state": ("info", "state"),
    "component_logits": ("team", "weights"),
    "logits": ("policy", "logits"),
    "loc": ("policy", "loc"),
    "scale": "sigma",
    "features": ("policy", "hidden"),
    "perturbation": ("joint", "x"),
    "joint_scale": ("joint", "scale"),
}


@BATCHES
@pytest.mark.parametrize("keys", [{}, NESTED], ids=["default", "nested"])
@pytest.mark.parametrize("team", list(TEAMS))
def test_entries_are_read_and_written_by_key(batch, keys, team):
    modifier = build(team, **({"num_components": 4} if team in DISCRETE else {}))
    modifier.set_keys(**keys)
    state, per_group = inputs(team, batch)
    expected = modify(modifier, state, per_group)
    data = as_tensordict(modifier, state, per_group)
    assert set(map(str, modifier.in_keys)) == set(map(str, data.keys(True, True)))
    written = modifier(data.copy())
    for key, value in zip(modifier.out_keys, expected, strict=True):
        torch.testing.assert_close(written[key], value)
    if keys:
        assert modifier.in_keys[0] == ("info", "state")
        assert ("a", "joint", "x") in modifier.out_keys or team not in DISCRETE


def test_unknown_keys_and_missing_entries_are_named():
    modifier = build("no features")
    with pytest.raises(ValueError, match=r"'logit'.*'logits'"):
        modifier.set_keys(logit="x")
    with pytest.raises(KeyError, match="logits"):
        modifier(TensorDict({"state": torch.zeros(5, 7), "a": TensorDict({}, [5])}, [5]))


def test_tensors_in_tensors_out():
    modifier = build("no features").float()
    (output,) = [modifier(state=torch.zeros(5, 7), a_logits=torch.zeros(5, 3, 5))]
    assert output.shape == (5, 3, 5)


def test_components_weights_read_every_agent_and_train():
    modifier = build("no features", num_components=4)
    state, ((params, _),) = inputs("no features", (2,))
    _, before = modify(modifier, state, [(params, None)])
    for agent in range(3):
        changed = params.clone()
        changed[:, agent, 0] += 1.0
        _, after = modify(modifier, state, [(changed, None)])
        assert ((before - after).abs().amax(-1) > 1e-9).all()
    before.sum().backward()
    for name, parameter in modifier.named_parameters():
        if not name.startswith("heads"):
            assert parameter.grad.abs().sum() > 0, name


def test_components_are_nearly_equally_likely_at_first():
    modifier = PolicyModifier(TEAMS["no features"][0], 7, num_components=4, head_gain=2.0)
    perturbation, weights = modify(modifier, torch.randn(50, 7), [(torch.randn(50, 3, 5), None)])
    assert (weights.softmax(-1) - 0.25).abs().max() < 0.05
    assert perturbation.std(-2).min() > 1e-3  # components differ


def test_agents_of_all_groups_mix():
    modifier = build("both kinds")
    state, per_group = inputs("both kinds", (2,))
    before = modify(modifier, state, per_group)
    for g in range(3):
        changed = [tuple(None if t is None else t.clone() for t in own) for own in per_group]
        changed[g][0][:, 0] += 1.0
        after = modify(modifier, state, changed)
        for one, other in zip(before, after, strict=True):
            assert ((one - other).abs().amax((0, 2)) > 1e-9).all()


def test_the_state_reaches_every_agent():
    modifier = build("both kinds")
    state, per_group = inputs("both kinds", (2,))
    before = modify(modifier, state, per_group)
    after = modify(modifier, state + 1, per_group)
    for one, other in zip(before, after, strict=True):
        assert ((one - other).abs().amax((0, 2)) > 1e-9).all()


def test_no_gradient_leaves_through_policy_parameters_and_features():
    modifier = build("both kinds")
    state, per_group = inputs("both kinds", (2,))
    state.requires_grad_()
    individual = [t.requires_grad_() for own in per_group for t in own if t is not None]
    sum(output.sum() for output in modify(modifier, state, per_group)).backward()
    assert all(value.grad is None for value in individual)
    assert state.grad.abs().sum() > 0
    for name, parameter in modifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_joint_scales_have_their_range():
    groups = [group("a", 2, 2, discrete=False)]
    modifier = PolicyModifier(groups, 4, num_components=0, head_gain=1e3, scale_bound=0.6)
    (scale,) = modify(modifier, torch.randn(100, 4), [(torch.randn(100, 2, 4), None)])
    assert (scale >= 0).all()
    assert (scale <= 0.6).all()
    with torch.no_grad():
        modifier.heads[0].weight.zero_()
    (scale,) = modify(modifier, torch.randn(1, 4), [(torch.randn(1, 2, 4), None)])
    torch.testing.assert_close(scale, torch.full_like(scale, 0.3))


def test_a_joint_scale_has_no_components():
    groups = [group("a", 2, 2, discrete=False)]
    with pytest.raises(ValueError, match=r"`num_components=0` for \['scale_bound'\].*got 16"):
        PolicyModifier(groups, 4, scale_bound=0.6)


def test_initialization():
    groups, features = TEAMS["both kinds"]
    modifier = PolicyModifier(groups, 7, features_dim=features, channels=16, head_gain=0.3)
    for name, layer in modifier.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert (layer.bias == 0).all()
            gain = 0.3 if name.startswith("heads") else math.sqrt(2)
            values = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(values, torch.full_like(values, gain), rtol=1e-4, atol=1e-4)
    assert "one_hot" not in modifier.state_dict()


@pytest.mark.parametrize(
    ("state", "params", "features", "message"),
    [
        ((5, 8), (5, 3, 4), (5, 3, 6), r"state.*\[\*B, 7\].*\(5, 8\)"),
        ((), (5, 3, 4), (5, 3, 6), r"state.*\[\*B, 7\].*\(\)"),
        ((5, 7), (5, 3, 5), (5, 3, 6), r"'a'.*\[\*B, 3, 4\].*\(5, 3, 5\)"),
        ((5, 7), (5, 2, 4), (5, 3, 6), r"'a'.*\[\*B, 3, 4\].*\(5, 2, 4\)"),
        ((5, 7), (5, 3, 4), (5, 4, 6), r"features of 'a'.*\[\*B, 3, 6\].*\(5, 4, 6\)"),
        ((5, 7), (6, 3, 4), (6, 3, 6), r"one batch shape.*\(5,\).*\(6,\)"),
    ],
)
def test_input_errors_name_what_came_and_what_was_expected(state, params, features, message):
    groups, sizes = TEAMS["continuous"]
    modifier = PolicyModifier(groups, 7, features_dim=sizes, channels=8)
    with pytest.raises(ValueError, match=message):
        modifier.modify(torch.zeros(state), [torch.zeros(params)], [torch.zeros(features)])


@pytest.mark.parametrize(
    ("team", "options", "message"),
    [
        ("continuous", {"temperature": 2.0}, "continuous.*'temperature'"),
        ("both kinds", {"num_components": 2}, "`num_components` 0 for groups of discrete and"),
        ("no features", {"scale_bound": 1.0}, "discrete.*'scale_bound'"),
        ("no features", {"num_components": -1}, "`num_components` >= 0, got -1"),
        ("no features", {"channels": 0}, "`channels` >= 1, got 0"),
        ("continuous", {"num_components": 0, "scale_gain": 0.0}, "`scale_gain` > 0, got 0.0"),
    ],
)
def test_options_belong_to_the_kind_of_actions(team, options, message):
    with pytest.raises(ValueError, match=message):
        PolicyModifier(TEAMS[team][0], 7, **options)


def test_construction_errors():
    with pytest.raises(ValueError, match="at least one group"):
        PolicyModifier([], 7)
    with pytest.raises(ValueError, match="`state_dim` >= 1, got 0"):
        PolicyModifier(TEAMS["continuous"][0], 0)
