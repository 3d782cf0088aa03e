"""MAVEN: TD targets, latent, mutual information, learning and errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer.algorithms import MAVENConfig, make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, RecallEnv, climbing, make_env, with_memory
from torchrl_agentmixer.modules import LatentMixer, LatentUtilities
from torchrl_agentmixer.policies import LatentPolicy
from torchrl_agentmixer.training import evaluate

FEW = {"epochs": 1, "num_minibatches": 2}


def maven(env, total_frames=10_000, **config):
    return make_algorithm("maven", env, total_frames, {**FEW, **config})


def collect(env, policy, steps=8):
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


def grid(num_envs=6, **kwargs):
    return make_env("grid/predator_prey", num_envs=num_envs, seed=0, **kwargs)


def spread(module, std=1.0):
    """Scale parameters, so that outputs differ."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)


class TestMixer:
    def test_is_monotone_in_every_utility(self):
        torch.manual_seed(0)
        mixer = LatentMixer(3, 5, num_latents=4)
        spread(mixer)
        chosen = (10 * torch.randn(200, 3, 1)).requires_grad_()
        value = mixer(chosen, torch.randn(200, 5), torch.randint(4, (200, 1)))
        (slope,) = torch.autograd.grad(value.sum(), chosen)
        assert (slope >= 0).all()
        assert (slope > 0).float().mean() > 0.9

    def test_reads_state_and_latent(self):
        torch.manual_seed(0)
        mixer = LatentMixer(3, 5, num_latents=4)
        chosen, state = torch.randn(6, 3, 1), torch.randn(6, 5)
        zeros = torch.zeros(6, 1, dtype=torch.long)
        value = mixer(chosen, state, zeros)
        assert (mixer(chosen, state, zeros + 1) != value).all()
        assert (mixer(chosen, state + 1, zeros) != value).all()


@pytest.mark.parametrize("share_params", [False, True])
def test_each_latent_has_utilities_of_its_own(share_params):
    """The gradient of one latent's utilities is zero in the last layers of other latents."""
    torch.manual_seed(0)
    utilities = LatentUtilities(2, 4, 3, 5, hidden=(8,), share_params=share_params)
    observation = torch.randn(1, 2, 4).expand(5, -1, -1)
    values = utilities(observation, torch.arange(5).unsqueeze(-1))
    assert values.shape == (5, 2, 3)
    assert len(values[:, 0, 0].unique()) == 5
    whole = utilities.body(
        torch.cat([observation, torch.eye(2).expand(5, 2, 2)], -1) if share_params else observation
    )
    for z in range(5):
        torch.testing.assert_close(values[z], whole[z, :, 3 * z : 3 * z + 3])


def test_shared_utilities_tell_agents_apart():
    torch.manual_seed(0)
    utilities = LatentUtilities(2, 4, 3, 5, hidden=(8,), share_params=True)
    same = torch.ones(1, 2, 4)
    values = utilities(same, torch.zeros(1, 1, dtype=torch.long))
    assert (values[:, 0] != values[:, 1]).any()


class TestLatent:
    def test_is_kept_for_an_episode_and_drawn_anew_at_its_start(self):
        torch.manual_seed(0)
        env = RecallEnv(num_envs=50, delay=2, seed=0)  # episodes of four steps
        algorithm = maven(env)
        data = collect(env, algorithm.policy, steps=12)
        latent = data["latent"].squeeze(-1).unflatten(1, (3, 4))  # [envs, episodes, steps]
        starts = data["is_init"].squeeze(-1).unflatten(1, (3, 4))
        assert starts[..., 0].all()
        assert not starts[..., 1:].any()
        assert (latent == latent[..., :1]).all()
        assert (latent[:, 0, 0] != latent[:, 1, 0]).float().mean() > 0.7  # 7/8 if uniform
        assert set(latent.flatten().tolist()) == set(range(8))
        assert torch.equal(data["next", "latent"], data["latent"])

    def test_continues_over_batches(self):
        torch.manual_seed(0)
        env = with_memory(grid(), (algorithm := maven(grid())).policy)
        first = env.rollout(5, algorithm.policy)
        then = first[:, -1]["next"].exclude("reward")
        second = env.rollout(5, algorithm.policy, auto_reset=False, tensordict=then)
        assert not second["is_init"].any()
        assert torch.equal(second["latent"], first["latent"])

    def test_follows_the_hierarchical_policy(self):
        torch.manual_seed(0)
        env = RecallEnv(num_envs=20_000, n_cues=2, delay=0, seed=0)
        algorithm = maven(env, num_latents=3)
        spread(algorithm.policy.latent_logits, 0.7)
        data = with_memory(env, algorithm.policy).reset()
        drawn = algorithm.policy(data.copy())["latent"].squeeze(-1)
        expected = Categorical(logits=algorithm.policy.latent_logits(data["state"])).probs
        for cue in (0, 1):
            there = data["state"][:, cue] == 1
            share = torch.bincount(drawn[there], minlength=3) / there.sum()
            torch.testing.assert_close(share, expected[there][0], atol=0.02, rtol=0)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            mode = algorithm.policy(data.copy())["latent"].squeeze(-1)
        assert torch.equal(mode, expected.argmax(-1))
        executed = algorithm.execution_policy(data.copy())["latent"].squeeze(-1)
        assert torch.equal(executed, mode)

    def test_the_state_is_read_at_the_start_alone(self):
        torch.manual_seed(0)
        env = grid()
        algorithm = maven(env)
        spread(algorithm.policy.latent_logits)
        data = with_memory(env, algorithm.policy).reset()
        data["is_init"].zero_()
        expected = algorithm.execution_policy(data.copy())["agents", "action"]
        data["state"].fill_(float("nan"))
        assert torch.equal(algorithm.execution_policy(data)["agents", "action"], expected)


class TestExploration:
    def masked(self, epsilon, num_envs=3000):
        env = MatrixGameEnv(torch.randn(2, 4), num_envs=num_envs, seed=0)
        algorithm = maven(env, epsilon=epsilon)
        return collect(env, algorithm.policy, 1)["agents", "action"][:, 0], algorithm, env

    def test_explores_uniformly_among_legal_actions(self):
        torch.manual_seed(0)
        action, _, _ = self.masked(1.0)
        assert (torch.bincount(action[:, 0]) / 3000).tolist() == pytest.approx([0.5] * 2, abs=0.05)
        assert (torch.bincount(action[:, 1]) / 3000).tolist() == pytest.approx([0.25] * 4, abs=0.05)

    def test_greedy_takes_the_best_legal_action(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.randn(2, 4), num_envs=50, seed=0)
        algorithm = maven(env, epsilon=0.0)
        with torch.no_grad():  # a masked action of agent 0 has the highest utility
            head = algorithm.policy.utilities.module.body
            bias = next(p for p in head.parameters() if p.shape[-1] == 8 * 4 and p.ndim == 2)
            bias.unflatten(-1, (8, 4))[0, :, 3] += 100.0
            bias.unflatten(-1, (8, 4))[0, :, 1] += 50.0
        for policy in (algorithm.policy, algorithm.execution_policy):
            data = collect(env, policy, 1)
            assert (data["agents", "action_value"][..., 0, :].argmax(-1) == 3).all()
            assert (data["agents", "action"][..., 0] == 1).all()

    def test_share_of_exploring_actions(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(climbing(), num_envs=20_000, seed=0)
        algorithm = maven(env, epsilon=0.3)
        data = collect(env, algorithm.policy, 1)
        greedy = data["agents", "action_value"].argmax(-1)
        other = (data["agents", "action"] != greedy).float().mean((0, 1))
        assert other.tolist() == pytest.approx([0.2, 0.2], abs=0.015)  # 0.3 of 2 in 3
        both = (data["agents", "action"] != greedy).all(-1).float().mean()
        assert both.item() == pytest.approx(0.04, abs=0.01)  # agents explore independently

    def test_epsilon_follows_frames(self):
        env = MatrixGameEnv(climbing(), num_envs=10, seed=0)
        algorithm = maven(env, 100, epsilon={"start": 1.0, "end": 0.2, "until": 0.5})
        seen = [algorithm.update(collect(env, algorithm.policy, 1))["epsilon"] for _ in range(8)]
        expected = [1.0, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2, 0.2]
        assert seen == pytest.approx(expected, abs=1e-6)

    def test_modes_do_not_explore(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(climbing(), num_envs=100, seed=0)
        algorithm = maven(env, epsilon=1.0)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            data = collect(env, algorithm.policy, 1)
        assert torch.equal(data["agents", "action"], data["agents", "action_value"].argmax(-1))
        executed = collect(env, algorithm.execution_policy, 1)["agents", "action"]
        assert torch.equal(executed, data["agents", "action"])


class TestTarget:
    """TD loss against the equation, with masks, terminations, time limits and other targets."""

    def transitions(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.randn(2, 3), num_envs=2, seed=0)
        algorithm = maven(env, gamma=0.9, num_latents=4)
        spread(algorithm.policy.utilities)
        spread(algorithm.mixer, 0.5)
        for name, parameter in algorithm.loss.td.named_buffers():
            if name.startswith("target_") or "target" in name:
                parameter.data.normal_(std=0.5)

        def side():
            mask = torch.rand(6, 2, 3) < 0.5
            mask[..., 1] = True
            agents = {"observation": torch.randn(6, 2, 1), "action_mask": mask}
            return {"agents": TensorDict(agents, [6, 2]), "state": torch.randn(6, 1)}

        latent = torch.randint(4, (6, 1))
        data = TensorDict({**side(), "latent": latent}, [6])
        legal = data["agents", "action_mask"].float()
        data["agents", "action"] = Categorical(probs=legal).sample()
        terminated = torch.tensor([True, True, False, False, False, False]).unsqueeze(-1)
        done = terminated | torch.tensor([False, False, True, True, False, False]).unsqueeze(-1)
        ends = {"reward": torch.randn(6, 1), "done": done, "terminated": terminated}
        data["next"] = TensorDict({**side(), "latent": latent, **ends}, [6])
        return algorithm, data

    def value(self, params, algorithm, data, action):
        utilities, mixer = (algorithm.policy.utilities.module, algorithm.mixer.module)
        latent = data["latent"]
        with params[0].to_module(algorithm.policy.utilities), params[1].to_module(algorithm.mixer):
            values = utilities(data["agents", "observation"], latent)
            if action is None:
                action = values.masked_fill(~data["agents", "action_mask"], -1e9).argmax(-1)
            return mixer(values.gather(-1, action.unsqueeze(-1)), data["state"], latent)

    def parameters(self, algorithm, prefix=""):
        loss = algorithm.loss.td
        local = getattr(loss, f"{prefix}local_value_network_params")["module", "0"]
        return local.data, getattr(loss, f"{prefix}mixer_network_params").data

    def test_is_that_of_the_equation(self):
        algorithm, data = self.transitions()
        with torch.no_grad():
            now = self.value(self.parameters(algorithm), algorithm, data, data["agents", "action"])
            after = self.value(self.parameters(algorithm, "target_"), algorithm, data["next"], None)
        going_on = (~data["next", "terminated"]).float()
        target = data["next", "reward"] + 0.9 * going_on * after
        expected = (now - target).square().mean()
        torch.testing.assert_close(algorithm.loss.td(data.clone())["loss"], expected)

    def test_no_future_after_an_end_and_one_after_a_time_limit(self):
        algorithm, data = self.transitions()
        changed = data.clone()
        changed["next", "state"] += 1.0
        for index, differs in ((slice(0, 2), False), (slice(2, 4), True), (slice(4, 6), True)):
            before, after = (algorithm.loss.td(d[index].clone())["loss"] for d in (data, changed))
            assert (before != after) == differs

    def test_illegal_actions_do_not_enter_the_maximum(self):
        algorithm, data = self.transitions()
        data["next", "terminated"].fill_(False)
        mask = data["next", "agents", "action_mask"]
        before = algorithm.loss.td(data.clone())["loss"]
        mask.fill_(True)
        assert algorithm.loss.td(data.clone())["loss"] != before

    def test_targets_follow_at_their_rate(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(climbing(), num_envs=8, seed=0)
        algorithm = maven(env, target_rate=0.25, num_minibatches=1, lr=0.1)
        old = [x.clone() for x in algorithm.loss.td.target_mixer_network_params.values(True, True)]
        algorithm.update(collect(env, algorithm.policy, 1))
        new = algorithm.loss.td.mixer_network_params.values(True, True)
        target = algorithm.loss.td.target_mixer_network_params.values(True, True)
        for start, end, follows in zip(old, new, target, strict=True):
            assert (start != end).any()
            torch.testing.assert_close(follows.data, start + 0.25 * (end.data - start))


class TestInformation:
    def trained(self, distinct, steps=200):
        """The bound after training the discriminator on utilities that depend on z, or not."""
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.eye(3), num_envs=2, seed=0)
        algorithm = maven(env, num_latents=3)
        latent = torch.randint(3, (3000, 1))
        utilities = torch.randn(3000, 2, 3)
        if distinct:  # agent 1 prefers action z
            utilities[:, 1] += 5 * torch.eye(3)[latent.squeeze(-1)]
        data = TensorDict({"state": torch.ones(3000, 1), "latent": latent}, [3000])
        data["agents", "action_value"] = utilities
        adam = torch.optim.Adam(algorithm.loss.discriminator.parameters(), lr=1e-2)
        for _ in range(steps):
            loss, information = algorithm.loss.information(data)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return information.item()

    def test_is_there_where_behavior_tells_of_the_latent(self):
        assert 0.8 * math.log(3) < self.trained(distinct=True) <= math.log(3)

    def test_is_about_zero_where_behavior_is_the_same(self):
        assert abs(self.trained(distinct=False)) < 0.1
        assert self.trained(distinct=False, steps=1) < 0.01

    def learned(self, coeff):
        """With equal payoffs, only the bonus makes behavior diverse."""
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.zeros(3, 3), num_envs=100, seed=0)
        algorithm = maven(env, information_coeff=coeff, num_latents=3, epochs=5, lr=1e-2)
        with torch.no_grad():  # behavior does not depend on z
            for parameter in algorithm.policy.utilities.parameters():
                if parameter.shape[-1] == 9 or parameter.shape[-2:-1] == (9,):
                    parameter.zero_()
        for _ in range(10):
            metrics = algorithm.update(collect(env, algorithm.policy, 1))
        return metrics["information"]

    def test_the_bonus_makes_behavior_differ(self):
        assert self.learned(1.0) > 0.5
        assert self.learned(0.0) < 0.1

    def test_illegal_actions_tell_nothing(self):
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.randn(2, 3), num_envs=4, seed=0)
        algorithm = maven(env)
        spread(algorithm.loss.discriminator)
        data = algorithm.policy(with_memory(env, algorithm.policy).reset())
        before, _ = algorithm.loss.information(data)
        data["agents", "action_value"][:, 0, 2] += 7.0  # agent 0 has two actions
        after, _ = algorithm.loss.information(data)
        torch.testing.assert_close(after, before)


class TestHierarchicalPolicy:
    def test_episodes_are_put_together_over_batches(self):
        """Return, initial state and latent do not depend on how batches cut an episode."""
        torch.manual_seed(0)
        env = RecallEnv(num_envs=4, delay=2, seed=0)
        algorithm = maven(env)
        data = collect(env, algorithm.policy, steps=11)  # two episodes of four steps and three more
        data["next", "reward"] = torch.randn_like(data["next", "reward"])
        parts = [algorithm._ended_episodes(data[:, a:b]) for a, b in ((0, 3), (3, 6), (6, 11))]
        assert [len(part) for part in parts] == [0, 4, 4]
        for episodes, first in zip(parts[1:], (0, 4), strict=True):
            returns = data["next", "reward"][:, first : first + 4].sum((1, 2))
            torch.testing.assert_close(episodes["return"], returns)
            assert torch.equal(episodes["state"], data["state"][:, first])
            assert torch.equal(episodes["latent"], data["latent"][:, first])
            logits = algorithm.policy.latent_logits(episodes["state"])
            expected = Categorical(logits=logits).log_prob(episodes["latent"].squeeze(-1))
            torch.testing.assert_close(episodes["latent_log_prob"], expected)

    def improve(self, returns, **config):
        torch.manual_seed(0)
        env = MatrixGameEnv(climbing(), num_envs=4, seed=0)
        algorithm = maven(env, num_latents=3, epochs=60, lr_latent=1e-3, **config)
        latent = torch.arange(3).repeat(100).unsqueeze(-1)
        episodes = TensorDict({"state": torch.ones(300, 1), "latent": latent}, [300])
        episodes["return"] = torch.tensor(returns)[latent.squeeze(-1)]
        episodes["latent_log_prob"] = torch.full((300,), -math.log(3))
        algorithm._learn_latent(episodes)
        return algorithm.policy.latent_logits(torch.ones(1, 1)).softmax(-1)[0].tolist()

    def test_prefers_the_latent_of_the_higher_return(self):
        probs = self.improve([0.0, 5.0, 1.0], latent_entropy_coeff=0.0)
        assert probs[1] == max(probs) > 0.38

    def test_clipping_holds_it_near_the_policy_it_was_drawn_by(self):
        held, free = (
            self.improve([0.0, 5.0, 1.0], latent_entropy_coeff=0.0, clip_epsilon=clip)[1]
            for clip in (0.2, 100.0)
        )
        assert held < free - 0.1

    def test_entropy_bonus_keeps_it_from_committing(self):
        free, held = (self.improve([0.0, 5.0, 1.0], latent_entropy_coeff=c)[1] for c in (0.0, 5.0))
        assert held < free - 0.03

    def test_the_latent_carries_what_the_first_state_shows(self):
        """z transmits the cue to memoryless agents: execution is not fully decentralized."""
        torch.manual_seed(0)
        env = RecallEnv(num_envs=50, n_cues=2, delay=1, seed=0)
        config = {"epochs": 10, "num_minibatches": 4, "lr": 5e-3, "lr_latent": 1e-2}
        algorithm = make_algorithm("maven", env, 40 * 50 * 12, config)
        for _ in range(20):
            algorithm.update(collect(env, algorithm.policy, steps=12))
        returns = evaluate(algorithm.execution_policy, env, max_steps=3).returns
        assert returns.mean() == 1.0


def test_checkpoint_goes_on_where_the_buffer_is_full():
    """The position of the ring buffer is part of the state."""
    torch.manual_seed(0)
    env = grid()
    algorithm = maven(env, replay_size=100)
    for _ in range(3):
        algorithm.update(collect(env, algorithm.policy))
    restored = maven(env, replay_size=100)
    restored.load_checkpoint_state(copy.deepcopy(algorithm.checkpoint_state()))
    assert len(restored.replay) == 100
    epsilons = [float(a.policy.exploration.eps) for a in (restored, algorithm)]
    assert epsilons[0] == epsilons[1] != 0.3
    batch = collect(env, algorithm.policy)
    metrics = []
    for method in (algorithm, restored):
        torch.manual_seed(1)
        metrics.append(method.update(batch.clone()))
    assert metrics[0] == metrics[1]
    held = [method.replay.state_dict()["data"]["state"] for method in (algorithm, restored)]
    assert torch.equal(*held)


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("vmas/predator_prey", {}, "discrete actions, got continuous ones of group 'agents'"),
            (
                "vmas/simple_tag",
                {"continuous_actions": False, "reward": "mean"},
                r"one group of agents, got \['adversary', 'agent'\]",
            ),
        ],
    )
    def test_environments_that_are_not_supported(self, name, options, message):
        env = make_env(name, num_envs=2, **options)
        with pytest.raises(ValueError, match=message):
            make_algorithm("maven", env, 100)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"num_latents": 0},
            {"epochs": 0},
            {"replay_size": 0},
            {"temperature": 0.0},
            {"target_rate": 1.5},
            {"epsilon": 1.5},
            {"epsilon": {"start": 1.0, "end": -0.1}},
        ],
    )
    def test_values_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=f"expected `{next(iter(wrong))}`"):
            MAVENConfig(**wrong)

    def test_another_number_of_environments(self):
        algorithm = maven(grid(6))
        algorithm.update(collect(grid(6), algorithm.policy))
        with pytest.raises(ValueError, match=r"6 environments.*got \(3, 8\)"):
            algorithm.update(collect(grid(3), algorithm.policy))

    def test_state_of_another_method_or_size(self):
        algorithm = maven(grid())
        other = make_algorithm("mappo", grid(), 100)
        for state in (other.checkpoint_state(), maven(grid(), num_latents=3).checkpoint_state()):
            with pytest.raises(ValueError, match="MAVEN: expected the state of the same method"):
                algorithm.load_checkpoint_state(state)


def test_exploration_is_on_the_device_of_the_networks():
    policy = maven(grid()).policy
    networks = [module.to("meta") for module in (policy.utilities, policy.latent_logits)]
    moved = LatentPolicy(*networks, policy.group, num_latents=policy.num_latents)
    assert moved.exploration.eps.is_meta
    assert moved.exploration.spec.device == torch.device("meta")
