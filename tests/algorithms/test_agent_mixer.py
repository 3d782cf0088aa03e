"""AgentMixer: schedules, learning rates, ratios and consistency metrics."""

from __future__ import annotations

import re

import pytest
import torch

from torchrl_agentmixer.algorithms import (
    AgentMixerConfig,
    ContinuousAgentMixerConfig,
    PPOConfig,
    make_algorithm,
)
from torchrl_agentmixer.envs import MatrixGameEnv, make_env
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.schedules import Schedule

ONE_STEP = {"epochs": 1, "num_minibatches": 1}
EQ_12 = {"num_components": 0, "strength": 3.0, "temperature": 1.0, **ONE_STEP}
MIXTURE = {"num_components": 3, "strength": 3.0, "temperature": 1.0, **ONE_STEP}
JOINT_SCALE = {"num_components": 0, "head_gain": 2.0}
PLANS = {"strength": 1.0, "modified_share": 0.5}
FALLING = {"start": 1.0, "end": 0.0, "until": 0.5}


def collect(env, policy, steps=8):
    return env.rollout(steps, policy, break_when_any_done=False).detach()


def test_modifier_and_actors_have_their_learning_rates():
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    options = {"lr_modifier": 0.0, "strength": 1.0, **ONE_STEP}
    algorithm = make_algorithm("agent_mixer", env, 100, options)
    before = [p.clone() for p in algorithm.policy.modifier.parameters()]
    actors = [p.clone() for p in algorithm.execution_policy.parameters()]
    algorithm.update(collect(env, algorithm.policy))
    after = algorithm.policy.modifier.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    moved = zip(actors, algorithm.execution_policy.parameters(), strict=True)
    assert any((a != b).any() for a, b in moved)


@pytest.mark.parametrize(
    ("coefficient", "options"),
    [("strength", EQ_12), ("strength", MIXTURE), ("modified_share", MIXTURE)],
)
def test_coefficients_follow_their_schedules_to_the_product(coefficient, options):
    env = make_env("matrix/climbing", num_envs=10)
    algorithm = make_algorithm("agent_mixer", env, 100, {**options, coefficient: FALLING})
    seen = []
    for _ in range(8):
        batch = collect(env, algorithm.policy, steps=1)
        seen.append(getattr(algorithm.policy.coefficients, coefficient).item())
        metrics = algorithm.update(batch)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], abs=1e-6)
    assert metrics[coefficient] == 0.0
    assert metrics["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["mode_agreement"] == metrics["team_mode_agreement"] == 1.0


def test_exact_consistency_in_training():
    env = make_env("grid/predator_prey", num_envs=8, seed=0)
    options = {**EQ_12, "epochs": 5, "consistency": 1.0, "head_gain": 5.0, "lr": 1e-2}
    algorithm = make_algorithm("agent_mixer", env, 10_000, options)
    for _ in range(3):
        metrics = algorithm.update(collect(env, algorithm.policy))
        assert metrics["mode_agreement"] == 1.0
        assert metrics["team_mode_agreement"] == 1.0
    assert metrics["divergence"] > 0.01


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_mixture_trains_all_its_parts(share):
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=6, seed=0)
    options = {**MIXTURE, "modified_share": share, "strength": 1.0}
    algorithm = make_algorithm("agent_mixer", env, 10_000, options)
    before = {key: value.clone() for key, value in algorithm.named_parameters()}
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert metrics["modified_share"] == share
    assert metrics["divergence"] > 1e-3
    moved = [key for key, value in algorithm.named_parameters() if (value != before[key]).any()]
    for part in ("policy.module.0", "component_head.weight", "heads.0.weight", "critic"):
        assert any(part in key for key in moved), part


def test_the_mixture_spans_groups_of_discrete_actions():
    torch.manual_seed(0)
    env = make_env("vmas/simple_tag", reward="mean", num_envs=200, seed=0, continuous_actions=False)
    algorithm = make_algorithm("agent_mixer", env, 10_000, MIXTURE)
    data = collect(env, algorithm.policy, 1)
    assert data["action_log_prob"].shape == (200, 1)
    assert algorithm.policy.get_dist(data).mixture.logits.shape[:3] == (200, 1, 4)
    metrics = algorithm.update(data)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["divergence"] > 1e-3


def test_mixture_solves_a_coordination_game():
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    options = {**MIXTURE, "lr": 5e-3, "epochs": 4, "strength": {**FALLING, "until": 0.7}}
    algorithm = make_algorithm("agent_mixer", env, 60 * 200, options)
    for _ in range(60):
        algorithm.update(collect(env, algorithm.policy, steps=1))
    for policy in (algorithm.policy, algorithm.execution_policy):
        assert env.rollout(1, policy)["next", "reward"].mean().item() > 0.9


@pytest.mark.parametrize("num_components", [0, 3])
def test_only_a_mixture_has_a_modified_share(num_components):
    env = make_env("matrix/climbing", num_envs=2)
    options = {"num_components": num_components, "strength": 1.0}
    algorithm = make_algorithm("agent_mixer", env, 100, options)
    assert algorithm.policy.modifier.num_components == num_components
    assert ("modified_share" in algorithm.policy.coefficients.schedules) == (num_components > 0)


CASES = [
    ("agent_mixer", "grid/predator_prey", {**EQ_12, "strength": 1.0}),
    ("agent_mixer_continuous", "vmas/predator_prey", {**JOINT_SCALE, "ratio": "team"}),
    ("agent_mixer_continuous", "vmas/predator_prey", {**JOINT_SCALE, "ratio": "agent"}),
    ("agent_mixer_continuous", "vmas/predator_prey", {**PLANS, "ratio": "team"}),
    ("agent_mixer_continuous", "vmas/predator_prey", {**PLANS, "ratio": "agent"}),
]


@pytest.mark.parametrize(("name", "env_name", "options"), CASES)
def test_ratio_against_a_transcription(name, env_name, options):
    """PPO's clipped objective of the team's ratio (Eq. 13), or its mean over the agents' ratios."""
    torch.manual_seed(0)
    env = make_env(env_name, num_envs=32, seed=0)
    options = {**options, "clip_epsilon": 0.2, "optimism": 0.0}
    algorithm = make_algorithm(name, env, 10_000, options)
    data = collect(env, algorithm.policy).reshape(-1)
    data["advantage"] = torch.randn(*data.shape, 1)
    data["value_target"] = torch.randn(*data.shape, 1)
    data["state_value"] = algorithm.critic(data.copy())["state_value"].detach()
    per_agent = options.get("ratio") == "agent"
    key = ("agents", "action_log_prob") if per_agent else "action_log_prob"
    for parameter in algorithm.policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    new = algorithm.policy.get_dist(data.copy()).log_prob(data["agents", "action"])
    r = (new - data[key]).exp()  # [N] or [N, n_agents]
    standardized = (data["advantage"] - data["advantage"].mean()) / data["advantage"].std()
    a = standardized if per_agent else standardized.squeeze(-1)
    expected = -torch.min(r * a, r.clamp(0.8, 1.2) * a).mean()
    outside = ((r < 0.8) | (r > 1.2)).float().mean()
    losses = algorithm.loss(data)
    assert 0.05 < outside < 1
    torch.testing.assert_close(losses["loss_objective"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["clip_fraction"], outside)


def test_continuous_plans_end_as_mappo():
    """After annealing, with one ratio per agent, the objective on a batch is MAPPO's."""
    env = make_env("vmas/predator_prey", num_envs=16, seed=0)
    options = {"strength": FALLING, "clip_epsilon": 0.2}
    algorithm = make_algorithm("agent_mixer_continuous", env, 16 * 8, options)
    algorithm.update(collect(env, algorithm.policy))
    data = collect(env, algorithm.policy).reshape(-1)
    assert data["agents", "action_log_prob"].shape == (16 * 8, 3)
    data["advantage"], data["value_target"] = torch.randn(2, *data.shape, 1).unbind()
    data["state_value"] = algorithm.critic(data.copy())["state_value"].detach()
    for parameter in algorithm.execution_policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    mappo = HuberPPOLoss(
        algorithm.policy.decentralized(deterministic=False),
        algorithm.critic,
        functional=False,
        normalize_advantage=True,
        normalize_advantage_exclude_dims=(),
        clip_epsilon=0.2,
    )
    mappo.set_keys(action=("agents", "action"))
    ours, theirs = algorithm.loss(data.clone()), mappo(data.clone())
    assert ours["clip_fraction"] > 0
    for key in ("loss_objective", "entropy", "clip_fraction"):
        torch.testing.assert_close(ours[key], theirs[key])
    assert algorithm.policy.actors[0].module.scale_param.requires_grad


@pytest.mark.parametrize(
    ("name", "env_name"),
    [("agent_mixer", "grid/predator_prey"), ("agent_mixer_continuous", "vmas/predator_prey")],
)
def test_by_default_the_joint_policy_is_the_product(name, env_name):
    """The Modifier does not run and is not trained, at any progress."""
    env = make_env(env_name, num_envs=4, seed=0)
    algorithm = make_algorithm(name, env, 100, ONE_STEP)
    before = [p.clone() for p in algorithm.policy.modifier.parameters()]
    algorithm.policy.modifier.forward = None
    for _ in range(3):
        metrics = algorithm.update(collect(env, algorithm.policy))
        assert metrics["strength"] == 0.0
        assert metrics["mode_agreement"] == 1.0
    assert all(map(torch.equal, before, algorithm.policy.modifier.parameters()))


def test_continuous_metrics_omit_what_is_not_trained():
    """Under a joint scale individual scales are frozen: no metrics that read them."""
    env = make_env("vmas/predator_prey", num_envs=4, seed=0)
    options = {**JOINT_SCALE, **ONE_STEP}
    algorithm = make_algorithm("agent_mixer_continuous", env, 10_000, options)
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert "divergence" not in metrics
    assert metrics["mode_agreement"] == 1.0
    assert set(algorithm.evaluated_policies) == {"eval"}
    frozen = [k for k, p in algorithm.policy.named_parameters() if not p.requires_grad]
    assert [name.rpartition(".")[-1] for name in frozen] == ["scale_param"]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("agent_mixer", "scale_bound"),
        ("agent_mixer", "ratio"),
        ("agent_mixer_continuous", "temperature"),
        ("agent_mixer_continuous", "consistency"),
    ],
)
def test_options_of_other_actions_do_not_exist(name, option):
    env_name = "vmas/predator_prey" if "continuous" in name else "matrix/climbing"
    with pytest.raises(ValueError, match=f"hyperparameter of {name} '{option}'"):
        make_algorithm(name, make_env(env_name, num_envs=2), 100, {option: 1})


@pytest.mark.parametrize(
    ("config", "cause", "option"),
    [
        (AgentMixerConfig, {"num_components": 0}, {"modified_share": 0.5}),
        (ContinuousAgentMixerConfig, {"num_components": 0}, {"modified_share": 0.5}),
        (ContinuousAgentMixerConfig, {"num_components": 0}, {"strength": 0.5}),
        (ContinuousAgentMixerConfig, {"num_components": 16}, {"scale_bound": 2.0}),
        (ContinuousAgentMixerConfig, {"num_components": 16}, {"scale_gain": 1.0}),
        (AgentMixerConfig, {"strength": 0.0}, {"num_components": 0}),
        (AgentMixerConfig, {"strength": Schedule(0.0, 0.0)}, {"head_gain": 1.0}),
        (AgentMixerConfig, {"strength": 0.0}, {"modified_share": 0.5}),
        (AgentMixerConfig, {"strength": 0.0}, {"consistency": 1.0}),
        (ContinuousAgentMixerConfig, {"strength": 0.0}, {"num_components": 2}),
        (ContinuousAgentMixerConfig, {"strength": 0.0}, {"channels": 8}),
        (ContinuousAgentMixerConfig, {"strength": 0.0}, {"modified_share": 0.5}),
    ],
)
def test_options_without_effect_are_refused(config, cause, option):
    (name,), ((given, value),) = option, cause.items()
    if given == "num_components" and config is AgentMixerConfig:
        cause = {**cause, "strength": 1.0}
    with pytest.raises(
        ValueError, match=rf"`{name}` has no effect with `{given}` {re.escape(str(value))}"
    ):
        config(**cause, **option)


def test_a_ratio_per_agent_needs_one_group():
    env = make_env("vmas/simple_tag", reward="mean", num_envs=2)
    with pytest.raises(ValueError, match=r"`ratio` 'team' for several groups.*got 'agent'"):
        make_algorithm("agent_mixer_continuous", env, 100, {"ratio": "agent"})


def test_ratio_names_are_checked():
    with pytest.raises(ValueError, match="'team' or 'agent' or null, got 'joint'"):
        ContinuousAgentMixerConfig(ratio="joint")


def test_number_of_options_in_addition_to_ppo():
    """At most 14, discrete and continuous together."""
    ppo = set(vars(PPOConfig()))
    own = (set(vars(AgentMixerConfig())) | set(vars(ContinuousAgentMixerConfig()))) - ppo
    assert len(ppo) == 21
    assert len(own) <= 14, sorted(own)
