"""An environment of any specs, with random outputs."""

from __future__ import annotations

import torch
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase


def flags(*shape: int, keys=("done", "terminated", "truncated")) -> Composite:
    flag = Categorical(2, shape=(*shape, 1), dtype=torch.bool)
    return Composite({key: flag.clone() for key in keys}, shape=shape)


class AnyEnv(EnvBase):
    """Agents with the given entries, and random values of all outputs.

    Args:
        action: actions of all agents ``[n, ...]``, or one spec per group.
        observation: observations of all agents ``[n, ...]``, or one spec per group.
        batch: batch size.
        state: spec of a state without batch size, if any.
        rewards: per ``"group"`` and agent, of the ``"team"`` at the root, or ``"none"``.
        dones: at the ``"root"``, per ``"group"``, or ``"both"``.
        masked: whether agents write a ``"mask"``.
    """

    def __init__(
        self,
        action=None,
        observation=None,
        *,
        batch=(),
        state=None,
        rewards="group",
        dones="root",
        masked=False,
    ):
        super().__init__(batch_size=batch)
        actions = _by_group(Bounded(-1.0, 1.0, (2, 3)) if action is None else action)
        observations = _by_group(Unbounded((2, 5)) if observation is None else observation)
        self.group_map = {
            name: [f"{name}_{i}" for i in range(spec.shape[0])] for name, spec in actions.items()
        }
        observed, acted, reward, done = {}, {}, {}, {}
        for name, agents in self.group_map.items():
            n = len(agents)
            observed[name] = Composite(observation=observations[name])
            if masked:
                observed[name]["mask"] = Categorical(2, shape=(n,), dtype=torch.bool)
            acted[name] = Composite(action=actions[name], shape=(n,))
            reward[name] = Composite(reward=Unbounded((n, 1)), shape=(n,))
            done[name] = flags(n)
        if state is not None:
            observed["state"] = state
        self.observation_spec = self._batched(Composite(observed))
        self.action_spec = self._batched(Composite(acted))
        team = Composite(reward=Unbounded((1,)))
        reward_spec = {"group": Composite(reward), "team": team, "none": Composite()}[rewards]
        self.reward_spec = self._batched(reward_spec)
        done_spec = flags() if dones != "group" else Composite()
        if dones != "root":
            done_spec.update(Composite(done))
        self.done_spec = self._batched(done_spec)

    def _batched(self, spec: TensorSpec) -> TensorSpec:
        return spec.expand(*self.batch_size, *spec.shape) if self.batch_size else spec

    def _reset(self, tensordict=None, **kwargs):
        return self.observation_spec.rand().update(self.full_done_spec.zero())

    def _step(self, tensordict):
        return self._reset().update(self.full_reward_spec.rand())

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


def _by_group(spec):
    return spec if isinstance(spec, dict) else {"agents": spec}
