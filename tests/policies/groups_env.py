"""An environment with groups of several kinds, and policies with random parameters on it."""

from __future__ import annotations

import torch
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.data import Categorical as CategoricalSpec
from torchrl.envs import EnvBase

from torchrl_agentmixer.policies import AgentMixerPolicy

STATE = ("info", "state")
AGENTS = {"scouts": 2, "ships": 1, "tanks": 3}
ACTIONS = {"scouts": 4, "ships": 3, "tanks": 2}  # tanks: dimensions of continuous actions


class GroupsEnv(EnvBase):
    """Masked discrete scouts, discrete ships and continuous bounded tanks with random entries.

    Scouts are 2 agents with 4 actions, ships 1 agent with 3, tanks 3 agents with 2 dimensions.
    """

    def __init__(self, batch=(4,), groups=("scouts", "tanks"), low=-2.0, high=1.0, seed=None):
        super().__init__(batch_size=batch)
        b = self.batch_size
        self.group_map = {g: [f"{g}_{i}" for i in range(AGENTS[g])] for g in groups}
        observations, actions = {}, {}
        for g in groups:
            n = AGENTS[g]
            leaves = {"observation": Unbounded((*b, n, 5 + n))}
            if g == "scouts":
                leaves["action_mask"] = Binary(shape=(*b, n, 4), dtype=torch.bool)
            if g == "tanks":
                action = Bounded(low, high, shape=(*b, n, 2))
            else:
                action = CategoricalSpec(ACTIONS[g], shape=(*b, n))
            observations[g] = Composite(leaves, shape=(*b, n))
            actions[g] = Composite(action=action, shape=(*b, n))
        info = Composite(state=Unbounded((*b, 6)), shape=b)
        self.observation_spec = Composite(**observations, info=info, shape=b)
        self.action_spec = Composite(**actions, shape=b)
        self.reward_spec = Unbounded((*b, 1))
        flag = CategoricalSpec(2, shape=(*b, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=b)

    def _reset(self, tensordict=None, **kwargs):
        td = self.observation_spec.rand()
        if "scouts" in self.group_map:
            td["scouts", "action_mask"][..., 0] = True
        return td.update(self.done_spec.zero())

    def _step(self, tensordict):
        return self._reset().set("reward", torch.randn(*self.batch_size, 1))

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


def scramble(module, seed=0):
    """Random parameters, so that no test passes on an initialization near zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.05, 0.4)
    return module


def build(groups, batch=(4,), modifier_kwargs=None, **kwargs):
    """A policy for these groups with random parameters, and the tensordict at reset."""
    env = GroupsEnv(batch, groups=groups)
    policy = AgentMixerPolicy.from_env(
        env,
        state_key=STATE,
        actor_kwargs={"hidden": (16,)},
        modifier_kwargs={"channels": 8, **(modifier_kwargs or {})},
        **kwargs,
    )
    return scramble(policy), env.reset()


def both_kinds(batch=(4,), **kwargs):
    """Discrete scouts and continuous tanks: no mixture."""
    return build(("scouts", "tanks"), batch, **kwargs)


def two_discrete(batch=(4,), num_components=3, **kwargs):
    """Scouts and ships: one mixture over both groups."""
    options = {"num_components": num_components}
    return build(("scouts", "ships"), batch, options, **kwargs)


def scouts(batch=(4,), num_components=3, **kwargs):
    """Scouts alone: a mixture, or Eq. 12 for 0 components."""
    return build(("scouts",), batch, {"num_components": num_components}, **kwargs)
