"""HASAC: order of the updates, newest actions, and learning."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from torchrl_agentmixer.algorithms import HASAC, HASACConfig
from torchrl_agentmixer.envs import make_env

OPTIONS = {"lr": 1e-2, "gradient_steps": 1, "batch_size": 16, "critic_hidden": (16,)}


def build(**options):
    torch.manual_seed(0)
    env = make_env("vmas/predator_prey", num_envs=6, seed=0)
    return HASAC(env, 10_000, HASACConfig(**{**OPTIONS, **options})), env


def collect(env, algorithm, steps=4):
    return env.rollout(steps, algorithm.policy, break_when_any_done=False).detach()


def spied(algorithm, seen):
    """Record ``(index, team's actions, modes of the current policies)`` per agent's loss."""
    agent_loss = algorithm.loss.agent_loss

    def record(tensordict, dist, index):
        with torch.no_grad():
            modes = algorithm.execution_policy(tensordict.copy())["agents", "action"]
        seen.append((index, tensordict["agents", "action"].clone(), modes.clone()))
        return agent_loss(tensordict, dist, index)

    algorithm.loss.agent_loss = record
    return algorithm


def test_earlier_agents_act_by_their_newest_policies():
    """With tiny scales, sampled actions are the modes of the policies that they are drawn from."""
    algorithm, env = build(scale_bound=1e-5)
    seen = []
    spied(algorithm, seen).update(collect(env, algorithm))
    assert sorted(index for index, _, _ in seen) == [0, 1, 2]
    start = seen[0][2]  # modes before the first agent's update
    updated = []
    for index, actions, modes in seen:
        torch.testing.assert_close(actions, modes, atol=1e-3, rtol=0)
        for agent in range(3):
            moved = (modes[:, agent] - start[:, agent]).abs().max()
            assert (moved > 5e-3) if agent in updated else (moved == 0)
        updated.append(index)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_update_moves_its_own_agent_alone(steps):
    """Also with momentum; the critics move before the agents, and alpha after them."""
    algorithm, env = build(gradient_steps=steps)
    moved = []
    gradient_step = algorithm.gradient_step

    def watch(loss, optimizer):
        before = {key: p.clone() for key, p in algorithm.named_parameters()}
        gradient_step(loss, optimizer)
        changed = {k: p != before[k] for k, p in algorithm.named_parameters()}
        actors = [c for k, c in changed.items() if k.startswith("policy.")]
        rows = {int(row) for c in actors for row in c.flatten(1).any(1).nonzero()}
        critics = any(c.any() for k, c in changed.items() if "loss.qvalue_network" in k)
        moved.append((rows, critics, bool(changed["loss.log_alpha"])))

    algorithm.gradient_step = watch
    algorithm.update(collect(env, algorithm))
    assert len(moved) == 5 * steps
    for first in range(0, 5 * steps, 5):
        critic, *agents, alpha = moved[first : first + 5]
        assert critic == (set(), True, False)
        assert sorted(min(rows) for rows, *_ in agents) == [0, 1, 2]
        assert all((len(rows), *others) == (1, False, False) for rows, *others in agents)
        assert alpha == (set(), False, True)


def test_alpha_has_the_entropy_of_the_team_as_its_target():
    """``-log_alpha (log pi + target)``, with the sum of the agents' log-probabilities."""
    algorithm, env = build(alpha_init=0.5)
    log_probs = []
    agent_loss = algorithm.loss.agent_loss

    def record(*args):
        loss, log_prob = agent_loss(*args)
        log_probs.append(log_prob)
        return loss, log_prob

    algorithm.loss.agent_loss = record
    metrics = algorithm.update(collect(env, algorithm))
    team = torch.stack(log_probs).sum(0)
    target = -3 * 2  # agents, action dimensions in [-1, 1]
    expected = -(math.log(0.5) * (team + target)).mean().item()
    assert metrics["loss_alpha"] == pytest.approx(expected, rel=1e-4)
    assert metrics["entropy"] == pytest.approx(-team.mean().item(), rel=1e-5)
    assert metrics["alpha"] == pytest.approx(0.5)


@pytest.mark.parametrize("fixed", [False, True])
def test_order(fixed):
    algorithm, env = build(fixed_order=fixed, gradient_steps=12)
    seen = []
    spied(algorithm, seen).update(collect(env, algorithm))
    orders = [tuple(x[0] for x in seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert len(orders) == 12
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert (set(orders) == {(0, 1, 2)}) if fixed else (len(set(orders)) > 2)


def test_restored_and_moved_ones_train_their_own_policy():
    """Views into the policy's parameters are restored when their storage is replaced."""
    (trained, env), (restored, _), (moved, _) = build(), build(), build()
    trained.update(collect(env, trained))
    restored.load_state_dict(trained.state_dict())
    moved.double().float()
    for algorithm in (restored, moved):
        start = [p.clone() for p in algorithm.policy.parameters()]
        algorithm.update(collect(env, algorithm))
        now = algorithm.policy.parameters()
        assert all(not torch.equal(a, b) for a, b in zip(start, now, strict=True))


def test_shared_parameters_are_refused():
    with pytest.raises(ValueError, match="HASACConfig: expected `share_params` False, got True"):
        HASACConfig(share_params=True)


def test_metrics_are_finite_for_a_batch_of_one_sample():
    algorithm, env = build(batch_size=1)
    metrics = algorithm.update(collect(env, algorithm, 1))
    assert all(TensorDict(metrics)[key].isfinite() for key in metrics)
