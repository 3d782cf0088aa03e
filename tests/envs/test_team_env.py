"""Team reward, state and done flags of other libraries' environments."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import SerialEnv, TransformedEnv
from torchrl.envs.transforms import RewardSum, Transform
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import (
    algorithm_class,
    available_algorithms,
    default_options,
    make_algorithm,
)
from torchrl_agentmixer.envs import make_env, normalize_observations, team_env, with_memory
from torchrl_agentmixer.groups import agent_groups, check_team, state_dim

from .any_env import AnyEnv

TWO_GROUPS = {
    "action": {"scouts": Categorical(3, shape=(2,)), "tanks": Bounded(-1.0, 1.0, (1, 3))},
    "observation": {"scouts": Unbounded((2, 5)), "tanks": Unbounded((1, 4))},
}


@pytest.mark.parametrize("dones", ["root", "group", "both"])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3)], ids=str)
def test_layout(batch, dones):
    env = team_env(AnyEnv(**TWO_GROUPS, batch=batch, dones=dones), reward="mean")
    check_env_specs(env)
    check_team(env)
    size = torch.Size(batch).numel()
    rollout = env.rollout(3, break_when_any_done=False)
    after = rollout["next"]
    assert env.batch_size == (size,)
    assert rollout["state"].shape == (size, 3, 14)
    for key in ("reward", "done", "terminated", "truncated"):
        assert after[key].shape == (size, 3, 1), key
    for group, agents in env.group_map.items():
        assert rollout[group].batch_size == (size, 3, len(agents))
        assert set(after[group].keys()) == {"observation"}
    assert env.group_map == {"scouts": ["scouts_0", "scouts_1"], "tanks": ["tanks_0"]}
    joined = [rollout[group, "observation"].flatten(-2) for group in env.group_map]
    assert torch.equal(rollout["state"], torch.cat(joined, -1))


class Counter(AnyEnv):
    """Rewards and observations that say which environment, step and agent they are of.

    Agent `i` is done after `i + 1` steps, and truncated or terminated as `ends` says.
    """

    def __init__(self, batch=(2, 3), ends=("terminated", "truncated"), **kwargs):
        super().__init__(batch=batch, dones="both", **kwargs)
        self.ends = ends
        self.time = torch.zeros(*batch, 1, dtype=torch.int64)
        self.resets: list[torch.Tensor] = []
        self.taken: list[torch.Tensor] = []

    def _out(self):
        out = self.observation_spec.zero().update(self.full_done_spec.zero())
        index = torch.arange(self.batch_size.numel()).reshape(*self.batch_size, 1, 1)
        out["agents", "observation"] = (out["agents", "observation"] + index) + 100 * self.time[
            ..., None
        ]
        done = torch.cat([self.time >= 1, self.time >= 2], -1).unsqueeze(-1)  # [*B, 2, 1]
        out["agents", "done"] = done
        for agent, end in enumerate(self.ends):
            for flag in ("terminated", "truncated") if end == "both" else (end,):
                out["agents", flag][..., agent, :] = done[..., agent, :]
        out["done"] = done.all(-2)
        out["terminated"] = out["done"].clone()  # a wrapper may not know better
        return out

    def _reset(self, tensordict=None, **kwargs):
        everywhere = torch.ones(*self.batch_size, 1, dtype=torch.bool)
        mask = everywhere if tensordict is None else tensordict.get("_reset", everywhere)
        self.resets.append(mask.clone())
        self.time = torch.where(mask, 0, self.time)
        return self._out()

    def _step(self, tensordict):
        self.taken.append(tensordict["agents", "action"].clone())
        self.time = self.time + 1
        index = torch.arange(self.batch_size.numel()).reshape(*self.batch_size, 1, 1)
        rewards = index + torch.tensor([[0.0], [10.0]])  # [*B, 2, 1]
        return self._out().set(("agents", "reward"), rewards.float())


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (None, [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]),
        ("mean", [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]),
        ("sum", [10.0, 12.0, 14.0, 16.0, 18.0, 20.0]),
        (lambda rewards: rewards["agents"][:, 1], [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]),
    ],
)
def test_team_rewards(reward, expected):
    after = team_env(Counter(), reward=reward).rollout(1)["next"]
    assert after["reward"].flatten().tolist() == expected


def test_environments_keep_their_order_and_partial_resets_reach_them():
    env = team_env(base := Counter())
    data = env.rollout(2, break_when_any_done=False)
    first = data["agents", "observation"][:, :, 0, 0]
    assert first.tolist() == [[i, 100 + i] for i in range(6)]
    reset = torch.tensor([0, 1, 0, 0, 0, 1]).bool().unsqueeze(-1)
    after = env.reset(data[:, -1]["next"].clone().set("_reset", reset))
    assert base.resets[-1].flatten().tolist() == reset.flatten().tolist()
    expected = [200.0, 1.0, 202.0, 203.0, 204.0, 5.0]
    assert after["agents", "observation"][:, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("ends", "truncated"),
    [
        (("terminated", "terminated"), False),
        (("terminated", "truncated"), True),
        (("truncated", "truncated"), True),
        (("both", "terminated"), False),  # as PettingZooWrapper says of agents that left earlier
        (("both", "truncated"), True),
    ],
)
def test_an_episode_is_truncated_if_an_agent_is(ends, truncated):
    after = team_env(Counter(ends=ends)).rollout(2, break_when_any_done=False)["next"]
    assert after["done"][:, :, 0].tolist() == [[False, True]] * 6
    assert after["truncated"][:, 1].all() == truncated
    assert after["terminated"][:, 1].all() != truncated
    assert not (after["truncated"] | after["terminated"])[:, 0].any()


def test_flags_per_agent_only():
    """Resets reach an environment that knows flags per agent only."""
    env = team_env(AnyEnv(dones="group", batch=(3,)))
    seen = []
    reset = env.base_env._reset
    env.base_env._reset = lambda data=None, **kw: seen.append(data) or reset(data, **kw)
    data = env.reset().update(env.full_done_spec.zero())
    env.reset(data.set("_reset", torch.tensor([[True], [False], [True]])))
    assert seen[-1]["agents", "_reset"].squeeze(-1).tolist() == [
        [True] * 2,
        [False] * 2,
        [True] * 2,
    ]


def test_continuous_actions_are_clamped_to_their_bounds_once_executed():
    """The collected actions are those of the policy: their log-probability is known."""
    env = team_env(base := Counter())
    action = 5 * torch.randn(6, 2, 3)
    data = env.step(env.reset().set(("agents", "action"), action.clone()))
    assert torch.equal(base.taken[-1], action.clamp(-1, 1).reshape(2, 3, 2, 3))
    assert torch.equal(data["agents", "action"], action)


def test_other_dtypes_become_float32():
    observation, state = (Unbounded(shape, dtype=torch.float64) for shape in ((2, 5), (7,)))
    env = team_env(AnyEnv(observation=observation, state=state, batch=(3,)))
    check_env_specs(env)
    assert env.rollout(2)["state"].dtype == torch.float32
    env = team_env(AnyEnv(observation=Bounded(0, 9, (2, 5), dtype=torch.int64), batch=(3,)))
    check_env_specs(env)
    (group,) = agent_groups(env)
    assert group.observation_dim == 5


def test_own_state_and_nested_entries():
    observation = Composite(vector=Unbounded((2, 5)), extra=Unbounded((2, 4)), shape=(2,))
    base = AnyEnv(observation=observation, state=Unbounded((7,)), batch=(2, 2))
    env = team_env(base, observation_key=("observation", "vector"))
    check_env_specs(env)
    assert state_dim(env) == 7
    assert agent_groups(env)[0].observation_dim == 5
    env = team_env(AnyEnv(state=Composite(all=Unbounded((6,))), batch=(2,)), state=("state", "all"))
    check_env_specs(env)
    assert env.rollout(2)["state"].shape == (2, 2, 6)


def test_agents_that_left_have_one_action():
    """Their log-probability and entropy are zero, in the joint policy and alone."""
    torch.manual_seed(0)
    env = team_env(AnyEnv(Categorical(3, shape=(2,)), batch=(2, 50), masked=True))
    policy = AgentMixerPolicy.from_env(env)
    data = env.rollout(2, policy, break_when_any_done=False)
    mask, action = data["agents", "mask"], data["agents", "action"]
    assert mask.any()
    assert not mask.all()
    assert (action[~mask] == 0).all()
    assert data["agents", "action_mask"].sum(-1).unique().tolist() == [1, 3]
    gone = ~mask.any(-1)
    assert (data["action_log_prob"][gone].abs() < 1e-5).all()  # rounding of the mixture
    assert (data["action_log_prob"][~gone] < -0.1).all()


EVERY_CONTINUOUS = [n for n in available_algorithms() if algorithm_class(n).continuous]


@pytest.mark.parametrize("method", EVERY_CONTINUOUS)
def test_agents_with_continuous_actions_that_left_do_not_train(method):
    """Agent 1 was never there: its actor does not change, and its log-probability is zero."""
    torch.manual_seed(0)
    env = team_env(AnyEnv(batch=(60,), masked=True))
    options = {"entropy_coeff": 0.1, "epochs": 2, "num_minibatches": 1}
    options = {k: v for k, v in options.items() if k in default_options(method)}
    if "gradient_steps" in default_options(method):
        options = {"gradient_steps": 2, "batch_size": 32}
    algorithm = make_algorithm(method, env, 1000, options)
    env.append_transform(AgentOneLeaves())
    data = env.rollout(3, algorithm.policy, break_when_any_done=False).detach()
    mask = data["agents", "mask"]
    assert not mask[..., 1].any()
    key = ("agents", "action_log_prob")
    if key in data.keys(True):
        assert (data[key][~mask].abs() < 1e-5).all()  # rounding of the mixture
        assert (data[key][mask] != 0).all()
    elif "action_log_prob" in data.keys():  # noqa: SIM118
        assert (data["action_log_prob"][~mask.any(-1)] == 0).all()
    before = {k: p.clone() for k, p in algorithm.execution_policy.named_parameters()}
    metrics = algorithm.update(data)
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    after = dict(algorithm.execution_policy.named_parameters())
    if algorithm.decentralized_execution and not options.get("share_params"):
        trained = {k for k, value in before.items() if not torch.equal(after[k][0], value[0])}
        assert trained
        if "agent_mixer" not in method:  # the Modifier reads all agents' parameters
            assert all(torch.equal(after[key][1], value[1]) for key, value in before.items())


class AgentOneLeaves(Transform):
    """Agent 1 is absent from the first step on."""

    def _call(self, data):
        data["agents", "mask"][..., 1] = False
        return data

    def _reset(self, data, reset):
        return self._call(reset)


def test_several_rewards_need_a_choice():
    with pytest.raises(ValueError, match=r"\['scouts', 'tanks'\].*may be opponents"):
        team_env(AnyEnv(**TWO_GROUPS))
    with pytest.raises(ValueError, match=r"expected 'reward' or \(group, 'reward'\)"):
        team_env(AnyEnv(rewards="none"))
    with pytest.raises(ValueError, match=r"'men'.*'mean'"):
        team_env(AnyEnv(), reward="men")
    env = team_env(AnyEnv(**TWO_GROUPS, rewards="team"))  # has chosen
    assert env.rollout(2)["next", "reward"].shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_key": "obs"}, r"no entry \('agents', 'obs'\).*`observation_key`"),
        ({"state": ("info", "state")}, r"no entry \('info', 'state'\).*`state`"),
    ],
)
def test_missing_entries(options, message):
    with pytest.raises(KeyError, match=message):
        team_env(AnyEnv(), **options)


def test_images_of_8_bits_are_between_0_and_1():
    pixels = Bounded(0, 255, (2, 3, 8, 9), dtype=torch.uint8)
    env = team_env(AnyEnv(observation=pixels, batch=(4,)))
    check_env_specs(env)
    images = env.rollout(3)["agents", "observation"]
    assert images.shape == (4, 3, 2, 3, 8, 9)
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1


def test_matrices_are_refused():
    with pytest.raises(ValueError, match=r"got \[\*B, 2, 5, 5\].*FlattenObservation"):
        team_env(AnyEnv(observation=Unbounded((2, 5, 5))))


def test_under_other_transforms():
    """Memory, normalization and episode returns; also around a team in each worker."""

    def one():
        return team_env(AnyEnv(Categorical(3, shape=(2,)), batch=(3,)))

    for base in (one(), team_env(SerialEnv(2, one))):
        env = TransformedEnv(normalize_observations(base), RewardSum(), auto_unwrap=False)
        policy = AgentMixerPolicy.from_env(env, actor_kwargs={"memory_dim": 4})
        rollout = with_memory(env, policy).rollout(4, policy, break_when_any_done=False)
        n = base.batch_size.numel()
        assert rollout["next", "agents", "memory"].shape == (n, 4, 2, 4)
        assert (rollout["next", "agents", "memory"] != 0).any()


def test_of_an_environment_of_this_package():
    """Nothing changes, but for the batch size."""
    build = lambda: make_env("grid/predator_prey", num_envs=3, seed=0)  # noqa: E731
    env, same = build(), team_env(build())
    assert torch.equal(env.rollout(1)["state"], same.rollout(1)["state"])
    assert agent_groups(env) == agent_groups(same)
