"""AIL: losses against independent transcriptions, behavior mixture, and learning."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from torchrl_agentmixer.algorithms import AIL, AILConfig, Schedule, make_algorithm
from torchrl_agentmixer.envs import MatrixGameEnv, make_env, with_memory
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules.central_actor import CentralActor

ONE_STEP = {"epochs": 1, "num_minibatches": 1}
MASKED_PAYOFF = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])  # 1, 2 and 3 actions


def sharpen(algorithm, scale=1.0):
    """Scale outputs, so that expert and students differ from each other and between states."""
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in algorithm.policy.named_parameters():
            if "head" in key:
                parameter.normal_(std=scale)
    return algorithm


def ail(env, **config):
    torch.manual_seed(0)
    return AIL(env, 10_000, AILConfig(**{**ONE_STEP, **config}))


def collect(env, algorithm, steps=8):
    policy = algorithm.policy
    return with_memory(env, policy).rollout(steps, policy, break_when_any_done=False).detach()


def by_hand(policy, data, group="agents"):
    """Each agent's distribution, from the network's outputs."""
    output = policy.module[0](data.copy())
    if (group, "logits") not in output.keys(True):
        return Normal(output[group, "loc"], output[group, "scale"])
    logits = output[group, "logits"]
    mask = data[group].get("action_mask", None)
    return Categorical(
        logits=logits if mask is None else logits.masked_fill(~mask, -torch.inf),
        validate_args=False,
    )


def kl_by_hand(expert, student):
    r"""Eq. 6 of a product policy: the sum over agents of E_expert[log expert - log student]."""
    if isinstance(expert, Normal):
        ratio = (expert.scale / student.scale).square()
        moved = ((expert.loc - student.loc) / student.scale).square()
        return 0.5 * (ratio + moved - 1 - ratio.log()).sum((-1, -2))
    p, q = expert.probs, student.probs
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum((-1, -2))


ENVS = {
    "discrete": lambda: make_env("grid/bridge_crossing", num_envs=20, seed=0),
    "masked": lambda: MatrixGameEnv(MASKED_PAYOFF, num_envs=20, seed=0),
    "continuous": lambda: make_env("vmas/predator_prey", num_envs=20, seed=0),
}


@pytest.fixture(params=sorted(ENVS))
def env(request):
    return ENVS[request.param]()


class TestStudentsLoss:
    def test_is_eq_6(self, env):
        algorithm = sharpen(ail(env), 0.3)
        data = collect(env, algorithm)
        expert, student = (
            by_hand(policy, data) for policy in (algorithm.policy.expert, algorithm.policy.students)
        )
        expected = kl_by_hand(expert, student)
        assert expected.min() >= 0
        assert expected.max() > 0.01
        torch.testing.assert_close(
            algorithm.distillation.divergence(data), expected, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            algorithm.auxiliary_loss(data), expected.mean(), rtol=1e-4, atol=1e-5
        )

    def test_is_the_sum_over_joint_actions(self):
        env = ENVS["masked"]()
        algorithm = sharpen(ail(env))
        data = collect(env, algorithm, steps=1)[:1].reshape(-1)
        joint = torch.tensor(list(product(range(1), range(2), range(3))))
        dists = (
            policy.get_dist(data.copy())
            for policy in (algorithm.policy.expert, algorithm.policy.students)
        )
        p, q = (dist.log_prob(joint).exp() for dist in dists)
        assert p.sum().item() == pytest.approx(1.0, abs=1e-6)
        torch.testing.assert_close(
            algorithm.distillation.divergence(data), (p * (p / q).log()).sum()[None]
        )

    def test_no_gradient_reaches_the_expert(self, env):
        algorithm = sharpen(ail(env), 0.3)
        data = collect(env, algorithm)
        algorithm.auxiliary_loss(data).backward()
        assert all(p.grad is None for p in algorithm.policy.expert.parameters())
        assert all(p.grad is None for p in algorithm.critic.parameters())
        grads = [p.grad for p in algorithm.policy.students.parameters()]
        assert any(grad is not None and (grad != 0).any() for grad in grads)

    def test_ppo_leaves_the_students_alone(self, env):
        algorithm = sharpen(ail(env), 0.3)
        data = collect(env, algorithm)
        algorithm.advantage(data)
        losses = algorithm.loss(data.reshape(-1))
        (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
        assert all(p.grad is None for p in algorithm.policy.students.parameters())
        assert all(p.grad is not None for p in algorithm.policy.expert.parameters())

    def test_its_optimum_is_the_average_expert(self):
        """Eq. 7: students that do not observe the state learn the expert's frequencies."""
        env = make_env("grid/bridge_crossing", num_envs=500, small_prob=0.6, seed=0)
        algorithm = sharpen(ail(env), 0.15)
        data = env.reset()
        optimizer = torch.optim.Adam(algorithm.policy.students.parameters(), lr=2e-2)
        for _ in range(300):
            optimizer.zero_grad()
            algorithm.auxiliary_loss(data).backward()
            optimizer.step()
        with torch.no_grad():
            expert, student = (
                by_hand(policy, data).probs
                for policy in (algorithm.policy.expert, algorithm.policy.students)
            )
        for agent, big in product((0, 1), (0.0, 1.0)):
            alike = data["agents", "observation"][:, agent, -1] == big
            mean = expert[alike, agent].mean(0)
            torch.testing.assert_close(student[alike, agent][0], mean, atol=0.03, rtol=0)
            assert expert[alike, agent].std(0).max() > 0.05  # who saw the other's size


class TestMixture:
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_log_prob_is_exact(self, env, share):
        algorithm = sharpen(ail(env, expert_share=share), 0.3)
        data = collect(env, algorithm)
        action = data["agents", "action"]
        log_probs = []
        for policy in (algorithm.policy.expert, algorithm.policy.students):
            each = by_hand(policy, data).log_prob(action)
            log_probs.append(each.flatten(2).sum(-1))
        expert, student = log_probs
        expected = (share * expert.exp() + (1 - share) * student.exp()).log()
        torch.testing.assert_close(data["action_log_prob"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(data["expert_log_prob"], expert, rtol=1e-4, atol=1e-4)
        assert (expert - student).abs().max() > 0.1

    def test_frequencies_match_the_probability(self):
        env = MatrixGameEnv(MASKED_PAYOFF, num_envs=20_000, seed=0)
        algorithm = sharpen(ail(env, expert_share=0.3), 0.15)
        data = collect(env, algorithm, steps=1).reshape(-1)
        code = (data["agents", "action"] * torch.tensor([0, 3, 1])).sum(-1)
        for joint in range(6):
            here = code == joint
            probability = data["action_log_prob"][here][0].exp().item()
            assert here.float().mean().item() == pytest.approx(probability, abs=0.02)

    def test_the_team_follows_one_of_the_two(self):
        """Expert and students with different deterministic actions: no step mixes them."""
        env = MatrixGameEnv(torch.eye(3), num_envs=4000, seed=0)
        algorithm = ail(env, expert_share=0.3)
        with torch.no_grad():
            for policy, action in ((algorithm.policy.expert, 0), (algorithm.policy.students, 2)):
                for key, parameter in policy.named_parameters():
                    if "head" in key:
                        sure = torch.zeros(2, 3)
                        sure[:, action] = 50.0
                        is_bias = parameter.numel() == 6
                        parameter.copy_(sure.view_as(parameter) if is_bias else 0 * parameter)
        action = collect(env, algorithm, steps=1)["agents", "action"].squeeze(1)
        assert (action[:, 0] == action[:, 1]).all()
        assert (action == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)

    def test_its_deterministic_actions_are_the_experts(self, env):
        algorithm = sharpen(ail(env, expert_share=0.0), 0.3)
        data = env.reset()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = algorithm.policy(data.copy())["agents", "action"]
        expert = by_hand(algorithm.policy.expert, data)
        assert torch.equal(action, expert.mode)
        executed = algorithm.execution_policy(data.copy())["agents", "action"]
        mode = by_hand(algorithm.policy.students, data).mode
        if mode.is_floating_point():  # executed within the bounds of the actions
            mode = mode.clamp(-1, 1)
        assert torch.equal(executed, mode)

    def test_masks_are_respected(self):
        env = ENVS["masked"]()
        algorithm = sharpen(ail(env, expert_share=0.5), 3.0)
        action = collect(env, algorithm, steps=50)["agents", "action"]
        assert (action < torch.tensor([1, 2, 3])).all()
        assert (algorithm.policy.expert.get_dist(env.reset()).probs[:, 0, 1:] == 0).all()

    def test_share_follows_frames(self):
        env = make_env("matrix/climbing", num_envs=10)
        share = {"start": 1.0, "end": 0.0, "until": 0.5}
        algorithm = AIL(env, 100, AILConfig(**ONE_STEP, expert_share=share))
        seen = []
        for _ in range(8):
            before = algorithm.policy.expert_share.item()
            metrics = algorithm.update(collect(env, algorithm, steps=1))
            assert metrics["expert_share"] == pytest.approx(before)
            seen.append(before)
        assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], abs=1e-6)

    def test_default_share_goes_from_one_to_zero(self):
        schedule = AILConfig().expert_share
        assert (schedule(0.0), schedule(1.0)) == (1.0, 0.0)


class TestExpertsPPO:
    def test_with_the_expert_alone_it_is_plain_ppo(self):
        """beta = 1: TorchRL's GAE, and TorchRL's clipped loss with standardized advantages."""
        env = make_env("grid/bridge_crossing", num_envs=6, seed=0)
        algorithm = sharpen(ail(env, expert_share=1.0))
        data = collect(env, algorithm, steps=20)
        gae = GAE(gamma=0.99, lmbda=0.95, value_network=algorithm.critic)
        expected = gae(data.copy())
        algorithm.advantage(data)
        assert (data["expert_weight"] == 1).all()
        torch.testing.assert_close(data["value_target"], expected["value_target"])
        raw = expected["advantage"]
        torch.testing.assert_close(data["advantage"], (raw - raw.mean()) / raw.std())

    def test_advantages_are_v_trace(self):
        """The recursion in plain numbers, with an end of an episode."""
        env = make_env("grid/bridge_crossing", num_envs=6, seed=0)
        algorithm = sharpen(ail(env, expert_share=0.3))
        data = collect(env, algorithm, steps=20)
        algorithm.advantage(data)
        after = data["next"]
        assert after["done"].any()
        assert (after["done"] & ~after["terminated"]).any()
        with torch.no_grad():
            value = algorithm.critic(data.copy())["state_value"]
            next_value = algorithm.critic(after.copy())["state_value"]
        weight = (data["expert_log_prob"] - data["action_log_prob"]).exp()
        assert weight.max() > 1.5  # truncated below
        assert weight.min() < 0.5
        raw = torch.zeros(6, 20)
        target = torch.zeros(6, 20)
        for row in range(6):
            later = 0.0
            for t in reversed(range(20)):
                bootstrap = 0.0 if after["terminated"][row, t] else next_value[row, t].item()
                delta = after["reward"][row, t].item() + 0.99 * bootstrap - value[row, t].item()
                raw[row, t] = delta + (0.0 if after["done"][row, t] else 0.99 * 0.95 * later)
                rho = min(1.0, weight[row, t].item())
                later = rho * raw[row, t].item()
                target[row, t] = value[row, t].item() + later
        torch.testing.assert_close(data["value_target"].squeeze(-1), target, rtol=1e-4, atol=1e-4)
        standard = (raw - raw.mean()) / raw.std() * weight.clamp(max=1)
        torch.testing.assert_close(data["advantage"].squeeze(-1), standard, rtol=1e-3, atol=1e-4)

    def test_the_clipped_ratio_is_to_the_old_expert(self):
        env = make_env("grid/bridge_crossing", num_envs=20, seed=0)
        algorithm = sharpen(ail(env, expert_share=0.2))
        data = collect(env, algorithm)
        assert (data["expert_log_prob"] - data["action_log_prob"]).abs().max() > 0.5
        metrics = algorithm.update(data)
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["clip_fraction"] == 0.0
        assert metrics["expert_weight"] < 1.0

    def test_values_are_the_experts_however_the_students_act(self):
        """The expert is always right, the students are always wrong: the value is the expert's."""
        torch.manual_seed(0)
        env = MatrixGameEnv(torch.eye(2), num_envs=2000, seed=0)
        algorithm = ail(
            env, expert_share=0.5, lr=5e-3, epochs=5, num_minibatches=1, entropy_coeff=0.0
        )
        students = algorithm.policy.students
        with torch.no_grad():
            for policy, apart in ((algorithm.policy.expert, False), (students, True)):
                for key, parameter in policy.named_parameters():
                    if "head" in key:
                        sure = torch.tensor([[50.0, 0.0], [0.0, 50.0] if apart else [50.0, 0.0]])
                        is_bias = parameter.numel() == 4
                        parameter.copy_(sure.view_as(parameter) if is_bias else 0 * parameter)
        fixed = list(algorithm.policy.parameters())
        for parameter in fixed:
            parameter.requires_grad_(False)
        algorithm.auxiliary_loss = lambda minibatch: 0.0  # the students stay wrong
        for _ in range(40):
            data = collect(env, algorithm, steps=1)
            algorithm.update(data)
        assert data["next", "reward"].mean().item() == pytest.approx(0.5, abs=0.1)
        value = algorithm.critic(env.reset())["state_value"].mean().item()
        # The target is 1 for the expert's actions, and the value for actions improbable under it.
        assert value == pytest.approx(1.0, abs=0.1)


class TestLearning:
    def test_students_learn_a_cooperative_task_that_they_see(self):
        """Expert and students learn the best joint action of a game."""
        torch.manual_seed(0)
        env = make_env("matrix/climbing", num_envs=200, seed=0)
        algorithm = AIL(env, 40 * 200, AILConfig(lr=5e-3, epochs=4, num_minibatches=1))
        for _ in range(40):
            metrics = algorithm.update(collect(env, algorithm, steps=1))
        rewards = []
        for policy in (algorithm.policy, algorithm.execution_policy):
            with set_exploration_type(ExplorationType.DETERMINISTIC):
                rewards.append(env.rollout(1, policy)["next", "reward"].mean().item())
        assert rewards[0] == rewards[1] >= 5.0  # an equilibrium of the game
        assert metrics["divergence"] < 0.1

    def test_learns_continuous_actions(self):
        """One-step game with one state: the optimal action of every agent is 0.3."""
        torch.manual_seed(0)
        env = make_env("vmas/predator_prey", num_envs=6, seed=0)
        algorithm = make_algorithm(
            "ail", env, 20 * 120, {"lr": 3e-3, "epochs": 10, "num_minibatches": 1}
        )
        policy, data = algorithm.policy, env.rollout(1).expand(6, 20).clone()
        data["next", "done"] = data["next", "terminated"] = torch.ones(6, 20, 1, dtype=torch.bool)
        distances = {"expert": [], "students": []}
        for _ in range(20):
            with torch.no_grad():
                data.update(policy(data.clone()).select(*policy.out_keys))
            miss = (data["agents", "action"] - 0.3).square().sum((-1, -2))
            algorithm.update(data.set(("next", "reward"), -miss.unsqueeze(-1)))
            with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
                modes = {"expert": policy, "students": algorithm.execution_policy}
                for name, module in modes.items():
                    mode = module(data.clone())["agents", "action"]
                    distances[name].append((mode - 0.3).abs().mean().item())
        for name, values in distances.items():
            assert values[-1] < 0.5 * values[0], name

    def test_squashed_actions(self):
        torch.manual_seed(0)
        env = make_env("vmas/predator_prey", num_envs=6, seed=0)
        algorithm = sharpen(ail(env, distribution="tanh_normal", expert_share=0.5), 0.3)
        data = collect(env, algorithm)
        metrics = algorithm.update(data)
        assert all(torch.tensor(value).isfinite() for value in metrics.values())
        # Squashing both distributions does not change the divergence.
        with torch.no_grad():
            expert, student = (
                by_hand(policy, data)
                for policy in (algorithm.policy.expert, algorithm.policy.students)
            )
            divergence = algorithm.distillation.divergence(data)
        expected = kl_by_hand(expert, student)
        torch.testing.assert_close(divergence, expected, rtol=1e-4, atol=1e-4)

    def test_students_with_memory_read_it_and_the_expert_does_not(self):
        env = make_env("memory/recall", num_envs=5, seed=0)
        algorithm = sharpen(ail(env, memory_dim=4, sequence_length=4))
        assert not any("memory" in key for key in algorithm.policy.expert.in_keys)
        data = collect(env, algorithm)
        assert (data["next", "agents", "memory"] != 0).any()
        with set_recurrent_mode(True):
            algorithm.auxiliary_loss(data).backward()
        grads = {key: p.grad for key, p in algorithm.policy.students.named_parameters()}
        assert any("weight_hh" in key and (grad != 0).any() for key, grad in grads.items())


class TestRefusals:
    @pytest.mark.parametrize(
        "share", [1.5, -0.1, Schedule(1.0, -1.0), {"start": 2.0, "end": 0.0}], ids=str
    )
    def test_shares(self, share):
        with pytest.raises(ValueError, match=r"AILConfig: expected `expert_share` in \[0, 1\]"):
            AILConfig(expert_share=share)

    def test_a_state_of_another_size(self):
        group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        with pytest.raises(ValueError, match=r"state of shape \[\*B, 5\], got \(2, 6\)"):
            CentralActor([group], 5)(torch.zeros(2, 6))

    def test_an_environment_without_a_state(self):
        env = make_env("grid/bridge_crossing", num_envs=2)
        del env.observation_spec["state"]
        with pytest.raises(KeyError, match="state"):
            AIL(env, 100)

    def test_unknown_options(self):
        env = make_env("matrix/climbing", num_envs=2)
        with pytest.raises(ValueError, match=r"hyperparameter of ail 'beta'.*expert_share"):
            make_algorithm("ail", env, 100, {"beta": 0.5})
