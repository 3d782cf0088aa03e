"""HAPPO: sequential updates, the factor of earlier agents, and learning."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical, Independent, Normal
from torchrl.modules import set_recurrent_mode

from torchrl_agentmixer.algorithms import HAPPO, HAPPOConfig, make_algorithm
from torchrl_agentmixer.distributed import standardized
from torchrl_agentmixer.envs import MatrixGameEnv, RecallEnv, make_env, with_memory

MEMORY = {"memory_dim": 8, "sequence_length": 4}
ONE_STEP = {"epochs": 1, "num_minibatches": 1}


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


def per_agent_log_prob(policy, data):
    """Log-probabilities of one group by torch's distributions, ``[*B, n]``."""
    with torch.no_grad(), set_recurrent_mode(True):
        agents = policy.module[0](data.copy())["agents"]
    if "logits" in agents.keys():  # noqa: SIM118
        logits = agents["logits"]
        if "action_mask" in agents.keys():  # noqa: SIM118
            logits = logits.masked_fill(~agents["action_mask"], -torch.inf)
        return Categorical(logits=logits).log_prob(agents["action"])
    return Independent(Normal(agents["loc"], agents["scale"]), 1).log_prob(agents["action"])


def spied(algorithm, seen):
    """The algorithm, and a list of (agent or -1 for the critic, minibatch) per gradient step."""
    actor_step, critic_step = algorithm._actor_step, algorithm._critic_step

    def record_actor(turn, minibatch):
        seen.append((turn.index, minibatch.clone()))
        return actor_step(turn, minibatch)

    def record_critic(minibatch):
        seen.append((-1, minibatch.clone()))
        return critic_step(minibatch)

    algorithm._actor_step, algorithm._critic_step = record_actor, record_critic
    return algorithm


ENVS = {
    "discrete": lambda: make_env("grid/predator_prey", num_envs=6, penalty=-1.0, seed=0),
    "continuous": lambda: make_env("vmas/predator_prey", num_envs=6, seed=0),
    "masked": lambda: MatrixGameEnv(torch.randn(3, 2, 4), num_envs=20, seed=0),
}


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
class TestTurns:
    def test_factor_against_a_hand_computation(self, kind, memory):
        """The advantage of an update is the team's times the ratios of earlier agents."""
        torch.manual_seed(0)
        env, seen = ENVS[kind](), []
        config = HAPPOConfig(**ONE_STEP, lr=2e-2, **memory)
        algorithm = spied(HAPPO(env, 10_000, config), seen)
        batch = collect(env, algorithm.policy)
        with torch.no_grad():
            algorithm.advantage(batch)
        algorithm.update(batch)
        data = batch.reshape(-1, 4) if memory else batch.reshape(-1)
        ratios = (
            per_agent_log_prob(algorithm.policy, data) - data["agents", "action_log_prob"]
        ).exp()
        with torch.no_grad():
            expected = (data["advantage"] - data["advantage"].mean()) / data["advantage"].std()
        turns = seen[:-1]
        assert sorted(index for index, _ in turns) == list(range(ratios.shape[-1]))
        assert seen[-1][0] == -1
        for position, (index, minibatch) in enumerate(turns):
            weighted = minibatch["factor"] * minibatch["advantage"]
            torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-5)
            if position:
                assert not torch.allclose(weighted, turns[0][1]["advantage"])
            expected = expected * ratios[..., index, None]

    def test_a_turn_moves_its_own_agent_alone(self, kind, memory):
        torch.manual_seed(0)
        env = ENVS[kind]()
        algorithm = HAPPO(env, 10_000, HAPPOConfig(epochs=2, num_minibatches=1, lr=1e-2, **memory))
        steps = []

        def watch(step, index_of):
            def watched(*args):
                before = {key: p.clone() for key, p in algorithm.policy.named_parameters()}
                critic = [p.clone() for p in algorithm.critic.parameters()]
                result = step(*args)
                rows = set()
                for key, parameter in algorithm.policy.named_parameters():
                    changed = (parameter != before[key]).flatten(1).any(1)
                    rows |= set(changed.nonzero().flatten().tolist())
                now = algorithm.critic.parameters()
                moved = any(not torch.equal(a, b) for a, b in zip(critic, now, strict=True))
                steps.append((index_of(args), rows, moved))
                return result

            return watched

        algorithm._actor_step = watch(algorithm._actor_step, lambda args: args[0].index)
        algorithm._critic_step = watch(algorithm._critic_step, lambda args: None)
        for _ in range(2):  # the second time with momentum
            algorithm.update(collect(env, algorithm.policy))
        assert len(steps) == 2 * 2 * (len(algorithm.agents) + 1)
        for index, rows, critic_moved in steps:
            assert critic_moved == (index is None)
            assert rows == (set() if index is None else {index})

    def test_an_agent_alone_is_the_agent_in_its_group(self, kind, memory):
        """Networks of single agents give the probabilities of the batched policy."""
        torch.manual_seed(0)
        env = ENVS[kind]()
        algorithm = HAPPO(env, 10_000, HAPPOConfig(**ONE_STEP, lr=1e-2, **memory))
        for _ in range(2):
            batch = collect(env, algorithm.policy)
            data = batch.reshape(-1, 4) if memory else batch.reshape(-1)
            with set_recurrent_mode(True):
                for turn in algorithm.agents:
                    ratio = turn.loss.ratio(turn.select(data))
                    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
            algorithm.update(batch)

    def test_restored_and_moved_ones_train_their_own_policy(self, kind, memory):
        """Views into the policy's parameters are restored when their storage is replaced."""
        torch.manual_seed(0)
        env = ENVS[kind]()
        trained, restored, moved = (
            HAPPO(env, 10_000, HAPPOConfig(epochs=2, num_minibatches=1, lr=1e-2, **memory))
            for _ in range(3)
        )
        trained.update(collect(env, trained.policy))
        restored.load_state_dict(trained.state_dict())
        moved.double().float()
        source = [p.clone() for p in trained.policy.parameters()]
        for algorithm in (restored, moved):
            start = [p.clone() for p in algorithm.policy.parameters()]
            if algorithm is restored:
                assert all(torch.equal(a, b) for a, b in zip(start, source, strict=True))
            algorithm.update(collect(env, algorithm.policy))
            now = algorithm.policy.parameters()
            assert any(not torch.equal(a, b) for a, b in zip(start, now, strict=True))
        for a, b in zip(source, trained.policy.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("clip_epsilon", [0.2, (0.1, 0.4)])
def test_objective_against_a_transcription(clip_epsilon):
    """Only the agent's own ratio is clipped, not the factor."""
    torch.manual_seed(0)
    env = MatrixGameEnv(torch.randn(3, 3), num_envs=100, seed=0)
    algorithm = HAPPO(env, 1000, HAPPOConfig(clip_epsilon=clip_epsilon))
    data = collect(env, algorithm.policy, 1).reshape(-1)
    turn = algorithm.agents[1]
    own = turn.select(data).set("advantage", torch.randn(100, 1))
    own["factor"] = torch.rand(100, 1) + 0.5
    own["agents", "action_log_prob"] += 0.5 * torch.randn(100, 1)
    ratio = turn.loss.ratio(own)
    low, high = clip_epsilon if isinstance(clip_epsilon, tuple) else (clip_epsilon, clip_epsilon)
    clipped = ratio.clamp(1 - low, 1 + high)
    assert (clipped != ratio).any()
    weighted = own["factor"] * own["advantage"]
    expected = -torch.min(ratio * weighted, clipped * weighted).mean()
    torch.testing.assert_close(turn.loss(own)["loss_objective"].detach(), expected)


@pytest.mark.parametrize("memory", [{}, MEMORY], ids=["feed-forward", "recurrent"])
def test_one_agent_is_ppo(memory):
    """With one agent HAPPO and MAPPO are the same single-agent PPO, bit for bit.

    But for clipping gradients: MAPPO clips actor and critic together.
    """
    results = []
    options = {"epochs": 3, "num_minibatches": 1, "lr": 1e-2, "max_grad_norm": 1e9}
    for name in ("happo", "mappo"):
        torch.manual_seed(0)
        env = RecallEnv(num_envs=10, n_agents=1, delay=2, seed=0)
        algorithm = make_algorithm(name, env, 10_000, {**options, **memory})
        torch.manual_seed(1)
        metrics = [algorithm.update(collect(env, algorithm.policy)) for _ in range(3)]
        results.append((metrics, [*algorithm.policy.parameters(), *algorithm.critic.parameters()]))
    (happo, parameters), (mappo, expected) = results
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
    for a, b in zip(happo, mappo, strict=True):
        for key in b.keys() - {"grad_norm"}:
            assert a[key] == b[key], key
        assert a["factor"] == 1.0


class ExactGame:
    """A one-shot game for two agents with two actions, and HAPPO on exact expectations.

    All joint actions are in the batch once, and each advantage is weighted by the probability of
    its joint action, so that the means of the objectives are the expectations of the paper.
    """

    def __init__(self, payoff, first_action, **config):
        torch.manual_seed(0)
        self.payoff = torch.tensor(payoff)
        env = MatrixGameEnv(self.payoff, num_envs=4, seed=0)
        options = {"entropy_coeff": 0.0, "num_minibatches": 1, "fixed_order": True, **config}
        self.algorithm = make_algorithm("happo", env, 1000, options)
        bias = next(
            p for key, p in self.algorithm.policy.named_parameters() if "head.params.0.bias" in key
        )
        bias.data[:, 0] = first_action  # logit of action 0
        self.observed = env.reset()

    def probabilities(self):
        with torch.no_grad():
            logits = self.algorithm.policy.module[0](self.observed.copy())["agents", "logits"][0]
        return logits.softmax(-1)

    def value(self):
        first, second = self.probabilities()
        return float(first @ self.payoff @ second)

    def update(self):
        first, second = self.probabilities()
        actions = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        chosen = torch.stack([first[actions[:, 0]], second[actions[:, 1]]], -1)
        gain = self.payoff[actions[:, 0], actions[:, 1]] - self.value()
        data = self.observed.clone()
        data["agents", "action"] = actions
        data["agents", "action_log_prob"] = chosen.log()
        data["advantage"] = (4 * chosen.prod(-1) * gain).unsqueeze(-1)
        data["state_value"] = data["value_target"] = torch.zeros(4, 1)
        self.algorithm.learn(data)
        return data


def test_the_second_agent_answers_the_first_ones_new_policy():
    """Simultaneous updates move both agents from (0, 0) to -1; sequential ones move only one."""
    options = {"clip_epsilon": (0.99, 1e6), "lr": 5e-2, "epochs": 100}  # effectively no clipping
    game = ExactGame([[0.0, 2.0], [2.0, -1.0]], first_action=1.0, **options)
    start = game.value()
    game.update()
    first, second = game.probabilities()
    assert first[1] > 0.95
    assert second[0] > 0.95
    assert game.value() > max(start, 1.8)


@pytest.mark.parametrize("payoff", [[[0.0, 2.0], [2.0, -1.0]], [[3.0, -4.0], [0.0, 1.0]]])
def test_small_steps_never_lower_the_expected_payoff(payoff):
    game = ExactGame(payoff, first_action=0.2, lr=1e-3, epochs=3)
    values = [game.value()]
    for _ in range(60):
        game.update()
        values.append(game.value())
    steps = torch.tensor(values).diff()
    assert (steps > -1e-6).all()
    assert values[-1] > values[0] + 0.1


def test_the_last_factor_is_the_joint_ratio():
    """The sum of factor times advantage over joint actions is exactly the change of the value."""
    game = ExactGame([[0.0, 2.0], [2.0, -1.0]], first_action=0.5, lr=1e-2, epochs=5)
    before = game.value()
    data = game.update()
    factor = torch.ones(4, 1)
    for turn in game.algorithm.agents:
        factor = factor * turn.loss.ratio(turn.select(data))
    assert abs(game.value() - before) > 0.01
    # 4 p A / 4, summed: E_new[u] - E_old[u]
    change = (factor * data["advantage"]).mean().item()
    assert change == pytest.approx(game.value() - before, abs=1e-5)


def test_agents_of_all_groups_take_turns_in_random_orders():
    torch.manual_seed(0)
    env = make_env("vmas/simple_tag", reward="mean", num_envs=3, seed=0)
    sizes = [len(agents) for agents in env.group_map.values()]
    for fixed in (False, True):
        config = HAPPOConfig(**ONE_STEP, fixed_order=fixed)
        algorithm = HAPPO(env, 10_000, config)
        orders = [[(turn.group.name, turn.index) for turn in algorithm._order()] for _ in range(10)]
        in_order = [(g, i) for g, n in zip(env.group_map, sizes, strict=True) for i in range(n)]
        assert all(sorted(order) == sorted(in_order) for order in orders)
        assert (len({tuple(order) for order in orders}) == 1) == fixed
        assert (orders[0] == in_order) >= fixed


def test_squashed_actions_of_groups_have_their_own_bounds():
    torch.manual_seed(0)
    env = make_env("vmas/simple_tag", reward="mean", num_envs=5, seed=0)
    algorithm = HAPPO(env, 10_000, HAPPOConfig(**ONE_STEP, distribution="tanh_normal"))
    data = collect(env, algorithm.policy).reshape(-1)
    for turn in algorithm.agents:
        ratio = turn.loss.ratio(turn.select(data))
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-3, rtol=0)


def test_shared_parameters_are_refused():
    with pytest.raises(ValueError, match="expected `share_params` False, got True"):
        HAPPOConfig(share_params=True)


def test_standardized():
    advantage = torch.randn(50, 1) * 3 + 2
    result = standardized(advantage)
    assert result.mean().abs() < 1e-6
    torch.testing.assert_close(result.std(), torch.tensor(1.0))
    assert torch.equal(standardized(torch.ones(5, 1)), torch.zeros(5, 1))
    assert torch.equal(standardized(torch.full((1, 1), 2.0)), torch.full((1, 1), 2.0))


def test_one_sample_gives_finite_metrics():
    env = MatrixGameEnv(torch.eye(2), num_envs=1, seed=0)
    algorithm = HAPPO(env, 100, HAPPOConfig(epochs=2, num_minibatches=1))
    metrics = algorithm.update(collect(env, algorithm.policy, 1))
    assert all(TensorDict(metrics)[key].isfinite() for key in metrics)
