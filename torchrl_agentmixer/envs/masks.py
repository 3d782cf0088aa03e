"""Action masks: random valid actions, and errors for invalid ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase


def draw_valid_actions(tensordict: TensorDictBase) -> TensorDictBase:
    """Write ``("agents", "action")``, sampled uniformly from ``("agents", "action_mask")``.

    Args:
        tensordict (TensorDictBase): with the mask ``[*B, n_agents, K]``, bool.

    Returns:
        TensorDictBase: the same one, with actions ``[*B, n_agents]``, int64.

    Examples:
        >>> from tensordict import TensorDict
        >>> mask = torch.tensor([[[False, True, False], [False, False, True]]])
        >>> data = TensorDict({"agents": {"action_mask": mask}}, batch_size=[1])
        >>> draw_valid_actions(data)["agents", "action"]
        tensor([[1, 2]])
    """
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
    """Raise an error for the first action that the mask forbids.

    Args:
        action (torch.Tensor): ``[num_envs, n_agents]``, integers.
        mask (torch.Tensor): ``[num_envs, n_agents, K]``, bool.

    Keyword Args:
        name (str): name of the environment.
        step (callable): maps an environment's index to the number of its next step.

    Raises:
        ValueError: with the environment, step, agent, action and the valid actions.

    Examples:
        >>> mask = torch.tensor([[[True, False], [False, True]]])
        >>> actions = torch.tensor([[0, 0]])
        >>> check_actions(actions, mask, name="duel", step=lambda i: 3)
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: duel, environment 0, step 3: agent_1 got action 0: expected one of ...
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
