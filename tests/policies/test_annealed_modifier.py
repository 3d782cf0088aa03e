"""A Policy Modifier whose output cancels does not run, and the joint policy is the same."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torchrl.collectors import Collector

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.modules import IGCCoefficients
from torchrl_agentmixer.schedules import Schedule

from .groups_env import both_kinds, build, scouts, two_discrete


def tanks(**kwargs):
    return build(("tanks",), (4,), {"num_components": 3}, strength=0.0, **kwargs)


COLD = {"strength": 0.0, "temperature": 0.5, "consistency": 0.3}
POLICIES = {
    "mixture": lambda: scouts(**COLD),
    "mixture of individual policies": lambda: scouts(strength=0.0, modified_share=0.5),
    "one perturbation": lambda: scouts(num_components=0, **COLD),
    "two groups": lambda: two_discrete(**COLD),
    "plans": tanks,
    "plans of squashed actions": lambda: tanks(distribution="tanh_normal"),
    "plans, one ratio per agent": lambda: tanks(joint=False),
}


def calls(policy):
    """A list that grows with every call of the Modifier."""
    seen = []
    policy.modifier.register_forward_hook(lambda *_: seen.append(1))
    return seen


def outputs(policy, td, actions):
    dist = policy.get_dist(td.clone())
    log_prob = dist.log_prob(*actions)
    parameters = [p for actor in policy.actors for p in actor.parameters()]
    total = log_prob.sum() + dist.entropy().sum()
    gradient = torch.autograd.grad(total, parameters, allow_unused=True)
    return [log_prob, dist.entropy(), *(g for g in gradient if g is not None)]


@pytest.mark.parametrize("name", POLICIES)
def test_the_joint_policy_is_the_same(name, monkeypatch):
    policy, td = POLICIES[name]()
    seen = calls(policy)
    sample = policy.get_dist(td.clone()).sample()
    actions = sample if isinstance(sample, tuple) else (sample,)
    without = outputs(policy, td, actions)
    assert not seen
    monkeypatch.setattr(IGCCoefficients, "cancel_perturbation", False)
    torch.testing.assert_close(without, outputs(policy, td, actions), atol=1e-5, rtol=1e-4)
    assert seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: scouts(strength=0.1),
        lambda: scouts(num_components=0, strength=0.1),
        lambda: scouts(strength=0.0, modified_share=0.5, temperature=0.5),
        lambda: both_kinds(strength=0.0),  # the Modifier writes the joint scale of the tanks
    ],
)
def test_runs_where_its_output_counts(make):
    policy, td = make()
    seen = calls(policy)
    policy(td)
    assert seen


def test_values_are_read_wherever_they_are_set():
    """Parameters that a collector's worker receives are written into the buffers."""
    policy, td = scouts(strength=0.0)
    seen = calls(policy)
    policy.coefficients.strength.fill_(1.0)
    policy(td.clone())
    assert len(seen) == 1
    other, _ = scouts(strength=0.0)
    policy.load_state_dict(other.state_dict())
    policy(td.clone())
    assert len(seen) == 1


def annealed(**coefficients):
    """The Modifier with coefficients, its input, and whether it ran."""
    policy, td = scouts(**coefficients)
    *actors, deviation, _ = policy.module
    data = policy.module[0](td) if actors else td

    def ran(module):
        return ("scouts", "perturbation") in module(data.clone()).keys(True)

    return policy, deviation, ran


def test_compiled():
    policy, deviation, ran = annealed(strength=1.0)
    torch._dynamo.reset()
    compiled = torch.compile(deviation, backend="eager", fullgraph=True)
    assert ran(compiled)
    for strength in (0.0, 0.5, 0.0):
        policy.set_coefficients(strength=strength)
        assert ran(compiled) == (strength > 0)


@pytest.mark.parametrize("copied", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_without_reading_a_value(copied):
    """As on an accelerator; tensors on "meta" have no values."""
    schedules = {"strength": Schedule(3.0, 0.0, until=0.5), "modified_share": 1.0}
    coefficients = IGCCoefficients(["logits"], **schedules).to("meta")
    assert not coefficients.cancel_perturbation
    coefficients.anneal(0.5)
    assert coefficients.cancel_perturbation
    # A worker's copy has other buffers, which get new values in place.
    other = copied(coefficients)
    assert not other.cancel_perturbation
    other.anneal(0.5)
    assert other.cancel_perturbation
    coefficients.anneal(0.4)
    assert not coefficients.cancel_perturbation


def test_loaded_values_are_read():
    coefficients = IGCCoefficients(["logits"], strength=1.0)
    coefficients.load_state_dict(IGCCoefficients(["logits"], strength=0.0).state_dict())
    assert coefficients._cancels


def test_one_of_several_values():
    coefficients = IGCCoefficients(["logits"], strength=0.0, modified_share=0.5, temperature=0.5)
    assert not coefficients._cancels
    coefficients.set(temperature=1.0)
    assert coefficients._cancels


def test_batches_of_a_collector_have_the_same_entries():
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    policy = AgentMixerPolicy.from_env(env)
    batches = iter(Collector(env, policy, frames_per_batch=20, total_frames=-1))
    keys = []
    for strength in (1.0, 0.0, 1.0):
        policy.set_coefficients(strength=strength)
        keys.append(set(next(batches).keys(True, True)))
    assert keys[0] == keys[1] == keys[2]
    assert set(policy.out_keys) == {("agents", "logits"), ("agents", "action"), "action_log_prob"}
    added = keys[0] - set(env.fake_tensordict().keys(True, True))
    assert added == {("agents", "logits"), "action_log_prob", ("collector", "traj_ids")}
