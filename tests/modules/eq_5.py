"""Plain transcriptions of Eq. 5: the mixer block and the Policy Modifier."""

from __future__ import annotations

import torch


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


def modifier_by_hand(modifier, state, per_group):
    """Section "Policy Modifier" of the paper, agent by agent; ``per_group``: (params, features)."""
    p = dict(modifier.named_parameters())
    n_agents = sum(group.n_agents for group in modifier.groups)
    context = encoder(state, p, "state_encoder")
    tokens = []
    for g, (params, features) in enumerate(per_group):
        for i in range(params.shape[-2]):
            one_hot = torch.zeros(*state.shape[:-1], n_agents, dtype=state.dtype)
            one_hot[..., len(tokens)] = 1
            parts = [context, encoder(params[..., i, :], p, f"params_encoders.{g}"), one_hot]
            if features is not None:
                parts.append(features[..., i, :])
            tokens.append(encoder(torch.cat(parts, -1), p, f"token_encoders.{g}"))
    block = {k.removeprefix("block."): v for k, v in p.items() if k.startswith("block.")}
    mixed = eq_5(torch.stack(tokens, -2), block)
    mixed = layer_norm(mixed, p["norm.weight"], p["norm.bias"])
    outputs, first = [], 0
    for g, group in enumerate(modifier.groups):
        own = mixed[..., first : first + group.n_agents, :]
        first += group.n_agents
        x = linear(own, p[f"heads.{g}.weight"], p[f"heads.{g}.bias"])
        if not group.discrete:
            c, gain = modifier.options.scale_bound, modifier.options.scale_gain
            x = c / (1 + torch.exp(-gain * x))
        elif modifier.num_components:
            x = torch.stack(x.split(group.action_dim, -1), -2)
        outputs.append(x)
    if modifier.num_components:
        of_team = sum(mixed.unbind(-2)) / n_agents
        outputs.append(linear(of_team, p["component_head.weight"], p["component_head.bias"]))
    return tuple(outputs)


def scramble(module):
    """Random parameters: no zero biases and no unit weights."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    return module.double()
