"""Any TorchRL multi-agent environment as a team: reward, state and done flags at the root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import ActionMask, Compose, EnvBase, Transform, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_agentmixer._specs import check_equal_sizes
from torchrl_agentmixer.envs.base import done_spec, flag_spec
from torchrl_agentmixer.envs.combined_actions import combine_actions
from torchrl_agentmixer.envs.team_reward import TeamReward, reward_function
from torchrl_agentmixer.groups import agent_groups, check_team, group_sizes

_FLAGS = ("done", "terminated", "truncated")


def team_env(
    env: EnvBase,
    *,
    reward: TeamReward | None = None,
    state: NestedKey | None = None,
    observation_key: NestedKey = "observation",
) -> TransformedEnv:
    """Give any TorchRL multi-agent environment the layout that every method trains on.

    The environment may be one, such as ``PettingZooWrapper``, a batch, such as ``VmasEnv``, or a
    batch of workers (``SerialEnv``, ``ParallelEnv``). The result has

    - batch size ``[N]``, with all batch dimensions in one; ``[1]`` for one environment;
    - ``"reward"`` ``[N, 1]``, of the team; agents have no rewards of their own;
    - ``"state"`` ``[N, s]``;
    - ``"done"``, ``"terminated"`` and ``"truncated"`` ``[N, 1]`` of the team, where the environment
      has them. Of agents' flags: an episode ends when all agents are done, and is truncated if any
      of them is;
    - ``(group, "observation")`` ``[N, n_agents, o]``, or images ``[N, n_agents, C, H, W]``;
      observations and state are float32, and 8-bit images in [0, 1];
    - ``(group, "action")``; continuous actions are clamped to their bounds before a step; several
      discrete actions of an agent are one of all combinations (up to 1024);
    - ``(group, "action_mask")`` that leaves agents with discrete actions one action, the first,
      while ``(group, "mask")`` ``[N, n_agents]`` is false: agents that have left (PettingZoo's
      ``use_mask=True``) are not part of log-probabilities, entropy and losses.

    Args:
        env (EnvBase): an environment with ``(group, "observation")`` and ``(group, "action")``.

    Keyword Args:
        reward ("sum", "mean" or callable, optional): the team reward of all agents' rewards. A
            callable maps a dict of groups' rewards, each ``[N, n_agents]``, to ``[N]``. Default:
            the environment's own ``"reward"`` at the root, else the mean of the agents of one
            group. Agents of several groups may be opponents: say what the team's reward is.
        state (NestedKey, optional): an entry of the environment. Default: ``"state"``, if there is
            one, else all agents' observations, concatenated.
        observation_key (NestedKey): of an observation within its group.

    Returns:
        TransformedEnv: with ``group_map``.

    Raises:
        KeyError: for a missing observation or state.
        ValueError: for an environment without rewards, or with several groups' rewards and no
            ``reward``; and as :func:`~torchrl_agentmixer.agent_groups`.

    Examples:
        >>> from torchrl.envs import VmasEnv
        >>> env = team_env(VmasEnv("balance", num_envs=4))
        >>> rollout = env.rollout(3)
        >>> rollout["state"].shape, rollout["next", "reward"].shape
        (torch.Size([4, 3, 48]), torch.Size([4, 3, 1]))
    """
    env = combine_actions(env)
    transform = TeamTransform(env, reward, state, unravel_key(observation_key))
    masks = [
        ActionMask((name, "action"), (name, "action_mask")) for name in transform.masked_groups
    ]
    team = _TeamEnv(env, Compose(transform, *masks), auto_unwrap=False)
    agent_groups(team)
    check_team(team)
    team.group_map = _group_map(env, transform.sizes)
    return team


def _group_map(env: EnvBase, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The environment's own agents by group, or numbered ones for a batch of workers."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    own = None if isinstance(env, BatchedEnvBase) else getattr(env, "group_map", None)
    return own or {name: [f"{name}_{i}" for i in range(n)] for name, n in sizes.items()}


class _TeamEnv(TransformedEnv):
    """TransformedEnv whose policy may write entries of the next step, such as a memory."""

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        # TransformedEnv leaves it to a base environment that may have another batch size.
        return EnvBase.rand_action(self, tensordict)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        written = tensordict.get("next", None)
        if written is None:
            return super()._step(tensordict)
        # The base environment's batch size may be another one.
        result = super()._step(tensordict.exclude("next"))
        return result.update(written.exclude(*result.keys(True, True)))


class TeamTransform(Transform):
    """The transform of :func:`team_env`.

    Args:
        env (EnvBase): the environment.
        reward, state, observation_key: as in :func:`team_env`.
    """

    def __init__(
        self,
        env: EnvBase,
        reward: TeamReward | None,
        state: NestedKey | None,
        observation_key: NestedKey,
    ) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self.sizes = group_sizes(env)
        self.base_batch_size = env.batch_size
        self.num_envs = env.batch_size.numel()
        observations = env.observation_spec_unbatched
        keys = list(observations.keys(True, True))
        for name in self.sizes:
            check_equal_sizes(name, observations[name])
        own = (observation_key,) if isinstance(observation_key, str) else observation_key
        self.observation_keys = {name: (name, *own) for name in self.sizes}
        _check_keys(env, list(self.observation_keys.values()), keys, "observation_key")
        self.state_key = "state" if state is None and "state" in keys else state
        _check_keys(env, [] if self.state_key is None else [self.state_key], keys, "state")
        self.reward = reward_function(env, self.sizes, reward)
        self.leaving = [name for name in self.sizes if (name, "mask") in keys]
        actions = env.full_action_spec_unbatched
        discrete = [name for name in self.sizes if type(actions[name, "action"]) is Categorical]
        self.n_actions = {name: actions[name, "action"].space.n for name in discrete}
        spaces = {name: actions[name, "action"].space for name in self.sizes}
        bounded = [name for name in self.sizes if isinstance(actions[name, "action"], Bounded)]
        self.bounds = {name: (spaces[name].low, spaces[name].high) for name in bounded}
        self.masked_groups = [
            name for name in discrete if name in self.leaving or (name, "action_mask") in keys
        ]
        done_keys = list(env.full_done_spec_unbatched.keys(True, True))
        self.root_flags = [key for key in _FLAGS if key in done_keys] or list(_FLAGS)
        self.agent_flags = [f for f in _FLAGS if (next(iter(self.sizes)), f) in done_keys]
        self.base_reset_keys = list(env.reset_keys)

    # -- data ----------------------------------------------------------------------------------

    def _call(self, data: TensorDictBase) -> TensorDictBase:
        """Outputs of a step or a reset in the base environment's batch size."""
        data = data.copy() if self._keeps_batch_size else data.reshape(self.num_envs)
        self._set_rewards(data)
        self._set_flags(data)
        for name, key in self.observation_keys.items():
            observation = _as_float32(data.get(key))
            agents = data.get(name)
            agents.batch_size = (self.num_envs, self.sizes[name])
            agents.set("observation", observation)  # also replaces the entries around a nested one
            agents.exclude("info", inplace=True)
        observations = [data.get((name, "observation")).flatten(1) for name in self.sizes]
        state = torch.cat(observations, -1) if self.state_key is None else data.get(self.state_key)
        data.set("state", state.to(torch.float32))
        for name in self.masked_groups:
            if name in self.leaving:
                self._mask_agents_that_left(data.get(name), self.n_actions[name])
        return data

    def _reset(self, tensordict: TensorDictBase, reset: TensorDictBase) -> TensorDictBase:
        return self._call(reset)

    def _inv_call(self, data: TensorDictBase) -> TensorDictBase:
        """Actions of a step in the base environment's batch size, within their bounds."""
        for name, (low, high) in self.bounds.items():
            data.set((name, "action"), data.get((name, "action")).clamp(low, high))
        return self._base_batch(data)

    def _base_batch(self, data: TensorDictBase) -> TensorDictBase:
        return data if self._keeps_batch_size else data.reshape(self.base_batch_size)

    def _reset_env_preprocess(self, data: TensorDictBase) -> TensorDictBase:
        reset = None if data is None else data.get("_reset", None)
        if reset is None:
            return data
        data = self._base_batch(data.copy())
        reset = data.get("_reset")
        for key in self.base_reset_keys:
            if key != "_reset":  # flags per agent
                size = self.sizes[key[0]]
                data.set(key, reset.unsqueeze(-2).expand(*self.base_batch_size, size, 1))
        return data

    @property
    def _keeps_batch_size(self) -> bool:
        return len(self.base_batch_size) == 1

    def _set_rewards(self, data: TensorDictBase) -> None:
        rewards = {name: data.pop((name, "reward"), None) for name in self.sizes}
        given = {name: own for name, own in rewards.items() if own is not None}
        if self.reward is not None and given:  # none after a reset
            data.set("reward", self.reward(given))
        if "reward" in data.keys():  # noqa: SIM118
            data.set("reward", data.get("reward").to(torch.float32))

    def _set_flags(self, data: TensorDictBase) -> None:
        if not self.agent_flags:
            return
        agents = {
            flag: torch.cat([data.pop((name, flag)) for name in self.sizes], 1)
            for flag in self.agent_flags
        }
        done = data.get("done", None)
        done = agents["done"].all(1) if done is None else done
        # PettingZooWrapper sets both flags of agents that left earlier.
        truncated = agents.get("truncated", torch.zeros_like(agents["done"]))
        data.set("truncated", done & (truncated & ~agents["terminated"]).any(1))
        data.set("terminated", done & ~data.get("truncated"))
        data.set("done", done)

    @staticmethod
    def _mask_agents_that_left(agents: TensorDictBase, n_actions: int) -> None:
        present = agents.get("mask").unsqueeze(-1)
        first = torch.arange(n_actions, device=present.device) == 0
        allowed = agents.get("action_mask", torch.ones_like(first))
        agents.set("action_mask", torch.where(present, allowed, first))

    # -- specs ---------------------------------------------------------------------------------

    def transform_env_batch_size(self, batch_size: torch.Size) -> torch.Size:
        return torch.Size([batch_size.numel()])

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        spec = output_spec if self._keeps_batch_size else output_spec.reshape(self.num_envs)
        return super().transform_output_spec(spec)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        spec = input_spec if self._keeps_batch_size else input_spec.reshape(self.num_envs)
        for name, n_agents in self.sizes.items():
            spec["full_action_spec", name].shape = (self.num_envs, n_agents)
        return spec

    def transform_observation_spec(self, spec: Composite) -> Composite:
        size, width = (self.num_envs,), 0
        for name, key in self.observation_keys.items():
            observation, n_agents = _float32(spec[key]), self.sizes[name]
            spec[name, "observation"] = observation
            spec[name].shape = (*size, n_agents)
            if "info" in spec[name].keys():  # noqa: SIM118
                del spec[name]["info"]
            width += observation.shape[1:].numel()
            if name in self.masked_groups and name in self.leaving:
                shape = (*size, n_agents, self.n_actions[name])
                spec[name, "action_mask"] = flag_spec(*shape, device=observation.device)
        device = observation.device
        own = None if self.state_key is None else _float32(spec[self.state_key])
        spec["state"] = Unbounded((*size, width), device=device) if own is None else own
        return spec

    def transform_reward_spec(self, spec: Composite) -> Composite:
        device = next(iter(spec.values(True, True))).device
        return Composite(
            reward=Unbounded((self.num_envs, 1), device=device), shape=(self.num_envs,)
        )

    def transform_done_spec(self, spec: Composite) -> Composite:
        team = done_spec((self.num_envs,), next(iter(spec.values(True, True))).device)
        flags = _FLAGS if self.agent_flags else self.root_flags
        return Composite({key: team[key] for key in flags}, shape=(self.num_envs,))


def _as_float32(observation: torch.Tensor) -> torch.Tensor:
    """Float32; 8-bit images ``[N, n_agents, C, H, W]`` in [0, 1]."""
    image = observation.dtype == torch.uint8 and observation.ndim == 5
    return observation / 255.0 if image else observation.to(torch.float32)


def _float32(spec: TensorSpec) -> TensorSpec:
    if spec.dtype == torch.float32:
        return spec
    return Unbounded(spec.shape, device=spec.device)


def _check_keys(env: EnvBase, keys: list[Any], known: list[Any], option: str) -> None:
    missing = [key for key in keys if key not in known]
    if missing:
        raise KeyError(
            f"team_env: {type(env).__name__} has no entry {missing[0]!r}: expected it among "
            f"{known}: pass another `{option}`."
        )
