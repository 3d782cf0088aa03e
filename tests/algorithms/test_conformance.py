"""Conformance suite: every algorithm on every environment that it supports."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer import algorithms
from torchrl_agentmixer.algorithms import algorithm_class, available_algorithms, default_options
from torchrl_agentmixer.envs import MatrixGameEnv, RecallEnv, make_env, with_memory
from torchrl_agentmixer.training import evaluate

ENVS = {
    "matrix/climbing": {},
    "grid/predator_prey": {"penalty": -1.0},
    "vmas/predator_prey": {},
}
GROUPS = {
    "vmas/simple_tag": {"reward": "mean"},
    "vmas/simple_tag, discrete": {"reward": "mean", "continuous_actions": False},
    "mamujoco/humanoid_9_8": {},
}
MEMORY = {"memory_dim": 8, "sequence_length": 4}


def has(name, option):
    return option in default_options(name)


def is_policy_gradient(name):
    return has(name, "gae_lambda")


def cases(envs):
    """Parameters (algorithm, environment, options) of all supported pairs."""
    found = []
    for name in available_algorithms():
        cls = algorithm_class(name)
        if envs is GROUPS and not cls.several_groups:
            continue
        for env in envs:
            continuous = env.startswith(("vmas", "mamujoco")) and "discrete" not in env
            if not (cls.continuous if continuous else cls.discrete):
                continue
            remembers = has(name, "memory_dim") and env != "matrix/climbing"  # of one step
            for memory in [{}, MEMORY] if remembers else [{}]:
                identifier = f"{name}-{env}-{'recurrent' if memory else 'feed-forward'}"
                long = memory and continuous and name not in ("mappo", "agent_mixer_continuous")
                marks = pytest.mark.soak if long else ()
                found.append(pytest.param(name, env, memory, id=identifier, marks=marks))
    return found


def make_algorithm(name, env, options):
    """Options by shared names; off-policy algorithms count gradient steps instead of epochs.

    The Policy Modifier of AgentMixer runs.
    """
    options = {"epochs": 1, "num_minibatches": 1, **options}
    if has(name, "strength"):
        options = {"strength": {"start": 1.0, "end": 0.0, "until": 0.25}, **options}
    if has(name, "gradient_steps"):
        steps = options.pop("epochs") * options.pop("num_minibatches")
        options |= {"gradient_steps": steps, "batch_size": 32}
    return algorithms.make_algorithm(name, env, 40_000, options)


def build(name, env, memory, *, num_envs=6, seed=0, device=None, **options):
    """An algorithm and its environment."""
    kwargs = (ENVS if env in ENVS else GROUPS)[env]
    env = make_env(env.partition(",")[0], num_envs=num_envs, seed=seed, device=device, **kwargs)
    return make_algorithm(name, env, {**options, **memory}), env


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


@pytest.mark.parametrize(("name", "env", "memory"), cases(ENVS))
class TestConformance:
    def test_update_changes_every_trained_parameter(self, name, env, memory):
        """Exactly the parameters that require a gradient change."""
        torch.manual_seed(0)
        one_step = env == "matrix/climbing"  # one observation, and nothing to remember
        algorithm, env = build(name, env, memory, epochs=4)
        before = {key: value.clone() for key, value in algorithm.named_parameters()}
        for _ in range(3):
            metrics = algorithm.update(collect(env, algorithm.policy))
        assert all(torch.tensor(value).isfinite() for value in metrics.values())
        still = {k for k, value in algorithm.named_parameters() if torch.equal(value, before[k])}
        frozen = {k for k, value in algorithm.named_parameters() if not value.requires_grad}
        assert frozen <= still
        idle = {key for key in still if one_step and "weight_hh" in key}
        if metrics.get("episodes") == 0:  # MAVEN's hierarchical policy learns from whole episodes
            idle |= {key for key in still if "latent_logits" in key}
        assert still - frozen - idle == set()

    def test_first_ratio_is_one(self, name, env, memory):
        if not is_policy_gradient(name):
            pytest.skip("has no ratio")
        algorithm, env = build(name, env, memory)
        metrics = algorithm.update(collect(env, algorithm.policy))
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["clip_fraction"] == 0.0

    def test_same_seed_same_numbers(self, name, env, memory):
        def run():
            torch.manual_seed(3)
            algorithm, own_env = build(name, env, memory, seed=3, epochs=2, num_minibatches=3)
            return algorithm.update(collect(own_env, algorithm.policy))

        assert run() == run()

    def test_execution_policy_reads_observations_alone(self, name, env, memory):
        algorithm, _ = build(name, env, memory)
        carried = [("agents", "memory"), "is_init"] if memory else []
        if has(name, "num_latents"):
            carried = ["state", "latent", "is_init"]  # the state where an episode starts
        assert algorithm.execution_policy.in_keys == [("agents", "observation"), *carried]

    def test_execution_is_decentralized_exactly_where_it_says_so(self, name, env, memory):
        """Actions depend on other agents' observations only if execution is not decentralized."""
        torch.manual_seed(0)
        algorithm, env = build(name, env, memory)
        policy = algorithm.execution_policy
        data = torch.cat([with_memory(env, algorithm.policy).reset()] * 5)
        disturbed = data.clone()
        others = disturbed["agents", "observation"][..., :-1, :]  # all except the last agent's
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

    def test_evaluated_policies_are_modes_and_samples(self, name, env, memory):
        """Under deterministic exploration, modes are repeatable and sampled policies vary."""
        torch.manual_seed(0)
        algorithm, env = build(name, env, memory, num_envs=50)
        evaluated = algorithm.evaluated_policies
        assert evaluated["eval"] is algorithm.execution_policy
        assert set(evaluated) <= {"eval", "eval_joint", "eval_individual"}
        data = with_memory(env, algorithm.policy).reset()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            for prefix, policy in evaluated.items():
                first, second = (policy(data.copy())["agents", "action"] for _ in range(2))
                assert torch.equal(first, second) == (prefix != "eval_individual"), prefix

    def test_execution_policy_follows_training(self, name, env, memory):
        algorithm, env = build(name, env, memory, lr=0.05)
        stale = copy.deepcopy(algorithm.execution_policy)
        for _ in range(3):
            algorithm.update(collect(env, algorithm.policy))
        fresh = dict(algorithm.execution_policy.named_parameters())
        assert any((fresh[key] != value).any() for key, value in stale.named_parameters())

    def test_a_checkpoint_restores_everything(self, name, env, memory):
        torch.manual_seed(0)
        trained, env = build(name, env, memory)
        batches = [collect(env, trained.policy) for _ in range(2)]
        trained.update(batches[0].clone())
        restored = make_algorithm(name, env, memory)
        restored.load_checkpoint_state(copy.deepcopy(trained.checkpoint_state()))
        results = []
        for algorithm in (trained, restored):
            torch.manual_seed(1)
            results.append(algorithm.update(batches[1].clone()))
        assert results[0] == results[1]

    def test_learning_rates_are_those_of_the_present_config(self, name, env, memory):
        lower = {key: 1e-7 for key in ("lr", "lr_modifier", "lr_latent") if has(name, key)}
        algorithm, _ = build(name, env, memory, **lower)
        algorithm.load_checkpoint_state(build(name, env, memory)[0].checkpoint_state())
        groups = [g for o in algorithm.optimizers.values() for g in o.param_groups]
        assert {group["lr"] for group in groups} == {1e-7}


LEARNING = [name for name in available_algorithms() if algorithm_class(name).discrete]


@pytest.mark.parametrize("name", LEARNING)
def test_solves_a_coordination_game(name):
    """Every algorithm learns a game that pays 1 for equal actions and 0 otherwise."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.eye(3), num_envs=200, seed=0)
    options = {"lr": 5e-3, "epochs": 4, "num_minibatches": 1 if is_policy_gradient(name) else 4}
    if has(name, "embed_dim"):
        options |= {"embed_dim": 16, "num_blocks": 1}
    algorithm = algorithms.make_algorithm(name, env, 60 * 200, options)
    for _ in range(60):
        algorithm.update(collect(env, algorithm.policy, steps=1))
    rollout = collect(env, algorithm.execution_policy, steps=1)
    assert rollout["next", "reward"].mean().item() == 1.0


@pytest.mark.parametrize("name", [name for name in LEARNING if has(name, "memory_dim")])
def test_remembers_a_cue(name):
    assert return_of_recall(name, memory_dim=16) == 1.0


def test_no_cue_is_remembered_without_memory():
    assert return_of_recall("mappo", memory_dim=0) < 0.8


def return_of_recall(name, memory_dim):
    """Recall of two cues after a delay: the best return is 1 with memory and 1/2 without."""
    torch.manual_seed(0)
    env = RecallEnv(num_envs=50, n_cues=2, delay=2, seed=0)
    memory = {"memory_dim": memory_dim, "sequence_length": 4}
    options = {"lr": 1e-3, "epochs": 4, "num_minibatches": 1, **memory}
    algorithm = algorithms.make_algorithm(name, env, 40 * 50 * 16, options)
    for _ in range(40):
        algorithm.update(collect(env, algorithm.policy, steps=16))
    return evaluate(algorithm.execution_policy, env, max_steps=4).returns.mean().item()


@pytest.mark.parametrize(("name", "env", "memory"), cases(GROUPS))
def test_groups_of_agents_train_together(name, env, memory):
    torch.manual_seed(0)
    if env.startswith("mamujoco"):
        pytest.importorskip("gymnasium_robotics")
    algorithm, env = build(name, env, memory, num_envs=3, lr=1e-2)
    before = {key: value.clone() for key, value in algorithm.policy.named_parameters()}
    metrics = algorithm.update(collect(env, algorithm.policy))
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    moved = [k for k, v in algorithm.policy.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) > 0.8 * len(before)
    with torch.no_grad():  # actions that depend much on observations
        for parameter in algorithm.execution_policy.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    start = with_memory(env, algorithm.policy).reset()
    executed = algorithm.execution_policy(start.copy())
    for group in env.group_map:
        data = start.copy()
        for other in env.group_map:
            if other != group:
                observation = data[other, "observation"]
                data[other, "observation"] = observation + 5 * torch.randn_like(observation)
        if algorithm.decentralized_execution:
            action = algorithm.execution_policy(data)[group, "action"]
            assert torch.equal(action, executed[group, "action"])


@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("name", [name for name in LEARNING if has(name, "sequence_length")])
def test_an_agent_without_a_choice_leaves_the_losses(name, memory):
    """An agent with one allowed action: no entropy, no log-probability, no gradient."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.randn(1, 3, 3), num_envs=50, seed=0)
    algorithm = make_algorithm(name, env, {"epochs": 2, **memory})
    with torch.no_grad():  # logits that differ, so that a mask has something to hide
        for key, parameter in algorithm.policy.named_parameters():
            if ".head." in key:
                parameter.normal_()
    actors = {key: p.clone() for key, p in algorithm.execution_policy.named_parameters()}
    assert len(actors) >= 4
    data = collect(env, algorithm.policy)
    assert (data["agents", "action"][..., 0] == 0).all()
    if ("agents", "action_log_prob") in data.keys(True):
        assert (data["agents", "action_log_prob"][..., 0] == 0).all()
    algorithm.update(data)
    now = dict(algorithm.execution_policy.named_parameters())
    assert all(torch.equal(now[key][0], value[0]) for key, value in actors.items())
    changed = {key for key, value in actors.items() if not torch.equal(now[key][1], value[1])}
    assert changed >= {key for key in actors if "weight_hh" not in key}


def test_methods_differ_only_in_method():
    """Actors of all methods have the same shapes: comparisons are fair by construction."""
    env = make_env("grid/predator_prey", num_envs=2)
    shapes = []
    for name in ("mappo", "agent_mixer", "ail", "happo", "magpo", "mat_dec"):
        policy = algorithms.make_algorithm(name, env, 100).execution_policy
        shapes.append([tuple(p.shape) for p in policy.parameters()])
    assert all(other == shapes[0] for other in shapes)


@pytest.mark.parametrize("env_name", ["matrix/climbing", "vmas/predator_prey", "vmas/simple_tag"])
def test_the_registry_lists_what_an_environment_supports(env_name):
    env = make_env(env_name, num_envs=2, **{**ENVS, **GROUPS}.get(env_name, {}))
    supported = available_algorithms(env)
    for name in available_algorithms():
        if name in supported:
            algorithms.make_algorithm(name, env, 100)
        else:
            names = ", ".join(supported)
            with pytest.raises(ValueError, match=f"available_algorithms.*It lists {names}"):
                algorithms.make_algorithm(name, env, 100)


def test_unknown_names_are_explained():
    env = make_env("matrix/climbing", num_envs=2)
    with pytest.raises(ValueError, match=r"'mapo'.*'mappo'"):
        algorithms.make_algorithm("mapo", env, 100)
    with pytest.raises(ValueError, match=r"mappo 'learning_rate'.*Available.*lr"):
        algorithms.make_algorithm("mappo", env, 100, {"learning_rate": 1.0})
    with pytest.raises(ValueError, match=r"`epochs` >= 1, got 0"):
        algorithms.make_algorithm("mappo", env, 100, {"epochs": 0})


@pytest.mark.parametrize("name", available_algorithms())
def test_default_options_rebuild_the_default_config(name):
    """Options as JSON and Hydra represent them give the same config."""
    assert algorithms.resolved_options(name, default_options(name)) == default_options(name)


@pytest.mark.parametrize("name", [n for n in available_algorithms() if has(n, "memory_dim")])
def test_a_policy_with_memory_in_an_environment_without(name):
    env = make_env("grid/predator_prey", num_envs=2)
    if not algorithm_class(name).discrete:
        env = make_env("vmas/predator_prey", num_envs=2)
    policy = make_algorithm(name, env, MEMORY).policy
    with pytest.raises(KeyError, match=r"with_memory\(env, policy\)"):
        policy(env.reset())


def test_maven_in_an_environment_without_latent():
    env = make_env("grid/predator_prey", num_envs=2)
    with pytest.raises(KeyError, match=r"with_memory\(env, policy\)"):
        make_algorithm("maven", env, {}).policy(env.reset())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "env", "memory"), cases(ENVS))
def test_on_a_gpu(name, env, memory):
    """Updates change the policy, and its actions equal those of a copy on the CPU."""
    torch.manual_seed(0)
    algorithm, env = build(name, env, memory, device="cuda", epochs=2, num_minibatches=2)
    start = [parameter.clone() for parameter in algorithm.execution_policy.parameters()]
    for _ in range(2):
        metrics = algorithm.update(collect(env, algorithm.policy))
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    parameters = list(algorithm.execution_policy.parameters())
    assert all(parameter.is_cuda for parameter in parameters)
    assert any(not torch.equal(one, two) for one, two in zip(parameters, start, strict=True))
    observed = with_memory(env, algorithm.policy).reset()
    on_cpu = copy.deepcopy(algorithm.execution_policy).cpu()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        actions = algorithm.execution_policy(observed.clone())["agents", "action"]
        expected = on_cpu(observed.cpu())["agents", "action"]
    torch.testing.assert_close(actions.cpu(), expected, atol=1e-4, rtol=1e-4)
