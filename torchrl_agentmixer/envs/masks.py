"""Action masks: random valid actions, and errors for invalid ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase


def draw_valid_actions(tensordict: TensorDictBase) -> TensorDictBase:
    """Write ``("agents", "action")`` ``[*B, n]``, uniform over ``("agents", "action_mask")``."""
    mask = tensordict["agents", "action_mask"]
    action = torch.distributions.Categorical(probs=mask.float()).sample()
    return tensordict.set(("agents", "action"), action)


def check_actions(
    action: torch.Tensor,
    mask: torch.Tensor,
    *,
    name: str,
    step: Callable[[int], int],
) -> None:
    """Raise a ValueError for the first action ``[num_envs, n]`` outside its mask ``[..., K]``.

    ``step`` maps an environment's index to the number of its next step, for the message.
    """
    n_actions = mask.shape[-1]
    chosen = mask.gather(-1, action.long().clamp(0, n_actions - 1).unsqueeze(-1)).squeeze(-1)
    invalid = ~chosen | (action < 0) | (action >= n_actions)  # [num_envs, n_agents]
    if invalid.any():
        env, agent = invalid.nonzero()[0].tolist()
        valid = mask[env, agent].nonzero().flatten().tolist()
        raise ValueError(
            f"{name}, environment {env}, step {step(env)}: agent_{agent} got action "
            f"{int(action[env, agent])}: expected one of {valid}, its action mask."
        )
