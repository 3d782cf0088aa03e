"""MAVEN's losses against plain transcriptions."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import LatentMixer, LatentUtilities
from torchrl_agentmixer.objectives import LatentPolicyLoss, MAVENLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

N, K, S, M, SIZE = 2, 3, 4, 5, 40  # agents, actions, state entries, latents, transitions
KEYS = pytest.mark.parametrize(
    ("state", "latent"), [("state", "latent"), (("info", "s"), ("info", "z"))]
)


def scramble(module, scale=0.5):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale)
    return module


def build(masked, state="state", latent="latent", **kwargs):
    torch.manual_seed(0)
    group = AgentGroup("agents", N, observation_dim=6, action_dim=K, discrete=True, masked=masked)
    utilities = TensorDictModule(
        scramble(LatentUtilities(N, 6, K, M)),
        in_keys=[group.key("observation"), latent],
        out_keys=[group.key("action_value")],
    )
    mixer = TensorDictModule(
        scramble(LatentMixer(N, S, M)),
        in_keys=[group.key("chosen_action_value"), state, latent],
        out_keys=["chosen_action_value"],
    )
    discriminator = scramble(nn.Linear(S + N * K, M))
    loss = MAVENLoss(utilities, mixer, discriminator, group, num_latents=M, **kwargs)
    loss.set_keys(state=state, latent=latent)
    return loss, utilities.module, mixer.module, discriminator


def transitions(masked, state="state", latent="latent"):
    torch.manual_seed(1)
    z = torch.randint(M, (SIZE, 1))

    def side():
        td = TensorDict({"agents": {"observation": torch.randn(SIZE, N, 6)}}, [SIZE])
        td[state], td[latent] = torch.randn(SIZE, S), z
        mask = torch.rand(SIZE, N, K) < 0.5
        mask[..., 1] = True
        if masked:
            td["agents", "action_mask"] = mask
        return td

    data, after = side(), side()
    legal = data["agents", "action_mask"] if masked else torch.ones(SIZE, N, K)
    data["agents", "action"] = torch.distributions.Categorical(probs=legal.float()).sample()
    terminated = torch.rand(SIZE, 1) < 0.3
    after["reward"] = torch.randn(SIZE, 1)
    after["terminated"], after["done"] = terminated, terminated | (torch.rand(SIZE, 1) < 0.3)
    data["next"] = after
    return data


def legal_actions(data, i, agent, masked):
    if not masked:
        return list(range(K))
    return [k for k in range(K) if data["agents", "action_mask"][i, agent, k]]


@pytest.mark.parametrize("masked", [False, True])
@KEYS
def test_td_loss_is_its_transcription(masked, state, latent):
    """Mean squared TD error; the next actions are the agents' best allowed ones."""
    loss, utilities, mixer, _ = build(masked, state, latent, gamma=0.9)
    data = transitions(masked, state, latent)
    after = data["next"]
    with torch.no_grad():
        now = utilities(data["agents", "observation"], data[latent])
        then = utilities(after["agents", "observation"], after[latent])
        best = torch.tensor(
            [
                [
                    max(then[i, j, k].item() for k in legal_actions(after, i, j, masked))
                    for j in range(N)
                ]
                for i in range(SIZE)
            ]
        )
        chosen = now.gather(-1, data["agents", "action"].unsqueeze(-1))
        value = mixer(chosen, data[state], data[latent])
        next_value = mixer(best.unsqueeze(-1), after[state], after[latent])
    target = after["reward"] + 0.9 * (~after["terminated"]).float() * next_value
    out = loss(data)
    torch.testing.assert_close(out["loss_td"].detach(), (value - target).square().mean())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@KEYS
def test_discriminator_loss_is_its_transcription(masked, temperature, state, latent):
    """Mean of ``-log q(z | state, softmax(Q / temperature))``; information: H(z) minus that."""
    loss, utilities, _, discriminator = build(masked, state, latent, temperature=temperature)
    data = transitions(masked, state, latent)
    with torch.no_grad():
        values = utilities(data["agents", "observation"], data[latent])
    total, counts = 0.0, [0] * M
    for i in range(SIZE):
        behavior = []
        for j in range(N):
            legal = legal_actions(data, i, j, masked)
            e = {k: math.exp(values[i, j, k].item() / temperature) for k in legal}
            behavior += [e.get(k, 0.0) / sum(e.values()) for k in range(K)]
        logits = discriminator(torch.cat([data[state][i], torch.tensor(behavior)])).tolist()
        z = data[latent][i, 0].item()
        counts[z] += 1
        total += math.log(sum(map(math.exp, logits))) - logits[z]
    out = loss(data)
    assert out["loss_discriminator"].item() == pytest.approx(total / SIZE, rel=1e-4)
    entropy = -sum(c / SIZE * math.log(c / SIZE) for c in counts if c)
    assert out["information"].item() == pytest.approx(entropy - total / SIZE, rel=1e-3, abs=1e-5)
    assert set(out.keys()) == set(loss.out_keys)


def test_gradients_of_maven():
    """The bonus trains utilities and discriminator; the TD loss trains utilities and mixer."""
    loss, utilities, mixer, discriminator = build(True)
    data = transitions(True)
    modules = {"utilities": utilities, "mixer": mixer, "discriminator": discriminator}

    def reached(name):
        loss.zero_grad()
        loss(data)[name].backward()
        return {
            part
            for part, module in modules.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        }

    assert reached("loss_td") == {"utilities", "mixer"}
    assert reached("loss_discriminator") == {"utilities", "discriminator"}
    assert not loss(data)["information"].requires_grad


# -- the policy of the latent --------------------------------------------------------------------

LATENT_KEYS = {
    "state": ("first", "state"),
    "latent": ("first", "z"),
    "log_prob": ("old", "log_prob"),
    "advantage": ("learning", "advantage"),
}
FLAT = {
    "state": "state",
    "latent": "latent",
    "log_prob": "latent_log_prob",
    "advantage": "advantage",
}


def episodes(keys, n=60):
    torch.manual_seed(1)
    data = TensorDict({}, [n])
    data[keys["state"]] = torch.randn(n, S)
    data[keys["latent"]] = torch.randint(M, (n, 1))
    data[keys["log_prob"]] = torch.randn(n) * 0.3 - math.log(M)
    data[keys["advantage"]] = torch.randn(n)
    return data


@pytest.mark.parametrize("keys", [FLAT, LATENT_KEYS], ids=["flat", "nested"])
@pytest.mark.parametrize("count", [None, 25.0])
def test_latent_policy_loss_is_its_transcription(keys, count):
    torch.manual_seed(0)
    logits = nn.Linear(S, M)
    loss = LatentPolicyLoss(logits, clip_epsilon=0.1, entropy_coeff=0.3)
    loss.set_keys(**(keys if keys is LATENT_KEYS else {}))
    data = episodes(keys)
    objective, entropy, clipped = 0.0, 0.0, 0
    for i in range(60):
        row = logits(data[keys["state"]][i]).log_softmax(-1).tolist()
        ratio = math.exp(row[data[keys["latent"]][i, 0].item()] - data[keys["log_prob"]][i].item())
        near = min(max(ratio, 0.9), 1.1)
        clipped += near != ratio
        advantage = data[keys["advantage"]][i].item()
        objective -= min(ratio * advantage, near * advantage)
        entropy -= sum(math.exp(x) * x for x in row)
    assert 0 < clipped < 60
    divisor = 60 if count is None else count
    out = loss(data) if count is None else loss(data, count)
    assert out["loss_latent"].item() == pytest.approx(objective / divisor, rel=1e-4, abs=1e-6)
    assert out["latent_entropy"].item() == pytest.approx(entropy / divisor, rel=1e-4)
    assert out["loss_entropy"].item() == pytest.approx(-0.3 * entropy / divisor, rel=1e-4)
    assert set(out.keys()) == set(loss.out_keys)


def test_latent_policy_learns_what_pays():
    torch.manual_seed(0)
    loss = LatentPolicyLoss(nn.Linear(S, M), entropy_coeff=0.0)
    state = torch.ones(50, S)
    data = TensorDict({"state": state, "latent": torch.arange(50).remainder(M).unsqueeze(-1)}, [50])
    data["latent_log_prob"] = loss.dist(data).log_prob(data["latent"].squeeze(-1)).detach()
    data["advantage"] = (data["latent"].squeeze(-1) == 3).float() - 0.2
    before = loss.dist(data[0]).probs[3].item()
    loss(data)["loss_latent"].backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.sub_(0.1 * parameter.grad)
    assert loss.dist(data[0]).probs[3].item() > before
