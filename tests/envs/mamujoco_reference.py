"""Environments of gymnasium-robotics, and comparisons of trajectories with them."""

from __future__ import annotations

import mujoco
import numpy as np
from gymnasium.wrappers import TimeLimit
from gymnasium_robotics import mamujoco_v1
from gymnasium_robotics.envs.multiagent_mujoco.coupled_half_cheetah import CoupledHalfCheetahEnv
from tensordict import TensorDictBase

from torchrl_agentmixer.envs import MaMujocoEnv
from torchrl_agentmixer.envs.mamujoco_tasks import quiet_compiler, robot_of

ONE_JOINT_EACH = ("ant_8x1", "humanoid_17x1", "humanoid_standup_17x1", "walker2d_6x1")


class DenseData(mujoco.MjData):
    """Data with the dense Jacobian of older versions of MuJoCo, which gymnasium-robotics reads."""

    @property
    def ten_J(self):
        model, dense = self.model, np.zeros((self.model.ntendon, self.model.nv))
        rows = (model.ten_J_rownnz, model.ten_J_rowadr, model.ten_J_colind)
        mujoco.mju_sparse2dense(dense, super().ten_J, *rows)
        return dense


def coupled_half_cheetah():
    env = CoupledHalfCheetahEnv()
    if env.data.ten_J.size != env.model.nv:
        env.data = DenseData(env.model)
    return env


def reference(task: str, obsk: int = 0, categories=(), local=None, parts=None):
    """Environment of gymnasium-robotics; ``parts`` are the actions of each agent."""
    robot, partition = robot_of(task)
    own = None
    if parts is not None or task in ONE_JOINT_EACH:
        built_in, edges, root = mamujoco_v1.get_parts_and_edges(
            robot, None if task in ONE_JOINT_EACH else partition
        )
        joints = [joint for part in built_in for joint in part]
        by_action = {joint.act_ids: joint for joint in joints}
        own = [(joint,) for joint in joints]
        if parts is not None:
            own = [tuple(by_action[i] for i in part) for part in parts]
        own = {"partition": own, "edges": edges, "globals": root}
    with quiet_compiler():
        coupled = robot == "CoupledHalfCheetah"
        raw = mamujoco_v1.parallel_env(
            robot,
            partition,
            agent_obsk=obsk,
            agent_factorization=own,
            local_categories=local,
            global_categories=categories,
            gym_env=TimeLimit(coupled_half_cheetah(), 1000) if coupled else None,
        )
    for joints in raw.k_dicts:  # three joints of the pusher have one label, and any order
        for k, found in joints.items():
            joints[k] = sorted(found, key=lambda joint: (joint.label, joint.act_ids))
    return raw


def follow(env: MaMujocoEnv, references: list, steps: int, actions: float = 1.0):
    """Step ``env`` and gymnasium-robotics; yield both tensordicts and the references' results.

    Episodes start anew in both as they end.
    """
    data = env.reset()
    for raw, seed in zip(references, env.seeds, strict=True):
        assert_same_sight(env, data, env.seeds.index(seed), raw, raw.reset(seed=seed)[0])
    for _ in range(steps):
        action = env.full_action_spec.rand() * actions
        stepped, data = env.step_and_maybe_reset(data.update(action))
        for i, raw in enumerate(references):
            result = raw.step(shares(env, action, i))
            yield i, stepped["next"][i], result
            assert_same_sight(env, stepped["next"], i, raw, result[0])
            if stepped["next", "done"][i]:
                assert_same_sight(env, data, i, raw, raw.reset()[0])


def shares(env: MaMujocoEnv, action: TensorDictBase, i: int) -> dict[str, np.ndarray]:
    return {
        agent: action[group, "action"][i, k].numpy()
        for group, agents in env.group_map.items()
        for k, agent in enumerate(agents)
    }


def assert_same_sight(env, data, i, raw, observations):
    """Observations, padding, one-hot and state are bit-equal in float32."""
    np.testing.assert_array_equal(data["state"][i], raw.state().astype(np.float32))
    names = [agent for agents in env.group_map.values() for agent in agents]
    for group, agents in env.group_map.items():
        for k, agent in enumerate(agents):
            seen = data[group, "observation"][i, k].numpy()
            expected = observations[agent].astype(np.float32)
            np.testing.assert_array_equal(seen[: len(expected)], expected)
            assert not seen[len(expected) : -len(names)].any()
            assert seen[-len(names) :].tolist() == [float(name == agent) for name in names]


def assert_same_rewards_and_ends(after, result):
    _, rewards, terminated, truncated, _ = result
    assert after["reward"].item() == np.float32(rewards["agent_0"])
    assert after["terminated"].item() == terminated["agent_0"]
    assert after["truncated"].item() == (truncated["agent_0"] and not terminated["agent_0"])
