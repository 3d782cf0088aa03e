"""Team rewards from the rewards of agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_known

RewardFunction = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
TeamReward = Literal["sum", "mean"] | RewardFunction

_FUNCTIONS = {"mean": torch.mean, "sum": torch.sum}


def team_reward(owner: str, groups: Sequence[str], reward: TeamReward | None) -> RewardFunction:
    """The function from groups' rewards, each ``[*B, n_agents, 1]``, to the team's ``[*B, 1]``.

    Args:
        owner (str): name of the environment, for errors.
        groups (sequence of str): groups with rewards.
        reward ("sum", "mean" or callable, optional): over all agents; or a function of a dict of
            groups' rewards ``[*B, n_agents]``, which returns ``[*B]``. Default: the mean of one
            group. Agents of several groups may be opponents.

    Raises:
        ValueError: for several groups without ``reward``, and an unknown name; and, from the
            function, for a team reward of another shape.

    Examples:
        >>> function = team_reward("Game", ["agents"], "sum")
        >>> function({"agents": torch.ones(4, 3, 1)}).flatten().tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    if reward is None and len(groups) > 1:
        raise ValueError(
            f"{owner}: expected `reward` for the groups {list(groups)}, which have rewards of "
            'their own and may be opponents. If they share one goal, pass `reward="mean"`; else a '
            f"function, such as `lambda rewards: rewards[{groups[0]!r}].mean(-1)`, which trains "
            "all agents for the reward of one group."
        )
    reward = reward or "mean"
    if isinstance(reward, str):
        check_known("`reward`", [reward], _FUNCTIONS)
        reward = partial(_over_agents, _FUNCTIONS[reward])
    return partial(_checked, owner, reward)


def reward_function(
    env: EnvBase, groups: Mapping[str, int], reward: TeamReward | None
) -> RewardFunction | None:
    """The function from agents' rewards to the team's; ``None`` to keep the root's reward."""
    keys = list(env.full_reward_spec_unbatched.keys(True, True))
    if reward is None and "reward" in keys:
        return None
    own = [name for name in groups if (name, "reward") in keys]
    if not own:
        raise ValueError(
            f"team_env: expected 'reward' or (group, 'reward') of groups {list(groups)}, got the "
            f"reward keys {keys} of {type(env).__name__}."
        )
    return team_reward(type(env).__name__, own, reward)


def _over_agents(
    function: Callable[..., torch.Tensor], rewards: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    return function(torch.cat(list(rewards.values()), -1), -1)


def _checked(
    owner: str, function: RewardFunction, rewards: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    team = function({name: own.squeeze(-1) for name, own in rewards.items()})
    *batch, _, _ = next(iter(rewards.values())).shape
    if list(team.shape) != batch:
        raise ValueError(
            f"{owner}: expected `reward` to return {batch}, one number per environment, got "
            f"{list(team.shape)}."
        )
    return team.unsqueeze(-1)
