"""Base class of the PPO algorithms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import LossModule

from torchrl_agentmixer.algorithms import available_algorithms, default_options, make_algorithm
from torchrl_agentmixer.envs import RecallEnv, make_env, with_memory
from torchrl_agentmixer.objectives import HuberPPOLoss


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


def test_groups_count_by_their_agents():
    """MAPPO's losses on two groups: means over all agents, and the shared critic's loss once."""
    env = make_env("vmas/simple_tag", reward="mean", num_envs=4, seed=0)
    torch.manual_seed(0)
    algorithm = make_algorithm("mappo", env, 10_000)
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


def test_sequences_divide_a_batch():
    env = make_env("matrix/climbing", num_envs=2)
    algorithm = make_algorithm("mappo", env, 100, {"memory_dim": 4, "sequence_length": 3})
    with pytest.raises(ValueError, match="multiple of `sequence_length` 3, got 8"):
        algorithm.update(collect(env, algorithm.policy))


def test_gradients_reach_back_to_the_cue():
    """Backpropagation through time: an action's gradient reaches earlier observations."""
    env = RecallEnv(num_envs=5, delay=2, seed=0)
    algorithm = make_algorithm("agent_mixer", env, 100, {"memory_dim": 4})
    data = collect(env, algorithm.policy, steps=4)
    seen = data["agents", "observation"].requires_grad_()
    with set_recurrent_mode(True):
        logits = algorithm.policy.actors[0](data.set(("agents", "observation"), seen))
    last = logits["agents", "logits"][:, -1, 0].square().sum()
    (grad,) = torch.autograd.grad(last, seen)
    assert (grad[:, 0, 0] != 0).any()  # the first step of this agent
    assert (grad[:, :, 1] == 0).all()  # the other agent


OPTIMISTIC = [name for name in available_algorithms() if "optimism" in default_options(name)]


@pytest.mark.parametrize("name", OPTIMISTIC)
def test_optimism_is_an_option_of_every_ppo_method(name):
    """Same batch and same seed: the policy's step differs, and the option follows its schedule."""
    parameters = {}
    for start in (0.0, 1.0):
        env = make_env("grid/predator_prey", num_envs=8, seed=0)
        if name == "agent_mixer_continuous":
            env = make_env("vmas/predator_prey", num_envs=8, seed=0)
        torch.manual_seed(0)
        options = {"optimism": {"start": start, "end": 0.25}, "epochs": 1, "num_minibatches": 1}
        algorithm = make_algorithm(name, env, 128, options)
        algorithm.update(collect(env, algorithm.policy))
        found = [m.optimism for m in algorithm.modules() if isinstance(m, HuberPPOLoss)]
        assert found, name
        torch.testing.assert_close(
            torch.stack(found), torch.full((len(found),), (start + 0.25) / 2)
        )
        parameters[start] = torch.cat([p.flatten() for p in algorithm.policy.parameters()])
    assert not torch.equal(parameters[0.0], parameters[1.0])


def test_all_ppo_methods_have_optimism():
    assert {"mappo", "ippo", "happo", "mat", "armappo", "agent_mixer", "ail"} <= set(OPTIMISTIC)


COMPILED = [
    name
    for name in available_algorithms()
    if "compile" in default_options(name) and name != "happo"
]


def trained(name, env_name, **options):
    """Parameters and metrics after an update; the last minibatch is a smaller one."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    env = make_env(env_name, num_envs=8, seed=0)
    options = {"epochs": 2, "num_minibatches": 3, **options}
    algorithm = make_algorithm(name, env, 1000, options)
    metrics = algorithm.update(collect(env, algorithm.policy, steps=5))
    return [p.detach().clone() for p in algorithm.parameters()], metrics, algorithm


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("mappo", "magpo") else pytest.mark.soak) for n in COMPILED],
)
def test_compiled_losses_are_the_same(name, compiled):
    """With the operations of eager mode: also no random number more or less is drawn."""
    env_name = "vmas/balance" if name == "agent_mixer_continuous" else "matrix/climbing"
    expected, _, _ = trained(name, env_name)
    assert not compiled
    got, _, algorithm = trained(name, env_name, compile=True)
    assert len(compiled) == sum(isinstance(m, LossModule) for m in algorithm.modules())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("compiled")
def test_compiles_once_and_when_the_modifier_stops():
    """For two sizes of minibatches each; not when a coefficient changes."""
    counters.clear()
    env = make_env("matrix/climbing", num_envs=8, seed=0)
    noise = {"start": 3.0, "end": 0.0, "until": 0.25}
    options = {"epochs": 1, "num_minibatches": 3, "compile": True, "strength": noise}
    algorithm = make_algorithm("agent_mixer", env, 8 * 8, options)
    graphs = []
    for _ in range(8):
        algorithm.update(collect(env, algorithm.policy, steps=1))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [2, 2, 4, 4, 4, 4, 4, 4]


def test_losses_of_single_agents_are_not_compiled():
    with pytest.raises(ValueError, match="HAPPOConfig: expected `compile` False"):
        make_algorithm("happo", make_env("matrix/climbing"), 100, {"compile": True})


def compiled_and_not(name, env_name, **options):
    """Losses and gradients of one batch."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    env = make_env(env_name, num_envs=8, seed=0)
    noise = {"strength": 1.0} if name == "agent_mixer" else {}
    algorithm = make_algorithm(name, env, 1000, noise)
    data = collect(env, algorithm.policy, steps=5)
    with torch.no_grad():
        algorithm.advantage(data)
    data = data.reshape(-1).detach()
    found = []
    for loss in (algorithm.loss, copy.deepcopy(algorithm.loss)):  # has statistics of the values
        call = torch.compile(loss, **options) if found else loss
        losses = call(data)
        total = sum(losses[key] for key in ("loss_objective", "loss_entropy", "loss_critic"))
        parameters = list(loss.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        found.append([losses.detach().to_dict(), [g for g in gradients if g is not None]])
    return found


@pytest.mark.parametrize("name", ["agent_mixer", "mappo"])
def test_the_loss_compiles_as_one_graph(name):
    first, second = compiled_and_not(name, "matrix/climbing", backend="eager", fullgraph=True)
    torch.testing.assert_close(second, first)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "env"), [("agent_mixer", "grid/predator_prey"), ("mappo", "vmas/balance")]
)
def test_compiled_by_inductor(name, env):
    first, second = compiled_and_not(name, env)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4)
