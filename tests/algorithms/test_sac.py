"""AgentMixer with SAC, and MASAC: losses, reparameterized gradient, alpha and learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus
from torchrl.data import Bounded

from torchrl_agentmixer.algorithms import AgentMixerSACConfig, make_algorithm
from torchrl_agentmixer.algorithms.sac_base import _target_entropy
from torchrl_agentmixer.distributions import IGCTanhNormal
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.groups import AgentGroup


class SumEnv(TeamEnv):
    """One-step game: the reward is highest (0) if the actions add up to the observed number."""

    def __init__(self, num_envs, bound=1.0, seed=0):
        super().__init__(2, 1, 1, 1, num_envs=num_envs, seed=seed)
        self.full_action_spec["agents", "action"] = Bounded(-bound, bound, (num_envs, 2, 1))
        self._target = torch.zeros(num_envs)

    def _reset_where(self, mask):
        drawn = 2 * self._rand(*self.batch_size) - 1
        self._target = torch.where(mask, drawn, self._target)

    def _advance(self, actions):
        over = torch.ones(self.batch_size, dtype=torch.bool)
        return -(actions.sum((-1, -2)) - self._target).square(), over, ~over

    def _observe(self):
        return self._target[:, None, None].expand(-1, 2, 1).clone(), self._target[:, None].clone()


METHODS = ("agent_mixer_sac", "masac", "hasac")
EVERY = pytest.mark.parametrize("method", METHODS)


def sac(env, method="agent_mixer_sac", **options):
    return make_algorithm(method, env, 10_000, options)


def collect(env, algorithm, steps=4):
    return env.rollout(steps, algorithm.policy, break_when_any_done=False).detach()


@pytest.fixture(params=METHODS)
def algorithm(request):
    torch.manual_seed(0)
    env = make_env("vmas/predator_prey", num_envs=3, seed=0)
    options = {"gradient_steps": 1, "critic_hidden": (16,), "alpha_init": 0.3}
    if request.param == "agent_mixer_sac":
        options["head_gain"] = 2.0
    algorithm = sac(env, request.param, **options)
    algorithm.name = request.param
    with torch.no_grad():  # target critics differ from the critics, as in training
        for value in algorithm.loss.target_qvalue_network_params.values(True, True):
            value += 0.1 * torch.randn_like(value)
    algorithm.data = collect(env, algorithm).reshape(-1)
    return algorithm


def draw_by_hand(policy, data):
    """A reparameterized joint action, and its log-probability, from loc and scale."""
    written = data.copy()
    for module in policy.module[:-1]:  # actors, and AgentMixer's Policy Modifier
        written = module(written)
    name = "joint_scale" if len(policy.module) == 3 else "scale"
    loc, scale = written["agents", "loc"], written["agents", name]
    noise = torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
    x = loc + scale * noise
    log_normal = -0.5 * noise**2 - scale.log() - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - x - softplus(-2 * x))
    return x.tanh(), (log_normal - log_slope).sum((-1, -2))


def critics_by_hand(algorithm, data, action, *, target):
    """Both critics' values of a joint action, ``[2, N]``."""
    kind = "target_qvalue_network_params" if target else "qvalue_network_params"
    params = getattr(algorithm.loss, kind)
    values = []
    for k in range(2):
        x = torch.cat([data["state"], action.flatten(-2)], -1)
        net = params[k]["module", "value", "net"]
        x = torch.nn.functional.linear(x, net["0", "weight"], net["0", "bias"]).relu()
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], net["2", "weight"], net["2", "bias"])
        values.append(torch.nn.functional.linear(x, net["3", "weight"], net["3", "bias"]))
    return torch.stack(values).squeeze(-1)


def gradients(loss, parameters):
    grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros(()) if grad is None else grad for grad in grads]


class TestLosses:
    @pytest.mark.parametrize("part", ["actors", "modifier"])
    def test_it_learns_through_the_joint_sample(self, algorithm, part):
        """Value and gradient against an independent transcription."""
        data, policy = algorithm.data, algorithm.policy
        if part == "modifier" and algorithm.name != "agent_mixer_sac":
            pytest.skip("has no Policy Modifier")
        module = policy.module[0] if part == "actors" else policy.modifier
        torch.manual_seed(1)
        loss, _ = algorithm.loss.actor_loss(data)
        torch.manual_seed(1)
        action, log_prob = draw_by_hand(policy, data)
        value = critics_by_hand(algorithm, data, action, target=False).amin(0)
        expected = (0.3 * log_prob - value).mean()
        torch.testing.assert_close(loss, expected)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        ours, theirs = (gradients(x, trained) for x in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        assert sum(grad.abs().sum() for grad in ours) > 1e-2

    def test_a_critic_is_of_the_joint_action(self, algorithm):
        """Both values depend on every entry of every agent's action."""
        data = algorithm.data
        action = data["agents", "action"].clone().requires_grad_()
        loss, _ = algorithm.loss.qvalue_v2_loss(data.set(("agents", "action"), action))
        (grad,) = torch.autograd.grad(loss, action)
        assert grad.shape == (12, 3, 2)
        assert (grad != 0).all()
        values = critics_by_hand(algorithm, data, action, target=False)
        assert not torch.isclose(values[0], values[1]).any()

    def test_critics_learn_the_soft_value(self, algorithm):
        """Targets bootstrap at time limits, and not at terminations."""
        data = algorithm.data
        data["next", "terminated"] = torch.arange(12)[:, None] % 3 == 0
        data["next", "done"] = torch.arange(12)[:, None] % 2 == 0
        torch.manual_seed(1)
        loss, _ = algorithm.loss.qvalue_v2_loss(data)
        torch.manual_seed(1)
        with torch.no_grad():
            action, log_prob = draw_by_hand(algorithm.policy, data["next"])
            after = critics_by_hand(algorithm, data["next"], action, target=True).amin(0)
        goes_on = ~data["next", "terminated"].squeeze(-1)
        reward = data["next", "reward"].squeeze(-1)
        target = reward + 0.99 * goes_on * (after - 0.3 * log_prob)
        values = critics_by_hand(algorithm, data, data["agents", "action"], target=False)
        torch.testing.assert_close(loss, (values - target).square().mean(1).sum())

    @EVERY
    def test_alpha_keeps_the_target_entropy(self, method):
        """Alpha falls if the entropy is above its target, and rises if it is below."""
        torch.manual_seed(0)
        for target, falls in ((-8.0, True), (8.0, False)):
            env = SumEnv(20)
            options = {"gradient_steps": 3, "target_entropy": target / 2, "batch_size": 8}
            algorithm = sac(env, method, **options)
            alphas = [algorithm.update(collect(env, algorithm, 1))["alpha"] for _ in range(2)]
            assert (alphas[1] < alphas[0] < 1.0) if falls else (alphas[1] > alphas[0] > 1.0)

    @pytest.mark.parametrize(("n_agents", "action_dim"), [(6, 1), (2, 4), (17, 1)])
    def test_target_entropy_is_minus_the_dimensions_of_the_team(self, n_agents, action_dim):
        one = torch.ones(n_agents, action_dim)
        options = {"n_agents": n_agents, "action_dim": action_dim, "discrete": False}
        group = AgentGroup("agents", observation_dim=1, **options, low=-one, high=one)
        assert _target_entropy(group, -1.0) == -n_agents * action_dim
        # Other action bounds do not change the difference from the target.
        loc, scale = 0.3 * one, 0.2 * one
        low, high = -0.4 * one, torch.rand_like(one) + 0.1
        unit = IGCTanhNormal(loc, scale).entropy() + n_agents * action_dim
        other = AgentGroup("agents", observation_dim=1, **options, low=low, high=high)
        entropy = IGCTanhNormal(loc, scale, low=low, high=high).entropy()
        torch.testing.assert_close(entropy - _target_entropy(other, -1.0), unit)


class TestLearning:
    @EVERY
    def test_agents_learn_to_add_up(self, method):
        """The reward needs both agents; the return without actions is -1/3."""
        torch.manual_seed(0)
        env = SumEnv(50, bound=1.5)
        options = {"lr": 3e-3, "gradient_steps": 10, "batch_size": 100, "critic_hidden": (64,)}
        if method == "agent_mixer_sac":
            options["lr_modifier"] = 3e-3
        algorithm = sac(env, method, alpha_init=0.1, **options)
        for _ in range(25):
            metrics = algorithm.update(collect(env, algorithm, 1))
        mean = env.rollout(1, algorithm.execution_policy)["next", "reward"].mean().item()
        assert mean > -0.05
        assert metrics.get("mode_agreement", 1.0) == 1.0

    def test_scales_of_independent_actors_depend_on_the_observation_and_learn(self):
        torch.manual_seed(0)
        env = SumEnv(50)
        algorithm = sac(env, "masac", lr=1e-2, gradient_steps=20, alpha_init=1e-3)
        first = algorithm.policy.get_dist(env.reset()).scale
        assert (first - 1.0).abs().max() < 0.05  # half of the bound
        for _ in range(5):
            algorithm.update(collect(env, algorithm, 1))
        scale = algorithm.policy.get_dist(env.reset()).scale
        assert scale.mean() < 0.9
        assert (scale.std(0) > 1e-3).all()
        assert scale.max() < 2.0

    def test_methods_differ_only_in_method(self):
        """The same critics, and the same networks of the means."""
        env = SumEnv(2)
        shapes = []
        for method in METHODS:
            algorithm = sac(env, method)
            means = algorithm.execution_policy.module[0].module
            networks = [means.body, means.head, algorithm.loss.qvalue_network_params]
            shapes.append([tuple(p.shape) for n in networks for p in n.parameters()])
        assert shapes[0] == shapes[1] == shapes[2]

    def test_gradient_steps_follow_a_batch(self):
        env = SumEnv(5)
        algorithm = sac(env, gradient_steps=7, batch_size=3)
        sizes = []
        step = algorithm._sac_step
        algorithm._sac_step = lambda data: sizes.append(data.shape) or step(data)
        algorithm.update(collect(env, algorithm, 1))
        assert sizes == [(3,)] * 7

    @EVERY
    def test_targets_follow(self, method):
        """Target parameters move by the fraction ``target_rate`` per step."""
        torch.manual_seed(0)
        env = SumEnv(5)
        algorithm = sac(env, method, gradient_steps=1, target_rate=0.25, lr=1e-2)
        loss = algorithm.loss
        before = loss.target_qvalue_network_params.clone()
        algorithm.update(collect(env, algorithm, 1))
        now, targets = loss.qvalue_network_params, loss.target_qvalue_network_params
        for key, value in targets.items(True, True):
            torch.testing.assert_close(value, before[key].lerp(now[key], 0.25))


class TestRefusals:
    @EVERY
    def test_discrete_actions(self, method):
        env = make_env("matrix/climbing", num_envs=2)
        with pytest.raises(
            ValueError, match="expected continuous actions, got discrete ones of group 'agents'"
        ):
            sac(env, method)

    @EVERY
    def test_several_groups(self, method):
        env = make_env("vmas/simple_tag", reward="mean", num_envs=2)
        with pytest.raises(ValueError, match=r"one group of agents, got \['adversary', 'agent'\]"):
            sac(env, method)

    @EVERY
    def test_an_environment_without_a_state(self, method):
        env = SumEnv(2)
        del env.observation_spec["state"]
        with pytest.raises(KeyError, match="state"):
            sac(env, method)

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ({"gradient_steps": 0}, "`gradient_steps` >= 1"),
            ({"batch_size": 0}, "`batch_size` >= 1"),
            ({"replay_size": 0}, "`replay_size` >= 1"),
            ({"target_rate": 0.0}, r"`target_rate` in \(0, 1\]"),
            ({"target_rate": 1.5}, r"`target_rate` in \(0, 1\]"),
            ({"alpha_init": 0.0}, "`alpha_init` > 0"),
        ],
        ids=str,
    )
    def test_options(self, option, words):
        with pytest.raises(ValueError, match=words):
            AgentMixerSACConfig(**option)

    def test_the_state_of_another_size(self):
        env = SumEnv(2)
        state = sac(env, critic_hidden=(8,)).checkpoint_state()
        with pytest.raises(ValueError, match="AgentMixerSAC: expected the state of the same"):
            sac(env).load_checkpoint_state(state)
