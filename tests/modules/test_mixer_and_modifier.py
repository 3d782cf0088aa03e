"""MixerBlock and PolicyModifier against a plain transcription of Eq. 5."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_agentmixer.modules import MixerBlock, ModifierGroup, PolicyModifier

BATCHES = pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 4)])


# -- transcription of Eq. 5 ----------------------------------------------------------------------


def layer_norm(x, weight, bias):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def linear(x, weight, bias):
    return torch.einsum("...i,oi->...o", x, weight) + bias


def encoder(x, p, name):
    """Linear, ReLU, LayerNorm."""
    x = linear(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"])
    return layer_norm(x.clamp(min=0), p[f"{name}.2.weight"], p[f"{name}.2.bias"])


def mixing(x, p, name):
    """Linear, ReLU, LayerNorm, Linear."""
    return linear(encoder(x, p, name), p[f"{name}.3.weight"], p[f"{name}.3.bias"])


def eq_5(tokens, p):
    """``H + W2 s(W1 LN(H))`` over agents, then over channels."""
    normed = layer_norm(tokens, p["agent_norm.weight"], p["agent_norm.bias"])
    tokens = tokens + mixing(normed.transpose(-1, -2), p, "agent_mixing").transpose(-1, -2)
    normed = layer_norm(tokens, p["channel_norm.weight"], p["channel_norm.bias"])
    return tokens + mixing(normed, p, "channel_mixing")


def modifier_by_hand(modifier, state, per_group, seed=None):
    """Section 3 of the algorithm, agent by agent; ``per_group``: (params, features or None)."""
    p = dict(modifier.named_parameters())
    n_agents = sum(group.n_agents for group in modifier.groups)
    context = encoder(state if seed is None else torch.cat([state, seed], -1), p, "state_encoder")
    tokens = []
    for g, (params, features) in enumerate(per_group):
        for i in range(params.shape[-2]):
            one_hot = torch.zeros(*state.shape[:-1], n_agents, dtype=state.dtype)
            one_hot[..., len(tokens)] = 1
            parts = [context, encoder(params[..., i, :], p, f"params_encoders.{g}"), one_hot]
            if features is not None:
                parts.append(features[..., i, :])
            tokens.append(encoder(torch.cat(parts, -1), p, f"token_encoders.{g}"))
    mixed = torch.stack(tokens, -2)
    for index in range(len(modifier.blocks)):
        prefix = f"blocks.{index}."
        block = {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}
        mixed = eq_5(mixed, block)
    mixed = layer_norm(mixed, p["norm.weight"], p["norm.bias"])
    outputs, first = [], 0
    for g, group in enumerate(modifier.groups):
        own = mixed[..., first : first + group.n_agents, :]
        first += group.n_agents
        x = linear(own, p[f"heads.{g}.weight"], p[f"heads.{g}.bias"])
        if group.output == "scale":
            x = modifier.scale_bound / (1 + torch.exp(-modifier.scale_gain * x))
        elif group.output == "temperature":
            x = torch.log(1 + torch.exp(x) * (math.e - 1)).clamp(min=1e-2)
        outputs.append(x)
    if modifier.num_components:
        of_team = sum(mixed.unbind(-2)) / n_agents
        weights = linear(of_team, p["component_head.weight"], p["component_head.bias"])
        rows = outputs[0].split(modifier.groups[0].out_dim, -1)
        return torch.stack(rows, -2), weights
    return tuple(outputs)


def scramble(module):
    """Parameters that no layer leaves out: neither zero biases nor unit weights."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    return module.double()


# -- mixer block ---------------------------------------------------------------------------------


@BATCHES
@pytest.mark.parametrize("n_agents", [1, 3, 50])
def test_mixer_block_is_eq_5(batch, n_agents):
    block = scramble(MixerBlock(n_agents, channels=8))
    tokens = torch.randn(*batch, n_agents, 8, dtype=torch.float64)
    expected = eq_5(tokens, dict(block.named_parameters()))
    torch.testing.assert_close(block(tokens), expected)
    assert block(tokens).shape == tokens.shape


def test_mixer_block_hidden_widths():
    block = MixerBlock(3, 64)
    assert block.agent_mixing[0].weight.shape == (32, 3)
    assert block.channel_mixing[0].weight.shape == (256, 64)
    block = MixerBlock(3, 64, agent_hidden=5, channel_hidden=7)
    assert block.agent_mixing[3].weight.shape == (3, 5)
    assert block.channel_mixing[3].weight.shape == (64, 7)
    assert MixerBlock(2, 1)(torch.zeros(2, 1)).shape == (2, 1)


def without_agent_mixing(block):
    torch.nn.init.zeros_(block.agent_mixing[3].weight)
    torch.nn.init.zeros_(block.agent_mixing[3].bias)
    return block


CHANNELS_ONLY = without_agent_mixing(scramble(MixerBlock(5, 8)))


@settings(max_examples=25, deadline=None)
@given(permutation=st.permutations(range(5)), seed=st.integers(0, 2**31))
def test_channel_mixing_commutes_with_permutations_of_agents(permutation, seed):
    block = CHANNELS_ONLY
    torch.manual_seed(seed)
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    permuted = block(tokens[:, list(permutation)])
    torch.testing.assert_close(permuted, block(tokens)[:, list(permutation)])
    # Each agent on its own: another agent's token is not read.
    changed = tokens.clone()
    changed[:, 1:] = torch.randn_like(tokens[:, 1:]) * 100
    torch.testing.assert_close(block(changed)[:, 0], block(tokens)[:, 0])


def test_agent_mixing_does_not_commute_and_reads_every_agent():
    block = scramble(MixerBlock(5, 8))
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    flipped = block(tokens.flip(1)).flip(1)
    assert (flipped - block(tokens)).abs().max() > 1e-2
    for j in range(5):
        # A change of one channel alone, which LayerNorm does not remove.
        changed = tokens.clone()
        changed[:, j, 0] += 1.0
        difference = (block(changed) - block(tokens)).abs().amax((0, 2))
        assert (difference > 1e-9).all()


def test_agent_mixing_runs_for_each_channel_on_its_own():
    """With the norms' effect removed, channel c of agent-mixing depends on channel c only."""
    block = scramble(MixerBlock(4, 6))
    normed = torch.randn(4, 6, dtype=torch.float64)
    changed = normed.clone()
    changed[:, 2] += 1.0
    difference = (block.agent_mixing(changed.mT) - block.agent_mixing(normed.mT)).mT.abs()
    assert (difference[:, 2] > 0).all()
    assert (difference[:, [0, 1, 3, 4, 5]] == 0).all()


# -- policy modifier -----------------------------------------------------------------------------

TEAMS = {
    "one group": [ModifierGroup(3, 4, 2, features_dim=6, output="scale")],
    "no features": [ModifierGroup(3, 5, 5)],
    "one agent": [ModifierGroup(1, 5, 1, output="temperature")],
    "fifty agents": [ModifierGroup(50, 3, 3, features_dim=2)],
    "three groups": [
        ModifierGroup(2, 5, 5, features_dim=3),
        ModifierGroup(4, 6, 3, output="scale"),
        ModifierGroup(1, 2, 1, features_dim=8, output="temperature"),
    ],
}


def build(team, *, seed_dim=0, **kwargs):
    kwargs = {"channels": 8, "seed_dim": seed_dim, **kwargs}
    return scramble(PolicyModifier(TEAMS[team], state_dim=7, **kwargs))


def inputs(team, batch, *, seed_dim=0):
    """State, seed or None, and (params, features or None) for each group."""
    torch.manual_seed(1)

    def draw(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64)

    groups = [
        (
            draw(g.n_agents, g.params_dim),
            draw(g.n_agents, g.features_dim) if g.features_dim else None,
        )
        for g in TEAMS[team]
    ]
    return draw(7), (draw(seed_dim) if seed_dim else None), groups


def flat(state, seed, groups):
    parts = [part for group in groups for part in group if part is not None]
    return (state, *([] if seed is None else [seed]), *parts)


@BATCHES
@pytest.mark.parametrize("team", list(TEAMS))
@pytest.mark.parametrize("seed_dim", [0, 4])
def test_modifier_is_its_transcription(batch, team, seed_dim):
    modifier = build(team, seed_dim=seed_dim, num_blocks=2, scale_bound=0.6, scale_gain=1.3)
    state, seed, groups = inputs(team, batch, seed_dim=seed_dim)
    outputs = modifier(*flat(state, seed, groups))
    expected = modifier_by_hand(modifier, state, groups, seed)
    torch.testing.assert_close(outputs, expected)
    for group, output in zip(TEAMS[team], outputs, strict=True):
        assert output.shape == (*batch, group.n_agents, group.out_dim)


@BATCHES
@pytest.mark.parametrize("team", ["no features", "fifty agents"])
@pytest.mark.parametrize("num_components", [1, 4])
def test_components_and_their_weights(batch, team, num_components):
    modifier = build(team, num_components=num_components, seed_dim=4)
    state, seed, groups = inputs(team, batch, seed_dim=4)
    perturbation, weights = modifier(*flat(state, seed, groups))
    (group,) = TEAMS[team]
    assert perturbation.shape == (*batch, group.n_agents, num_components, group.out_dim)
    assert weights.shape == (*batch, num_components)
    expected = modifier_by_hand(modifier, state, groups, seed)
    torch.testing.assert_close((perturbation, weights), expected)


def test_components_weights_read_every_agent_and_train():
    modifier = build("no features", num_components=4)
    state, seed, groups = inputs("no features", (2,))
    _, before = modifier(*flat(state, seed, groups))
    for agent in range(3):
        changed = groups[0][0].clone()
        changed[:, agent, 0] += 1.0
        _, after = modifier(state, changed)
        assert ((before - after).abs().amax(-1) > 1e-9).all()
    before.sum().backward()
    for name, parameter in modifier.named_parameters():
        if not name.startswith("heads"):
            assert parameter.grad.abs().sum() > 0, name


def test_components_are_nearly_equally_likely_at_first():
    modifier = PolicyModifier(TEAMS["no features"], 7, num_components=4, head_gain=2.0)
    perturbation, weights = modifier(torch.randn(50, 7), torch.randn(50, 3, 5))
    assert (weights.softmax(-1) - 0.25).abs().max() < 0.05
    assert perturbation.std(-2).min() > 1e-3  # and no two of them alike


def test_params_may_come_in_several_parts():
    modifier = build("one group")
    state, _, ((params, features),) = inputs("one group", (5,))
    (whole,) = modifier(state, params, features)
    (parts,) = modifier(state, params[..., :2], params[..., 2:], features)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("num_blocks", [0, 1, 3])
def test_number_of_blocks(num_blocks):
    modifier = build("three groups", num_blocks=num_blocks)
    assert len(modifier.blocks) == num_blocks
    state, seed, groups = inputs("three groups", (2,))
    torch.testing.assert_close(
        modifier(*flat(state, seed, groups)), modifier_by_hand(modifier, state, groups)
    )


def test_agents_of_all_groups_mix():
    modifier = build("three groups")
    state, seed, groups = inputs("three groups", (2,))
    before = modifier(*flat(state, seed, groups))
    for g in range(3):
        changed = [tuple(None if t is None else t.clone() for t in group) for group in groups]
        changed[g][0][:, 0] += 1.0
        after = modifier(*flat(state, seed, changed))
        for one, other in zip(before, after, strict=True):
            assert ((one - other).abs().amax((0, 2)) > 1e-9).all()


@pytest.mark.parametrize("entry", ["state", "seed"])
def test_state_and_seed_reach_every_agent(entry):
    modifier = build("three groups", seed_dim=4)
    state, seed, groups = inputs("three groups", (2,), seed_dim=4)
    before = modifier(*flat(state, seed, groups))
    state, seed = (state + 1, seed) if entry == "state" else (state, seed + 1)
    after = modifier(*flat(state, seed, groups))
    for one, other in zip(before, after, strict=True):
        assert ((one - other).abs().amax((0, 2)) > 1e-9).all()


def test_no_gradient_leaves_through_the_input():
    modifier = build("three groups", seed_dim=4)
    state, seed, groups = inputs("three groups", (2,), seed_dim=4)
    state.requires_grad_()
    seed.requires_grad_()
    individual = [t.requires_grad_() for group in groups for t in group if t is not None]
    sum(output.sum() for output in modifier(*flat(state, seed, groups))).backward()
    assert all(value.grad is None for value in individual)
    assert state.grad.abs().sum() > 0  # what is not an individual policy may be trained
    assert seed.grad.abs().sum() > 0
    for name, parameter in modifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_outputs_have_their_range():
    groups = [
        ModifierGroup(2, 3, 2, output="scale"),
        ModifierGroup(2, 3, 1, output="temperature"),
    ]
    modifier = PolicyModifier(groups, 4, head_gain=1e3, scale_bound=0.6, scale_gain=1.0)
    scale, temperature = modifier(torch.randn(100, 4), *torch.randn(2, 100, 2, 3))
    assert (scale >= 0).all()
    assert (scale <= 0.6).all()
    assert (temperature >= 1e-2).all()
    assert temperature.isfinite().all()
    with torch.no_grad():
        for head in modifier.heads:
            head.weight.zero_()
    scale, temperature = modifier(torch.randn(1, 4), *torch.randn(2, 1, 2, 3))
    torch.testing.assert_close(scale, torch.full_like(scale, 0.3))
    torch.testing.assert_close(temperature, torch.ones_like(temperature))


def test_initialization():
    modifier = PolicyModifier(TEAMS["three groups"], 7, channels=16, head_gain=0.3)
    for name, layer in modifier.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert (layer.bias == 0).all()
            gain = 0.3 if name.startswith("heads") else math.sqrt(2)
            values = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(values, torch.full_like(values, gain), rtol=1e-4, atol=1e-4)
    assert "one_hot" not in modifier.state_dict()


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({0: torch.zeros(5, 8)}, r"state of shape \[\*B, 7\], got \(5, 8\)"),
        ({0: torch.tensor(0.0)}, r"state of shape \[\*B, 7\], got \(\)"),
        ({1: torch.zeros(5, 3)}, r"correlation seed of shape \[\*B, 4\], got \(5, 3\)"),
        ({2: torch.zeros(5, 3, 5)}, r"policy parameters of shape \[\*B, 3, 4\], got \(5, 3, 5\)"),
        ({2: torch.zeros(5, 2, 4)}, r"policy parameters of shape \[\*B, 3, 4\], got \(5, 2, 4\)"),
        ({3: torch.zeros(5, 3, 5)}, r"features of shape \[\*B, 3, 6\], got \(5, 3, 5\)"),
        ({3: torch.zeros(5, 4, 6)}, r"features of shape \[\*B, 3, 6\], got \(5, 4, 6\)"),
        ({4: torch.zeros(5, 3, 5)}, r"1 inputs left over; expected the state, a seed"),
    ],
)
def test_input_errors_name_what_came_and_what_was_expected(replace, message):
    modifier = PolicyModifier(TEAMS["one group"], 7, seed_dim=4, channels=8)
    arguments = [
        torch.zeros(5, 7),
        torch.zeros(5, 4),
        torch.zeros(5, 3, 4),
        torch.zeros(5, 3, 6),
    ]
    modifier(*arguments)
    for index, value in replace.items():
        arguments[index : index + 1] = [value]
    with pytest.raises(ValueError, match=message):
        modifier(*arguments)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_missing_inputs_are_value_errors(kept):
    modifier = PolicyModifier(TEAMS["one group"], 7, seed_dim=4, channels=8)
    arguments = (torch.zeros(5, 7), torch.zeros(5, 4), torch.zeros(5, 3, 4), torch.zeros(5, 3, 6))
    missing = ["correlation seed", "policy parameters", "features"][kept - 1]
    with pytest.raises(ValueError, match=missing):
        modifier(*arguments[:kept])


def test_construction_errors():
    with pytest.raises(ValueError, match="at least one group"):
        PolicyModifier([], 7)
    with pytest.raises(ValueError, match="`state_dim` >= 1, got 0"):
        PolicyModifier(TEAMS["one group"], 0)
    for team in ("three groups", "one group", "one agent"):
        with pytest.raises(ValueError, match=r"one group with output 'perturbation'.*\['"):
            PolicyModifier(TEAMS[team], 7, num_components=2)
    with pytest.raises(ValueError, match="`num_components` >= 0, got -1"):
        PolicyModifier(TEAMS["no features"], 7, num_components=-1)
    for name in ("n_agents", "params_dim", "out_dim"):
        sizes = {"n_agents": 2, "params_dim": 3, "out_dim": 3, name: 0}
        with pytest.raises(ValueError, match=f"`{name}` >= 1, got 0"):
            ModifierGroup(**sizes)
    with pytest.raises(ValueError, match=r"`output` 'perturbation', 'scale'.*got 'noise'"):
        ModifierGroup(2, 3, 3, output="noise")


# -- ablations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent_mixing", "reach"), [("mlp", 3), ("attention", 3), ("none", 1)])
def test_an_agent_reaches_those_it_is_mixed_with(agent_mixing, reach):
    block = MixerBlock(3, 8, agent_mixing=agent_mixing)
    tokens = torch.randn(5, 3, 8)
    changed = tokens.clone()
    changed[:, 0] += torch.randn(8)
    moved = (block(changed) - block(tokens)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [agent < reach for agent in range(3)]


@BATCHES
def test_attention_treats_agents_alike(batch):
    block = MixerBlock(4, 8, agent_mixing="attention")
    tokens, order = torch.randn(*batch, 4, 8), torch.randperm(4)
    torch.testing.assert_close(block(tokens[..., order, :]), block(tokens)[..., order, :])


def test_without_mixing_tokens_stay():
    tokens = torch.randn(5, 3, 8)
    assert block_parts(agent_mixing="none", channel_mixing=False)(tokens).equal(tokens)
    channels = tokens.clone()
    channels[..., 0] += 1.0
    moved = block_parts(agent_mixing="none")(channels) - block_parts(agent_mixing="none")(tokens)
    assert (moved[..., 1:].abs() > 1e-6).any()


def block_parts(**parts):
    torch.manual_seed(0)
    return MixerBlock(3, 8, **parts)


@pytest.mark.parametrize("reads_state", [True, False])
def test_whether_the_state_matters(reads_state):
    group = ModifierGroup(n_agents=3, params_dim=4, out_dim=2)
    modifier = PolicyModifier([group], 10, seed_dim=2, channels=8, reads_state=reads_state)
    params, seed = torch.randn(5, 3, 4), torch.randn(5, 2)
    (one,), (other,) = (modifier(torch.randn(5, 10), seed, params) for _ in range(2))
    assert one.equal(other) != reads_state
    (seeded,) = modifier(torch.randn(5, 10), torch.randn(5, 2), params)
    assert not one.equal(seeded)


def test_unknown_agent_mixing():
    with pytest.raises(ValueError, match=r"`agent_mixing` one of .*'attention'.* got 'conv'"):
        MixerBlock(3, 8, agent_mixing="conv")
