"""Every method goes through this suite."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_agentmixer import algorithms
from torchrl_agentmixer.algorithms import available_algorithms, default_options
from torchrl_agentmixer.envs import (
    CorrelationSeed,
    MatrixGameEnv,
    RecallEnv,
    make_env,
    with_memory,
)
from torchrl_agentmixer.training import evaluate

ENVS = {
    "matrix/climbing": {},
    "grid/predator_prey": {"penalty": -1.0},
    "vmas/predator_prey": {},
}


def make_algorithm(name, env, total_frames, config=None):
    """By the options that the methods share; SAC counts gradient steps instead of epochs."""
    config = dict(config or {})
    if name in REPLAY:
        steps = config.pop("epochs", 5) * config.pop("num_minibatches", 1)
        config |= {"gradient_steps": steps, "batch_size": 32}
    return algorithms.make_algorithm(name, env, total_frames, config)


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


@pytest.fixture(params=sorted(ENVS))
def env(request):
    return make_env(request.param, num_envs=6, seed=0, **ENVS[request.param])


# What a method refuses, each with a test of its own file.
ONE_GROUP = ("mat", "mat_dec", "maven", "agent_mixer_sac")
NO_MEMORY = ("mat", "maven", "agent_mixer_sac")
ONE_NETWORK = ("mat",)  # of all agents
DISCRETE = ("maven",)
CONTINUOUS = ("agent_mixer_sac",)
VALUES = ("maven",)  # learns values from replay: no ratio, and no entropy that a dead agent lacks
REPLAY = ("agent_mixer_sac",)  # counts gradient steps instead of epochs, and has no ratio
SHARED_LATENT = ("maven",)  # of the team, drawn from the first state

RATIO_TESTS = ("test_first_ratio_is_one", "test_an_agent_without_a_choice_leaves_the_losses")


@pytest.fixture(autouse=True)
def _only_what_a_method_can_do(request):
    callspec = getattr(request.node, "callspec", None)
    params = callspec.params if callspec else {}
    name, test = params.get("name"), request.node.originalname
    if name in NO_MEMORY and (params.get("memory") or test == "test_remembers_a_cue"):
        pytest.skip(f"{name} has no memory")
    if name in ONE_GROUP and test == "test_groups_of_agents_train_together":
        pytest.skip(f"{name} is for one group")
    if name in ONE_NETWORK and test == "test_an_agent_without_a_choice_leaves_the_losses":
        pytest.skip(f"{name} has no parameters of one agent alone")
    if name in DISCRETE and str(params.get("env", "")).startswith("vmas"):
        pytest.skip(f"{name} is for discrete actions")
    if name in CONTINUOUS and not str(params.get("env", "")).startswith("vmas"):
        pytest.skip(f"{name} is for continuous actions")
    if name in VALUES + REPLAY and test in RATIO_TESTS:
        pytest.skip(f"{name} is no policy gradient of the agents")


ONE_STEP = {"epochs": 1, "num_minibatches": 1}
MEMORY = {"memory_dim": 8, "sequence_length": 4}


@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("name", available_algorithms())
class TestConformance:
    def test_update_changes_every_parameter_it_owns(self, name, env, memory):
        torch.manual_seed(0)
        algorithm = make_algorithm(name, env, 10_000, {"epochs": 2, **memory})
        before = {key: value.clone() for key, value in algorithm.named_parameters()}
        for _ in range(2):
            metrics = algorithm.update(collect(env, algorithm.policy))
        assert all(torch.tensor(value).isfinite() for value in metrics.values())
        moved = [key for key, value in algorithm.named_parameters() if (value != before[key]).any()]
        critic = "mixer" if name in VALUES else "qvalue" if name in REPLAY else "critic"
        assert any(critic in key for key in moved)
        assert any("policy" in key for key in moved)
        long = not isinstance(env, MatrixGameEnv)  # a game of one step has nothing to remember
        assert any("weight_hh" in key for key in moved) == (bool(memory) and long)

    def test_first_ratio_is_one(self, name, env, memory):
        algorithm = make_algorithm(name, env, 10_000, {**ONE_STEP, **memory})
        metrics = algorithm.update(collect(env, algorithm.policy))
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["clip_fraction"] == 0.0

    def test_same_seed_same_numbers(self, name, env, memory):
        def run():
            torch.manual_seed(3)
            options = {"epochs": 2, "num_minibatches": 3, **memory}
            algorithm = make_algorithm(name, env, 10_000, options)
            env.set_seed(3)
            return algorithm.update(collect(env, algorithm.policy))

        assert run() == run()

    def test_execution_policy_reads_observations_alone(self, name, env, memory):
        algorithm = make_algorithm(name, env, 10_000, memory)
        carried = [("agents", "memory"), "is_init"] if memory else []
        if name in SHARED_LATENT:
            carried = ["state", "latent", "is_init"]  # the state where an episode starts
        assert algorithm.execution_policy.in_keys == [("agents", "observation"), *carried]

    def test_execution_is_decentralized_exactly_where_it_says_so(self, name, env, memory):
        """Another agent's observation, or the state, moves an agent's action, or it never does."""
        torch.manual_seed(0)
        algorithm = make_algorithm(name, env, 10_000, memory)
        policy = algorithm.execution_policy
        data = torch.cat([with_memory(env, algorithm.policy).reset()] * 5)
        disturbed = data.clone()
        others = disturbed["agents", "observation"][..., :-1, :]  # all but the last agent's
        others += 10 * torch.randn_like(others)
        disturbed["state"] += 10 * torch.randn_like(disturbed["state"])
        moved = set()
        start = [parameter.clone() for parameter in policy.parameters()]
        for _ in range(50):
            with torch.no_grad():  # another network, whose outputs differ much
                for parameter, first in zip(policy.parameters(), start, strict=True):
                    noise = torch.randn_like(parameter) if parameter.ndim > 1 else 0
                    parameter.copy_(first + 3 * first.shape[-1] ** -0.5 * noise)
            before, after = (policy(x.copy())["agents", "action"] for x in (data, disturbed))
            moved |= {i for i in (0, -1) if not torch.equal(before[:, i], after[:, i])}
        assert moved == ({0} if algorithm.decentralized_execution else {0, -1})

    def test_modes_are_one_where_there_is_no_joint_policy(self, name, env, memory):
        """The loop evaluates the policy's mode and the executed one once if they are the same."""
        torch.manual_seed(0)
        algorithm = make_algorithm(name, env, 10_000, {"lr": 0.05, **ONE_STEP, **memory})
        if algorithm.policy is not algorithm.individual_policy:
            pytest.skip(f"{name} has a joint policy beside the individual ones")
        algorithm.update(collect(env, algorithm.policy))
        data = with_memory(env, algorithm.policy).rollout(3, algorithm.policy).detach()[:, -1]
        data = data.select(*algorithm.policy.in_keys)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            joint = algorithm.policy(data.copy())["agents", "action"]
        assert torch.equal(algorithm.execution_policy(data)["agents", "action"], joint)

    def test_execution_policy_follows_training(self, name, env, memory):
        algorithm = make_algorithm(name, env, 10_000, {"lr": 0.05, **ONE_STEP, **memory})
        stale = copy.deepcopy(algorithm.execution_policy)
        data = with_memory(env, algorithm.policy).reset()
        for _ in range(3):
            algorithm.update(collect(env, algorithm.policy))
        fresh = dict(algorithm.execution_policy.named_parameters())
        assert any((fresh[key] != value).any() for key, value in stale.named_parameters())
        algorithm.execution_policy(data)

    def test_state_dict_restores_the_policy(self, name, env, memory):
        torch.manual_seed(0)
        trained = make_algorithm(name, env, 10_000, {**ONE_STEP, **memory})
        trained.update(collect(env, trained.policy))
        restored = make_algorithm(name, env, 10_000, memory)
        restored.load_state_dict(trained.state_dict())
        data = with_memory(env, trained.policy).reset()
        expected = trained.execution_policy(data.copy())["agents", "action"]
        assert torch.equal(restored.execution_policy(data.copy())["agents", "action"], expected)


@pytest.mark.parametrize("name", available_algorithms())
class TestLearning:
    def test_solves_a_coordination_game(self, name):
        """Two agents earn 1 by the same action and 0 otherwise; every method must get there."""
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
        config = {"lr": 5e-3, "epochs": 4, "num_minibatches": 4 if name in VALUES else 1}
        algorithm = make_algorithm(name, env, 60 * 200, config)
        for _ in range(60):
            algorithm.update(collect(env, algorithm.policy, steps=1))
        rollout = collect(env, algorithm.execution_policy, steps=1)
        assert rollout["next", "reward"].mean().item() == 1.0

    def test_remembers_a_cue(self, name):
        assert return_of_recall(name, memory_dim=16) == 1.0


def test_no_cue_is_remembered_without_memory():
    assert return_of_recall("mappo", memory_dim=0) < 0.8


def return_of_recall(name, memory_dim):
    """Two cues and a delay, learned: the best return is 1 with memory and 1/2 without."""
    torch.manual_seed(0)
    env = RecallEnv(num_envs=50, n_cues=2, delay=2, seed=0)
    memory = {"memory_dim": memory_dim, "sequence_length": 4}
    config = {"lr": 3e-3, "epochs": 4, "num_minibatches": 1, **memory}
    algorithm = make_algorithm(name, env, 40 * 50 * 16, config)
    for _ in range(40):
        algorithm.update(collect(env, algorithm.policy, steps=16))
    return evaluate(algorithm.execution_policy, env, max_steps=4).returns.mean().item()


GROUPS = {
    "vmas/simple_tag": ["adversary", "agent"],
    "mamujoco/humanoid_9_8": ["upper_body", "lower_body"],
}


@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("env_name", GROUPS)
@pytest.mark.parametrize("name", available_algorithms())
def test_groups_of_agents_train_together(name, env_name, memory):
    torch.manual_seed(0)
    if env_name.startswith("mamujoco"):
        pytest.importorskip("gymnasium_robotics")
    env = make_env(env_name, num_envs=3, seed=0)
    algorithm = make_algorithm(name, env, 10_000, {**ONE_STEP, "lr": 1e-2, **memory})
    before = {key: value.clone() for key, value in algorithm.policy.named_parameters()}
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    after = dict(algorithm.policy.named_parameters())
    moved = [key for key, value in before.items() if not torch.equal(after[key], value)]
    assert len(moved) > 0.8 * len(before)
    for group in GROUPS[env_name]:
        data = with_memory(env, algorithm.policy).reset()
        for other in GROUPS[env_name]:
            if other != group:
                data[other, "observation"] += 1.0
        executed = algorithm.execution_policy(data.copy())[group, "action"]
        data[group, "observation"] += 1.0
        assert not torch.equal(algorithm.execution_policy(data)[group, "action"], executed)


def test_groups_count_by_their_agents():
    """MAPPO's losses on two groups: means over all agents, the shared critic's once."""
    env = make_env("vmas/simple_tag", num_envs=4, seed=0)
    torch.manual_seed(0)
    algorithm = make_algorithm("mappo", env, 10_000, ONE_STEP)
    batch = collect(env, algorithm.policy)
    with torch.no_grad():
        algorithm.advantage(batch)
    together = algorithm.loss(batch.reshape(-1))
    sizes = [len(agents) for agents in env.group_map.values()]
    assert sizes == [3, 1]
    parts = [loss(batch.reshape(-1)) for loss in algorithm.loss.losses]
    for key in ("loss_objective", "entropy"):
        expected = sum(n * part[key].mean() for n, part in zip(sizes, parts, strict=True)) / 4
        torch.testing.assert_close(together[key], expected)
    assert "loss_critic" not in parts[1]
    assert together["loss_critic"] > 0


@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("name", available_algorithms())
def test_an_agent_without_a_choice_leaves_the_losses(name, memory):
    """As a dead one, who has its no-op alone: no entropy, no log-probability, no gradient."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.randn(1, 3, 3), num_envs=50, seed=0)
    algorithm = make_algorithm(name, env, 10_000, {"epochs": 2, **memory})
    with torch.no_grad():  # logits that differ, so that a mask has something to hide
        for key, parameter in algorithm.policy.named_parameters():
            if ".head." in key:
                parameter.normal_()
    actors = {
        key: parameter.clone()
        for key, parameter in algorithm.policy.named_parameters()
        if parameter.shape[0] == 3 and ("body" in key or "head.params" in key or "weight_" in key)
    }
    assert len(actors) >= 4
    data = collect(env, algorithm.policy)
    assert (data["agents", "action"][..., 0] == 0).all()
    if ("agents", "action_log_prob") in data.keys(True):
        assert (data["agents", "action_log_prob"][..., 0] == 0).all()
    algorithm.update(data)
    now = dict(algorithm.policy.named_parameters())
    assert all(torch.equal(now[key][0], value[0]) for key, value in actors.items())
    changed = {key for key, value in actors.items() if not torch.equal(now[key][1], value[1])}
    assert changed >= {key for key in actors if "weight_hh" not in key}


def test_sequences_divide_a_batch():
    env = make_env("matrix/climbing", num_envs=2)
    algorithm = make_algorithm("mappo", env, 100, {"memory_dim": 4, "sequence_length": 3})
    with pytest.raises(ValueError, match="multiple of `sequence_length` 3, got 8"):
        algorithm.update(collect(env, algorithm.policy))


def test_gradients_reach_back_to_the_cue():
    """Unrolled in training, an action is credited to what was seen steps before."""
    env = RecallEnv(num_envs=5, delay=2, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 100, {"memory_dim": 4})
    data = collect(env, algorithm.policy, steps=4)
    seen = data["agents", "observation"].requires_grad_()
    with set_recurrent_mode(True):
        logits = algorithm.policy.actors[0](data.set(("agents", "observation"), seen))
    last = logits["agents", "logits"][:, -1, 0].square().sum()
    (grad,) = torch.autograd.grad(last, seen)
    assert (grad[:, 0, 0] != 0).any()  # the first step, of this agent
    assert (grad[:, :, 1] == 0).all()  # of the other


def test_methods_differ_only_in_method():
    """Actors of all methods have the same shapes: comparisons are fair by construction."""
    env = make_env("grid/predator_prey", num_envs=2)
    shapes = []
    for name in ("mappo", "agent_mixer", "ail", "happo", "mat_dec"):
        policy = make_algorithm(name, env, 100).execution_policy
        shapes.append([tuple(p.shape) for p in policy.parameters()])
    assert all(other == shapes[0] for other in shapes)


def test_agent_mixer_learning_rates_by_part():
    env = make_env("grid/predator_prey", num_envs=4, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 100, {"lr_modifier": 0.0, **ONE_STEP})
    before = [p.clone() for p in algorithm.policy.modifier.parameters()]
    actors = [p.clone() for p in algorithm.execution_policy.parameters()]
    algorithm.update(collect(env, algorithm.policy))
    after = algorithm.policy.modifier.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    moved = zip(actors, algorithm.execution_policy.parameters(), strict=True)
    assert any((a != b).any() for a, b in moved)


def test_schedules_follow_frames():
    env = make_env("matrix/climbing", num_envs=10)
    config = {
        "form": "perturbation",
        **ONE_STEP,
        "strength": {"start": 1.0, "end": 0.0, "until": 0.5},
    }
    algorithm = make_algorithm("agent_mixer", env, 100, config)
    seen = []
    for _ in range(8):
        batch = collect(env, algorithm.policy, steps=1)
        seen.append(batch["agents", "strength"].mean().item())
        algorithm.update(batch)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], abs=1e-6)


def test_annealed_noise_ends_as_the_product():
    env = make_env("grid/predator_prey", num_envs=8, seed=0)
    config = {
        "form": "perturbation",
        **ONE_STEP,
        "strength": {"start": 1.0, "end": 0.0, "until": 0.5},
    }
    algorithm = make_algorithm("agent_mixer", env, 2 * 64, config)
    algorithm.update(collect(env, algorithm.policy))
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert metrics["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["mode_agreement"] == 1.0


def test_exact_consistency_in_training():
    env = make_env("grid/predator_prey", num_envs=8, seed=0)
    config = {"consistency": 1.0, "head_gain": 5.0, "lr": 1e-2}
    algorithm = make_algorithm("agent_mixer", env, 10_000, config)
    for _ in range(3):
        metrics = algorithm.update(collect(env, algorithm.policy))
        assert metrics["mode_agreement"] == 1.0
        assert metrics["team_mode_agreement"] == 1.0
    assert metrics["divergence"] > 0.01


MIXTURE = {"form": "mixture", "num_components": 3, **ONE_STEP}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_mixture_updates_from_a_ratio_of_one(share):
    torch.manual_seed(0)
    env = make_env("grid/predator_prey", num_envs=6, seed=0)
    config = {**MIXTURE, "modified_share": share, "head_gain": 2.0}
    algorithm = make_algorithm("agent_mixer", env, 10_000, config)
    assert algorithm.policy.modifier.num_components == 3
    before = {key: value.clone() for key, value in algorithm.named_parameters()}
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["modified_share"] == share
    assert metrics["divergence"] > 1e-3
    moved = [key for key, value in algorithm.named_parameters() if (value != before[key]).any()]
    for part in ("policy.module.0", "component_head.weight", "heads.0.weight", "critic"):
        assert any(part in key for key in moved), part


def test_modified_share_follows_frames_to_the_product():
    env = make_env("matrix/climbing", num_envs=10)
    share = {"start": 1.0, "end": 0.0, "until": 0.5}
    algorithm = make_algorithm("agent_mixer", env, 100, {**MIXTURE, "modified_share": share})
    seen = []
    for _ in range(8):
        batch = collect(env, algorithm.policy, steps=1)
        seen.append(batch["agents", "modified_share"].mean().item())
        metrics = algorithm.update(batch)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], abs=1e-6)
    assert metrics["modified_share"] == 0.0
    assert metrics["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["team_mode_agreement"] == 1.0


def test_annealed_mixture_ends_as_the_product():
    env = make_env("grid/predator_prey", num_envs=8, seed=0)
    config = {**MIXTURE, "strength": {"start": 1.0, "end": 0.0, "until": 0.5}, "head_gain": 2.0}
    algorithm = make_algorithm("agent_mixer", env, 2 * 64, config)
    algorithm.update(collect(env, algorithm.policy))
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert metrics["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["mode_agreement"] == 1.0


def test_mixture_solves_a_coordination_game():
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    config = {
        **MIXTURE,
        "lr": 5e-3,
        "epochs": 4,
        "strength": {"start": 1.0, "end": 0.0, "until": 0.7},
    }
    algorithm = make_algorithm("agent_mixer", env, 60 * 200, config)
    for _ in range(60):
        algorithm.update(collect(env, algorithm.policy, steps=1))
    for policy in (algorithm.policy, algorithm.execution_policy):
        assert env.rollout(1, policy)["next", "reward"].mean().item() > 0.9


@pytest.mark.parametrize("form", ["perturbation", "mixture"])
def test_components_are_of_a_mixture_alone(form):
    env = make_env("matrix/climbing", num_envs=2)
    algorithm = make_algorithm("agent_mixer", env, 100, {**MIXTURE, "form": form})
    has_share = "modified_share" in algorithm.policy.coefficient_names
    assert has_share == (algorithm.policy.modifier.num_components == 3) == (form == "mixture")


@pytest.mark.parametrize("per", ["step", "episode"])
def test_correlation_seed_trains(per):
    env = TransformedEnv(make_env("matrix/climbing", num_envs=8), CorrelationSeed(4, per=per))
    algorithm = make_algorithm("agent_mixer", env, 100, {"seed_dim": 4, "epochs": 2})
    metrics = algorithm.update(collect(env, algorithm.policy, steps=2))
    assert metrics["loss_objective"] == metrics["loss_objective"]


def test_missing_seed_is_explained():
    env = make_env("matrix/climbing", num_envs=8)
    algorithm = make_algorithm("agent_mixer", env, 100, {"seed_dim": 4})
    with pytest.raises(KeyError, match="correlation_seed"):
        env.rollout(1, algorithm.policy)


def test_unknown_names_are_explained():
    env = make_env("matrix/climbing", num_envs=2)
    with pytest.raises(ValueError, match=r"unknown algorithm 'mapo'.*'mappo'"):
        make_algorithm("mapo", env, 100)
    with pytest.raises(ValueError, match=r"hyperparameter of mappo 'learning_rate'.*Available.*lr"):
        make_algorithm("mappo", env, 100, {"learning_rate": 1.0})
    with pytest.raises(ValueError, match="epochs"):
        make_algorithm("mappo", env, 100, {"epochs": 0})


@pytest.mark.parametrize("ratio", ["team", "agent"])
@pytest.mark.parametrize("env_name", ["grid/predator_prey", "vmas/predator_prey"])
def test_ratio_against_a_transcription(env_name, ratio):
    """PPO's clipped objective of the team's ratio (Eq. 13), or its mean over the agents' own."""
    torch.manual_seed(0)
    env = make_env(env_name, num_envs=32, seed=0)
    options = {"form": "perturbation", "clip_epsilon": 0.2, "ratio": ratio, "head_gain": 2.0}
    algorithm = make_algorithm("agent_mixer", env, 10_000, options)
    data = collect(env, algorithm.policy).reshape(-1)
    data["advantage"] = torch.randn(*data.shape, 1)
    data["value_target"] = torch.randn(*data.shape, 1)
    data["state_value"] = algorithm.critic(data.copy())["state_value"].detach()
    key = ("agents", "action_log_prob") if ratio == "agent" else "action_log_prob"
    for parameter in algorithm.policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    action = data["agents", "action"]
    new = algorithm.policy.get_dist(data.copy()).log_prob(action)
    r = (new - data[key]).exp()  # [N] or [N, n_agents]
    standardized = (data["advantage"] - data["advantage"].mean()) / data["advantage"].std()
    a = standardized if ratio == "agent" else standardized.squeeze(-1)
    expected = -torch.min(r * a, r.clamp(0.8, 1.2) * a).mean()
    outside = ((r < 0.8) | (r > 1.2)).float().mean()
    losses = algorithm.loss(data)
    assert 0.05 < outside < 1
    torch.testing.assert_close(losses["loss_objective"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["clip_fraction"], outside)


@pytest.mark.parametrize("env_name", ["matrix/climbing", "vmas/predator_prey"])
def test_a_ratio_for_each_agent_trains(env_name):
    torch.manual_seed(0)
    env = make_env(env_name, num_envs=6, seed=0)
    options = {**ONE_STEP, "form": "perturbation", "ratio": "agent", "kl_to_individual": 0.1}
    algorithm = make_algorithm("agent_mixer", env, 10_000, options)
    parts = (*algorithm.policy.actors, algorithm.policy.modifier, algorithm.critic)
    before = copy.deepcopy(parts)
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    for part, old in zip(parts, before, strict=True):
        pairs = zip(part.parameters(), old.parameters(), strict=True)
        assert any((p != q).any() for p, q in pairs)


def test_ratios_are_of_the_team_or_of_agents():
    env = make_env("matrix/climbing", num_envs=4)
    with pytest.raises(ValueError, match="`ratio` 'team' or 'agent', got 'joint'"):
        make_algorithm("agent_mixer", env, 100, {"ratio": "joint"})
    with pytest.raises(ValueError, match="no mixture"):
        make_algorithm("agent_mixer", env, 100, {"ratio": "agent"})


@pytest.mark.parametrize("form", ["perturbation", "mixture"])
def test_kl_pulls_against_the_diagnostics(form):
    """The Modifier learns from the pull back alone; actors from both."""
    env = make_env("grid/predator_prey", num_envs=6, seed=0)
    options = {"form": form, "num_components": 3, "head_gain": 2.0}
    for name in ("kl_to_individual", "kl_to_joint"):
        torch.manual_seed(0)
        algorithm = make_algorithm("agent_mixer", env, 10_000, {**options, name: 0.5})
        data = collect(env, algorithm.policy).reshape(-1)
        loss = algorithm.auxiliary_loss(data)
        divergence = algorithm.diagnose(data)["divergence"]
        assert divergence > 0.01
        torch.testing.assert_close(loss.detach(), 0.5 * divergence)
        loss.backward()
        reached = any(p.grad is not None for p in algorithm.policy.modifier.parameters())
        assert reached == (name == "kl_to_individual")
        for actor in algorithm.policy.actors:
            assert any(p.grad is not None and p.grad.any() for p in actor.parameters())


@pytest.mark.parametrize(("name", "steps"), [("kl_to_joint", 60), ("kl_to_individual", 60)])
def test_kl_pulls_close_the_gap(name, steps):
    torch.manual_seed(0)
    env = make_env("matrix/climbing", num_envs=64)
    options = {"head_gain": 2.0, "lr": 1e-2, "lr_modifier": 1e-2, **ONE_STEP}
    algorithm = make_algorithm("agent_mixer", env, 10_000, {**options, name: 100.0})
    first = algorithm.diagnose(collect(env, algorithm.policy).reshape(-1))["divergence"]
    for _ in range(steps):
        metrics = algorithm.update(collect(env, algorithm.policy, 1))
    assert metrics["divergence"] < 0.1 * first


def test_no_pull_costs_nothing():
    algorithm = make_algorithm("agent_mixer", make_env("matrix/climbing", num_envs=4), 10_000)
    assert algorithm.auxiliary_loss(algorithm.policy.modifier) == 0.0


def test_forms_of_discrete_actions_leave_continuous_ones_alone():
    env = make_env("vmas/predator_prey", num_envs=2, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 10_000, {"form": "mixture"})
    assert algorithm.policy.modifier.num_components == 0


@pytest.mark.parametrize("name", ["temperature", "strength", "consistency", "modified_share"])
def test_a_coefficient_that_would_change_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"got \\['{name}'\\].*all actions are continuous"):
        make_algorithm(
            "agent_mixer", make_env("vmas/predator_prey", num_envs=2), 10_000, {name: 0.7}
        )
    make_algorithm("agent_mixer", make_env("matrix/climbing", num_envs=2), 10_000, {name: 0.7})


def test_metrics_tell_the_coefficients_that_there_are():
    env = make_env("vmas/predator_prey", num_envs=4, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 10_000, {**ONE_STEP, "form": "perturbation"})
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert "strength" not in metrics
    assert "kl_to_joint" in metrics


@pytest.mark.parametrize("env", ["matrix/climbing", "vmas/predator_prey"])
@pytest.mark.parametrize("name", available_algorithms())
def test_a_continuation_has_the_learning_rates_of_its_own_config(name, env):
    def build(**rates):
        return make_algorithm(name, make_env(env, num_envs=2), 10_000, rates)

    def rates(algorithm):
        optimizers = (getattr(algorithm, f"{part}optimizer", None) for part in ("", "latent_"))
        return {group["lr"] for one in optimizers if one for group in one.param_groups}

    lower = dict.fromkeys(("lr", "lr_modifier", "lr_latent", "critic_lr"), 1e-07)
    known = {key: rate for key, rate in lower.items() if key in default_options(name)}
    algorithm = build(**known)
    expected = rates(algorithm)
    algorithm.load_checkpoint_state(build().checkpoint_state())
    assert rates(algorithm) == expected
    assert expected != rates(build())
