"""Evaluation, animations and diagnostics leave all global random generators unchanged."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.diagnostics import best_response_gap, identifiability_gap
from torchrl_agentmixer.envs import MatrixGameEnv
from torchrl_agentmixer.training import evaluate, record_gif


class NoisyGame(MatrixGameEnv):
    """A game with noise from the global generators of numpy, Python and torch."""

    def __init__(self):
        super().__init__(torch.zeros(2, 2), num_envs=3)

    def _step(self, tensordict):
        result = super()._step(tensordict)
        noise = np.random.rand() + random.random() + float(torch.rand(()))
        return result.set("reward", result["reward"] + noise)


def numbers():
    return np.random.rand(), random.random(), float(torch.rand(()))


def seed():
    np.random.seed(1), random.seed(1), torch.manual_seed(1)


def evaluation(env, policy, path):
    evaluate(policy.decentralized(), env, max_steps=1)


def animation(env, policy, path):
    record_gif(policy.decentralized(), env, path / "a.gif", max_steps=1)


def best_response(env, policy, path):
    best_response_gap(env, policy, 0, max_steps=1, frames=6, episodes=3, selections=1)


def identifiability(env, policy, path):
    identifiability_gap(policy, env, max_steps=1)


@pytest.mark.parametrize("use", [evaluation, animation, best_response, identifiability])
def test_the_global_generators_are_unchanged(use, tmp_path):
    env = NoisyGame()
    policy = AgentMixerPolicy.from_env(env)
    seed()
    expected = numbers()
    seed()
    use(env, policy, tmp_path)
    assert numbers() == expected


def test_the_same_seed_gives_the_same_episodes():
    env = NoisyGame()
    policy = AgentMixerPolicy.from_env(env).decentralized()
    first, second = (evaluate(policy, env, max_steps=1, seed=7).returns for _ in range(2))
    assert first.equal(second)
    assert not first.equal(evaluate(policy, env, max_steps=1, seed=8).returns)


def test_generators_are_restored_after_an_error():
    env = NoisyGame()
    seed()
    expected = numbers()
    seed()
    with pytest.raises(ZeroDivisionError):
        evaluate(lambda data: numbers() and 1 / 0, env, max_steps=1)
    assert numbers() == expected
