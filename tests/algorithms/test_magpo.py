"""MAGPO: what guider and learners read, learn and keep of each other."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.modules import set_recurrent_mode

from torchrl_agentmixer.algorithms import MAGPOConfig, make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env, with_memory

ONE_STEP = {"epochs": 1, "num_minibatches": 1}
MEMORY = {"memory_dim": 8, "sequence_length": 5}
GAME = {"epochs": 4, "num_minibatches": 1, "embed_dim": 16, "num_heads": 2, "num_blocks": 1}


def trained(algorithm, env, rounds):
    """Rollouts after so many updates."""
    for _ in range(rounds):
        algorithm.update(env.rollout(1, algorithm.policy).detach())
    return torch.cat([env.rollout(1, algorithm.policy) for _ in range(5)]).reshape(-1).detach()


def test_each_optimizer_has_its_own_parameters():
    """One for guider and critic, one for the learners; together all."""
    env = make_env("grid/predator_prey", num_envs=2)
    algorithm = make_algorithm("magpo", env, 100, MEMORY)
    guider, learners = (
        {id(p) for group in algorithm.optimizers[name].param_groups for p in group["params"]}
        for name in ("optimizer", "learner_optimizer")
    )
    assert not guider & learners
    assert guider | learners == {id(p) for p in algorithm.parameters()}
    assert learners == {id(p) for p in algorithm.execution_policy.parameters()}


@pytest.mark.parametrize("side", ["guider", "learners"])
def test_gradients_are_clipped_per_side(side):
    """Large gradients of one side do not shorten the steps of the other."""
    norms = []
    for scale in (1.0, 1e4):
        env = make_env("grid/predator_prey", num_envs=20, seed=0)
        torch.manual_seed(0)
        algorithm = make_algorithm("magpo", env, 100, {**ONE_STEP, "max_grad_norm": 1e-2})
        torch.manual_seed(0)
        batch = env.rollout(10, algorithm.policy, break_when_any_done=False).detach()
        if side == "guider":
            algorithm.loss.learner_coeff *= scale
        else:
            algorithm.loss.critic_coeff *= scale
        algorithm.update(batch)
        module = algorithm.loss.actor_network if side == "guider" else algorithm.loss.learners
        norms.append(torch.cat([p.grad.flatten() for p in module.parameters()]).norm())
    torch.testing.assert_close(*norms)
    assert norms[0] < 1.001e-2


def test_the_guider_reads_all_observations_and_earlier_actions():
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=20, seed=0)
    algorithm = make_algorithm("magpo", env, 100)
    data = env.rollout(3, algorithm.policy).reshape(-1).detach()

    def logits(policy, observation=0.0, action=0):
        changed = data.clone()
        changed["agents", "observation"][:, 1] += observation
        changed["agents", "action"][:, 0] = (data["agents", "action"][:, 0] + action) % 5
        return policy.get_dist(changed).logits

    guider, learners = algorithm.loss.actor_network, algorithm.loss.learners
    other, earlier = {"observation": 1.0}, {"action": 1}
    assert (logits(guider, **other)[:, 0] != logits(guider)[:, 0]).any(-1).all()
    assert (logits(guider, **earlier)[:, 1] != logits(guider)[:, 1]).any(-1).all()
    assert torch.equal(logits(learners, **other)[:, 0], logits(learners)[:, 0])
    assert torch.equal(logits(learners, **earlier), logits(learners))


def test_learners_imitate_without_a_term_of_their_own():
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    options = {"lr": 5e-3, "learner_coeff": 0.0}
    algorithm = make_algorithm("magpo", env, 60 * 200, GAME | options)
    trained(algorithm, env, rounds=60)
    learners = algorithm.evaluated_policies["eval_individual"]
    assert env.rollout(1, learners)["next", "reward"].mean() > 0.95  # 1/3 if uniform


@pytest.mark.parametrize("bound", [1.5, math.inf])
def test_the_guider_stays_where_its_learners_can_follow(bound):
    """With learners that never move, it leaves them by the factor ``guider_clip`` and no more."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    options = {"lr": 1e-3, "guider_clip": bound, "entropy_coeff": 0.0}
    algorithm = make_algorithm("magpo", env, 60 * 200, GAME | options)
    algorithm.learner_optimizer.param_groups[0]["lr"] = 0.0  # uniform policies
    data = trained(algorithm, env, rounds=60)
    guider, learners = (
        policy.get_dist(data.copy()).log_prob(data["agents", "action"])
        for policy in (algorithm.loss.actor_network, algorithm.loss.learners)
    )
    ratio = (guider - learners).exp()[:, 1]  # the second agent knows the first one's action
    best = min(bound, 3.0)
    assert 0.9 * best < ratio.max() < 1.2 * best
    reward = data["next", "reward"].mean().item()
    assert reward == pytest.approx(best / 3, abs=0.1)


def test_both_memories_run_along_with_the_guiders_actions():
    """At collection, guider and learners carry what they compute on whole sequences."""
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    algorithm = make_algorithm("magpo", env, 100, MEMORY)
    env = with_memory(env, algorithm.policy)
    data = env.rollout(10, algorithm.policy, break_when_any_done=False).detach()
    parts = {"memory": algorithm.loss.learners, "encoder_memory": algorithm.policy.module[-1]}
    for key, policy in parts.items():
        assert (data["agents", key][:, 1:] != 0).any()
        with set_recurrent_mode(True):
            params = policy.get_dist_params(data.copy())
        torch.testing.assert_close(
            params["next", "agents", key][:, :-1], data["agents", key][:, 1:]
        )
        if key == "encoder_memory":
            log_prob = policy.build_dist_from_params(params).log_prob(data["agents", "action"])
            torch.testing.assert_close(log_prob, data["agents", "action_log_prob"])


def test_metrics():
    env = make_env("vmas/predator_prey", num_envs=6, seed=0)
    algorithm = make_algorithm("magpo", env, 100, ONE_STEP)
    metrics = algorithm.update(env.rollout(8, algorithm.policy, break_when_any_done=False))
    names = {"loss_imitation", "loss_learner", "guider_clip_fraction", "grad_norm_learner"}
    assert names <= metrics.keys()
    assert metrics["divergence"] >= 0
    assert 0 <= metrics["guider_clip_fraction"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guider_clip": 1.0}, r"MAGPOConfig: expected `guider_clip` > 1, got 1.0"),
        ({"learner_coeff": -1.0}, r"MAGPOConfig: expected `learner_coeff` >= 0, got -1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        MAGPOConfig(**options)


def test_several_groups_are_refused():
    with pytest.raises(ValueError, match="MAGPO: expected one group of agents"):
        make_algorithm("magpo", make_env("vmas/simple_tag", reward="mean", num_envs=2), 100)
