"""Distillation loss and the expert's advantage against plain transcriptions."""

from __future__ import annotations

import itertools

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical, Normal, kl_divergence

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.objectives import DistillationLoss, ExpertAdvantage
from torchrl_agentmixer.policies import actor_module, product_policy

DISCRETE = AgentGroup("scouts", 2, observation_dim=5, action_dim=3, discrete=True, masked=True)
CONTINUOUS = AgentGroup("tanks", 3, observation_dim=5, action_dim=2, discrete=False)
TEAMS = {
    "discrete": [DISCRETE],
    "continuous": [CONTINUOUS],
    "both": [DISCRETE, CONTINUOUS],
}


def policy(groups, seed, joint=True):
    torch.manual_seed(seed)
    made = product_policy(groups, [actor_module(g, head_gain=2.0) for g in groups], joint=joint)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def observations(groups, batch):
    torch.manual_seed(3)
    data = TensorDict({}, batch)
    for group in groups:
        data[group.key("observation")] = torch.randn(*batch, group.n_agents, 5)
    mask = torch.ones(*batch, 2, 3, dtype=torch.bool)
    mask[..., 0, 2] = False
    if DISCRETE in groups:
        data["scouts", "action_mask"] = mask
    return data


def kl_by_hand(groups, expert, students, data):
    """Sum over groups and agents of torch's KL, ``[*B]``."""
    total = 0.0
    for group in groups:
        params = []
        for made in (expert, students):
            out = made(data.copy())
            if group.discrete:
                lowest = out[group.key("logits")].masked_fill(~data["scouts", "action_mask"], -1e9)
                params.append(Categorical(logits=lowest))
            else:
                params.append(Normal(out[group.key("loc")], out[group.key("scale")]))
        kl = kl_divergence(*params)
        total = total + kl.flatten(len(data.batch_size)).sum(-1)
    return total


@pytest.mark.parametrize("team", list(TEAMS))
@pytest.mark.parametrize("batch", [(7,), (2, 3)])
def test_loss_is_the_mean_kl_of_the_team(team, batch):
    groups = TEAMS[team]
    expert, students = policy(groups, 0), policy(groups, 1)
    data = observations(groups, batch)
    loss = DistillationLoss(expert, students)
    expected = kl_by_hand(groups, expert, students, data)
    assert expected.shape == batch
    assert (expected > 1e-4).all()
    out = loss(data)
    assert set(out.keys()) == set(loss.out_keys) == {"loss_distillation"}
    torch.testing.assert_close(out["loss_distillation"], expected.mean())
    assert {str(key) for key in loss.in_keys} == {str(key) for key in data.keys(True, True)}
    same = DistillationLoss(expert, expert)(data)["loss_distillation"]
    torch.testing.assert_close(same, torch.tensor(0.0), rtol=0, atol=1e-5)


def test_loss_is_the_sum_over_joint_actions():
    expert, students = policy([DISCRETE], 0), policy([DISCRETE], 1)
    data = observations([DISCRETE], (1,))
    joint = torch.tensor(list(itertools.product(range(2), range(3))))  # agent 0 may not take 2
    p, q = (made.get_dist(data.copy()).log_prob(joint).exp() for made in (expert, students))
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    loss = DistillationLoss(expert, students)(data)["loss_distillation"]
    torch.testing.assert_close(loss, (p * (p / q).log()).sum())


def test_no_gradient_reaches_the_expert():
    groups = TEAMS["both"]
    expert, students = policy(groups, 0), policy(groups, 1)
    DistillationLoss(expert, students)(observations(groups, (7,)))["loss_distillation"].backward()
    assert all(p.grad is None for p in expert.parameters())
    assert all(p.grad.abs().sum() > 0 for p in students.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in students.parameters())


def test_loss_module_keeps_the_parameters_in_the_policies():
    expert, students = policy([DISCRETE], 0), policy([DISCRETE], 1)
    loss = DistillationLoss(expert, students)
    own = {id(p) for made in (expert, students) for p in made.parameters()}
    assert {id(p) for p in loss.parameters()} == own


# -- the expert's advantages ---------------------------------------------------------------------


def advantages_by_hand(rows, gamma, lmbda):
    """Backward in time, one trajectory: ``A_t = d_t + gamma lmbda rho_{t+1} A_{t+1}``."""
    result, following = [], 0.0
    for t in reversed(range(len(rows))):
        row = rows[t]
        delta = row["reward"] + gamma * (not row["terminated"]) * row["next_value"] - row["value"]
        rho = rows[t + 1]["rho"] if t + 1 < len(rows) else 0.0
        following = delta + (gamma * lmbda * rho * following if not row["done"] else 0.0)
        result.append(following)
    return result[::-1]


def test_expert_advantages_are_their_recursion():
    """With truncated weights, ends of episodes and time limits."""
    torch.manual_seed(0)
    gamma, lmbda, size = 0.9, 0.8, (6, 5)
    critic = TensorDictModule(torch.nn.Linear(2, 1), in_keys=["state"], out_keys=["state_value"])
    terminated = torch.rand(*size, 1) < 0.2
    done = terminated | (torch.rand(*size, 1) < 0.2)
    after = {"state": torch.randn(*size, 2), "reward": torch.randn(*size, 1)}
    data = TensorDict(
        {
            "state": torch.randn(*size, 2),
            "action_log_prob": torch.randn(size),
            "expert_log_prob": torch.randn(size),
            "next": {**after, "done": done, "terminated": terminated},
        },
        size,
    )
    module = ExpertAdvantage(critic, gamma, lmbda, standardize=lambda x: (x - 1.0) / 3.0)
    out = module(data.clone())
    rho = (data["expert_log_prob"] - data["action_log_prob"]).exp().clamp(max=1.0)
    assert 0.1 < (rho == 1).float().mean() < 0.9
    value = critic.module(data["state"]).squeeze(-1)
    next_value = critic.module(data["next", "state"]).squeeze(-1)
    columns = {
        "reward": data["next", "reward"].squeeze(-1),
        "value": value,
        "next_value": next_value,
        "rho": rho,
        "done": done.squeeze(-1),
        "terminated": terminated.squeeze(-1),
    }
    rows = [
        [{k: v[b, t].item() for k, v in columns.items()} for t in range(size[1])]
        for b in range(size[0])
    ]
    expected = torch.tensor([advantages_by_hand(row, gamma, lmbda) for row in rows]).unsqueeze(-1)
    weight = rho.unsqueeze(-1)
    torch.testing.assert_close(out["expert_weight"], weight)
    torch.testing.assert_close(out["advantage"], weight * (expected - 1.0) / 3.0)
    torch.testing.assert_close(out["value_target"], value.unsqueeze(-1) + weight * expected)
    assert not out["value_target"].requires_grad
