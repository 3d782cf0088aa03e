"""Deviation of one agent from a policy, trained by PPO against the other agents."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    central_critic,
    make_gae,
    make_ppo_loss,
)
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies.product import actor_module, mode_policy, product_policy
from torchrl_agentmixer.training.evaluation import evaluate

# Group of the deviating agent's entries.
DEVIATOR = "deviator"


class Deviation:
    """A policy of one agent, and the joint policies in which it replaces that agent's actions.

    ``own`` maps the agent's entries under ``"deviator"`` to its action. ``stochastic`` and
    ``deterministic`` act for all agents, with a sample or the mode of ``own``.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        group: AgentGroup,
        agent: int,
        sees_recommendation: bool,
        config: PPOConfig,
    ) -> None:
        self.policy = policy
        action_key = group.key("action")
        recommended = [action_key] if sees_recommendation else []
        own_entries: list[TensorDictModuleBase] = [
            TensorDictModule(
                _observe(group, agent),
                in_keys=[group.key("observation"), *recommended],
                out_keys=[(DEVIATOR, "observation")],
            )
        ]
        if group.masked:
            own_entries.append(
                TensorDictModule(
                    lambda mask: mask[..., agent : agent + 1, :],
                    in_keys=[group.key("action_mask")],
                    out_keys=[(DEVIATOR, "action_mask")],
                )
            )
        replace = TensorDictModule(
            _replace(group, agent),
            in_keys=[action_key, (DEVIATOR, "action")],
            out_keys=[action_key],
        )
        if group.image_shape:
            raise ValueError(
                f"exploitability: expected observations [*B, n_agents, o], got images "
                f"{list(group.image_shape)} of group {group.name!r}."
            )
        own = AgentGroup(
            DEVIATOR,
            n_agents=1,
            observation_dim=group.observation_dim + len(recommended) * group.action_dim,
            action_dim=group.action_dim,
            discrete=group.discrete,
            masked=group.masked,
            low=None if group.low is None else group.low[agent : agent + 1],
            high=None if group.high is None else group.high[agent : agent + 1],
        )
        self.actor = actor_module(own, **config.actor_kwargs)
        distribution = config.distribution
        self.own = product_policy([own], [self.actor], distribution)  # type: ignore[arg-type]
        mode = mode_policy([own], [self.actor], distribution)  # type: ignore[arg-type]
        self.stochastic = TensorDictSequential(policy, *own_entries, self.own, replace)
        self.deterministic = TensorDictSequential(policy, *own_entries, mode, replace)

    def train(
        self,
        env: EnvBase,
        config: PPOConfig,
        max_steps: int,
        frames: int,
        selections: int,
        episodes: int,
        seeds: list[int],
    ) -> tuple[int, bool]:
        """Train, and keep the best deviation; return frames and whether it beats the policy."""
        selection_seed, training_seed = seeds
        steps = max_steps
        if config.memory_dim:
            steps = math.ceil(max_steps / config.sequence_length) * config.sequence_length
        batch_frames = env.batch_size.numel() * steps
        batches = math.ceil(frames / batch_frames)

        def score(policy: TensorDictModuleBase) -> float:
            return float(returns_of(policy, env, max_steps, episodes, selection_seed).mean())

        algorithm = _make_ppo(self, env, config, batches * batch_frames)
        scored = {batches * (k + 1) // selections for k in range(selections)}
        best, best_weights = score(self.policy), None
        env.set_seed(training_seed)
        training_env = with_memory(env, self.stochastic)
        for batch in range(1, batches + 1):
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                data = training_env.rollout(steps, self.stochastic, break_when_any_done=False)
            algorithm.update(data)
            if batch in scored:
                if (value := score(self.deterministic)) > best:
                    best, best_weights = value, copy.deepcopy(self.actor.state_dict())
                env.set_seed(training_seed + batch)
        if best_weights is not None:
            self.actor.load_state_dict(best_weights)
        return batches * batch_frames, best_weights is not None


def returns_of(
    policy: TensorDictModuleBase, env: EnvBase, max_steps: int, episodes: int, seed: int
) -> torch.Tensor:
    """Returns of at least ``episodes`` episodes of a policy; a distribution is sampled."""
    batches = math.ceil(episodes / env.batch_size.numel())
    # Not consecutive seeds: some environments use these for the copies in a batch.
    seeds = torch.randint(2**31, (batches,), generator=torch.Generator().manual_seed(seed))
    evaluations = [
        evaluate(policy, env, max_steps=max_steps, seed=batch_seed, deterministic=False)
        for batch_seed in seeds.tolist()
    ]
    return torch.cat([evaluation.returns.flatten() for evaluation in evaluations]).double()


def _observe(group: AgentGroup, agent: int) -> Callable[..., torch.Tensor]:
    """The deviator's observation ``[*B, 1, o]``, and its recommended action if it is given."""
    own = slice(agent, agent + 1)

    def observe(observation: torch.Tensor, recommended: torch.Tensor | None = None) -> torch.Tensor:
        seen = observation[..., own, :]
        if recommended is None:
            return seen
        if group.discrete:
            action = F.one_hot(recommended[..., own], group.action_dim).to(seen.dtype)
        else:
            action = recommended[..., own, :]
        return torch.cat([seen, action], -1)  # [*B, 1, o + K]

    return observe


def _replace(group: AgentGroup, agent: int) -> Callable[..., torch.Tensor]:
    """All agents' actions, with the deviator's in place of the agent's."""
    axis = -1 if group.discrete else -2

    def replace(actions: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        index = torch.arange(actions.shape[axis], device=actions.device)
        is_own = (index == agent)[(slice(None), *[None] * (-1 - axis))]
        return torch.where(is_own, own, actions)

    return replace


def _make_ppo(
    deviation: Deviation, env: EnvBase, config: PPOConfig, total_frames: int
) -> PPOAlgorithm:
    """PPO of the deviator, with a critic of the state."""
    critic, value_norm = central_critic(env, config)
    loss = make_ppo_loss(deviation.own, critic, config, value_norm)
    loss.set_keys(action=(DEVIATOR, "action"))
    return PPOAlgorithm(
        config,
        total_frames,
        policy=deviation.own,
        execution_policy=deviation.own,
        critic=critic,
        loss=loss,
        advantage=make_gae(critic, config),
    )
