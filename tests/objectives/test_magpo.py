"""MAGPO's losses against plain transcriptions."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical, Normal, kl_divergence

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import ObservationEncoder
from torchrl_agentmixer.objectives import HuberPPOLoss, MAGPOLoss
from torchrl_agentmixer.policies import TransformerPolicy, actor_module, product_policy

SIZES = {"n_agents": 3, "observation_dim": 4}
GROUPS = {
    "discrete": AgentGroup("agents", **SIZES, action_dim=3, discrete=True, masked=True),
    "continuous": AgentGroup("agents", **SIZES, action_dim=2, discrete=False),
    "squashed": AgentGroup("agents", **SIZES, action_dim=2, discrete=False),
}
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
FLAT = {"advantage": "advantage", "sample_log_prob": "old_log_prob", "value_target": "target"}
NESTED = {
    "advantage": ("learning", "advantage"),
    "sample_log_prob": ("old", "log_prob"),
    "value_target": ("learning", "deep", "target"),
}
GUIDER = ("loss_objective", "loss_guider_kl", "loss_entropy")
LEARNERS = ("loss_imitation", "loss_learner")


def shaken(module, std):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return module


class Case:
    """Random guider, learners, critic and batch."""

    def __init__(self, kind, keys=FLAT, batch=(50,)):
        torch.manual_seed(0)
        self.kind, self.keys = kind, keys
        self.group = group = GROUPS[kind]
        self.distribution = "tanh_normal" if kind == "squashed" else "normal"
        gain, std = (0.5, 0.1) if group.discrete else (0.1, 0.02)
        encoder = ObservationEncoder(3, 4, width=16)
        guider = TransformerPolicy.build(
            group, encoder, distribution=self.distribution, width=16, head_gain=gain
        )
        self.guider = shaken(guider, std)
        actors = [shaken(actor_module(group, head_gain=gain), std)]
        self.learners = product_policy([group], actors, self.distribution, joint=False)
        self.critic = TensorDictModule(
            torch.nn.Linear(4, 1), [("agents", "observation")], [("agents", "state_value")]
        )
        agents = {"observation": torch.randn(*batch, 3, 4)}
        if group.masked:
            agents["action_mask"] = MASK.expand(*batch, 3, 3)
        data = self.guider(TensorDict({"agents": agents}, batch)).detach()
        log_prob = data.pop(("agents", "action_log_prob"))
        noise = 0.3 * torch.randn_like(log_prob)
        if group.masked:
            noise[..., 2] = 0.0  # an agent without a choice
        data[keys["sample_log_prob"]] = log_prob + noise
        data[keys["advantage"]] = torch.randn(*batch, 3, 1)
        data[keys["value_target"]] = torch.randn(*batch, 3, 1)
        data["agents", "state_value"] = torch.randn(*batch, 3, 1)
        self.data = data

    def loss(self, **kwargs):
        kwargs = {"normalize_advantage": False} | kwargs
        loss = MAGPOLoss(self.guider, self.critic, self.learners, **kwargs)
        loss.set_keys(value=("agents", "state_value"), **self.keys)
        return loss

    def dists(self):
        """Torch's distributions of guider and learners, before squashing, ``[*B, n]``."""
        observation = self.data["agents", "observation"]
        representation = self.guider.encoder.module(observation)
        decoder, actor = self.guider.individual[0].module, self.learners[0].module
        sides = decoder(representation, self.data["agents", "action"]), actor(observation)[:-1]
        if self.group.discrete:
            return [
                Categorical(logits=(x if torch.is_tensor(x) else x[0]).masked_fill(~MASK, -1e9))
                for x in sides
            ]
        return [Normal(*x) for x in sides]

    def log_probs(self):
        action = self.data["agents", "action"]
        dists = self.dists()
        if self.kind == "discrete":
            return [dist.log_prob(action) for dist in dists]
        if self.kind == "continuous":
            return [dist.log_prob(action).sum(-1) for dist in dists]
        action = action.double()
        jacobian = (1 - action**2).log().sum(-1)
        return [(d.log_prob(action.atanh()).sum(-1) - jacobian).float() for d in dists]

    def divergence(self, p, q):
        kl = kl_divergence(p, q)
        return kl if self.kind == "discrete" else kl.sum(-1)


def clip(x, low, high):
    return min(max(x, low), high)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("keys", [FLAT, NESTED], ids=["flat", "nested"])
@pytest.mark.parametrize("clip_epsilon", [0.2, (0.1, 0.4)])
def test_values_are_their_transcriptions(kind, keys, clip_epsilon):
    """Sample by sample, agent by agent."""
    case, delta, alpha = Case(kind, keys), 1.2, 0.7
    before = case.data.clone()
    out = case.loss(guider_clip=delta, learner_coeff=alpha, clip_epsilon=clip_epsilon)(case.data)
    low, high = clip_epsilon if isinstance(clip_epsilon, tuple) else (clip_epsilon, clip_epsilon)
    guider, learner = case.log_probs()
    kl = case.divergence(*case.dists())
    columns = (guider, learner, kl, case.data[keys["sample_log_prob"]])
    advantages = case.data[keys["advantage"]].flatten().tolist()
    totals, both = {"objective": 0.0, "guider_kl": 0.0, "learner": 0.0, "imitation": 0.0}, 0
    for *logs, advantage in zip(*(x.flatten().tolist() for x in columns), advantages, strict=True):
        mu, pi, old = (math.exp(logs[i]) for i in (0, 1, 3))
        double = clip(clip(mu / pi, 1 / delta, delta) * pi / old, 1 - low, 1 + high)
        totals["objective"] -= min(mu / old * advantage, double * advantage)
        outside = not 1 / delta <= mu / pi <= delta
        totals["guider_kl"] += outside * logs[2]
        single = clip(pi / old, 1 - low, 1 + high)
        totals["learner"] -= alpha * min(pi / old * advantage, single * advantage)
        totals["imitation"] += logs[2]
        both += outside
    for name, total in totals.items():
        assert out[f"loss_{name}"].item() == pytest.approx(total / len(advantages), rel=1e-3), name
    share = both / len(advantages)
    assert 0.1 < share < 0.95
    assert out["guider_clip_fraction"].item() == pytest.approx(share)
    for key, value in before.items(True, True):  # the batch is not modified
        assert torch.equal(case.data[key], value)


@pytest.mark.parametrize("kind", GROUPS)
def test_gradients_are_those_of_the_formulas(kind):
    """Learners are constants of the guider's loss, and the guider of the learners'."""
    case, delta, epsilon = Case(kind), 1.2, 0.2
    out = case.loss(guider_clip=delta, learner_coeff=0.7)(case.data)
    guider, learner = case.log_probs()
    old, a = case.data["old_log_prob"], case.data["advantage"].squeeze(-1)

    def constant(dist):
        if case.kind == "discrete":
            return Categorical(logits=dist.logits.detach())
        return Normal(dist.loc.detach(), dist.scale.detach())

    mu, pi = case.dists()
    log_pi = learner.detach()
    double = (guider - log_pi).clamp(-math.log(delta), math.log(delta)).exp() * (log_pi - old).exp()
    ratio = (guider - old).exp()
    gain = torch.min(ratio * a, double.clamp(1 - epsilon, 1 + epsilon) * a)
    outside = ((guider - log_pi).abs() > math.log(delta)).float()
    wanted = -gain.mean() + (outside * case.divergence(mu, constant(pi))).mean()
    got = out["loss_objective"] + out["loss_guider_kl"]
    check_gradients(got, wanted, case.guider)
    ratio = (learner - old).exp()
    gain = torch.min(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
    wanted = case.divergence(constant(mu), pi).mean() - 0.7 * gain.mean()
    check_gradients(out["loss_imitation"] + out["loss_learner"], wanted, case.learners)


def check_gradients(got, wanted, module):
    parameters = [p for p in module.parameters() if p.requires_grad]
    options = {"allow_unused": True, "retain_graph": True}
    pairs = zip(
        torch.autograd.grad(got, parameters, **options),
        torch.autograd.grad(wanted, parameters, **options),
        strict=True,
    )
    for mine, expected in pairs:
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("kind", GROUPS)
def test_gradients_reach_only_what_each_loss_trains(kind):
    case = Case(kind)
    loss = case.loss(guider_clip=1.2)
    parts = {"guider": case.guider, "critic": case.critic, "learners": case.learners}
    trains = dict.fromkeys(GUIDER, "guider") | dict.fromkeys(LEARNERS, "learners")
    trains["loss_critic"] = "critic"
    assert set(trains) == {key for key in loss(case.data).keys() if key.startswith("loss_")}  # noqa: SIM118
    for name, trained in trains.items():
        loss.zero_grad()
        loss(case.data)[name].backward()
        for part, module in parts.items():
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            assert any(grad.any() for grad in grads) == (part == trained), (name, part)


@pytest.mark.parametrize("kind", GROUPS)
def test_a_free_guider_learns_by_ppo(kind):
    case = Case(kind)
    options = {"normalize_advantage": True, "entropy_coeff": 0.05, "huber_delta": 2.0}
    loss = case.loss(guider_clip=math.inf, **options)
    ppo = HuberPPOLoss(case.guider, case.critic, functional=False, **options)
    ppo.set_keys(value=("agents", "state_value"), **FLAT)
    got, expected = loss(case.data.clone()), ppo(case.data.clone())
    assert got["loss_guider_kl"] == 0
    names = ("entropy", "clip_fraction", "kl_approx", "mean_ratio", "explained_variance")
    for name in ("loss_objective", "loss_entropy", "loss_critic", *names):
        torch.testing.assert_close(got[name], expected[name].mean(), rtol=1e-4, atol=1e-5)


def test_a_team_advantage_is_that_of_every_agent():
    case = Case("discrete", batch=(4, 5))
    team = torch.randn(4, 5, 1)
    case.data["advantage"] = team.unsqueeze(-2).expand(4, 5, 3, 1)
    expected = case.loss()(case.data)
    case.data["advantage"] = team
    got = case.loss()(case.data)
    for name in ("loss_objective", "loss_learner"):
        torch.testing.assert_close(got[name], expected[name])


def test_a_guider_that_equals_its_learners_is_not_held():
    case = Case("discrete")
    loss = MAGPOLoss(case.learners, case.critic, case.learners, normalize_advantage=False)
    loss.set_keys(action=("agents", "action"), value=("agents", "state_value"), **FLAT)
    out = loss(case.data)
    assert out["loss_guider_kl"] == out["guider_clip_fraction"] == 0
    torch.testing.assert_close(out["loss_imitation"], torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(out["loss_learner"], out["loss_objective"])


def test_keys_and_parameters():
    case = Case("discrete")
    recurrent = product_policy([case.group], [actor_module(case.group, memory_dim=4)], joint=False)
    inputs = set(MAGPOLoss(case.guider, case.critic, recurrent).in_keys)
    assert {("agents", "observation"), ("agents", "action_mask"), ("agents", "memory")} <= inputs
    loss = case.loss()
    own = {id(p) for part in (case.guider, case.critic, case.learners) for p in part.parameters()}
    assert {id(p) for p in loss.parameters()} == own
    with pytest.raises(ValueError, match="advantages"):
        loss.set_keys(advantages="x")
    with pytest.raises(KeyError, match="advantage"):
        loss(case.data.exclude("advantage"))


@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_a_bound_of_one_or_less_is_an_error(bound):
    with pytest.raises(ValueError, match=f"`guider_clip` > 1, got {bound}"):
        Case("discrete").loss(guider_clip=bound)
