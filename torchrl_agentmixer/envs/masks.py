"""Actions that are legal now and then."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase


def draw_legal_actions(tensordict: TensorDictBase) -> TensorDictBase:
    """Write ``("agents", "action")``, drawn uniformly by ``("agents", "action_mask")``.

    Args:
        tensordict (TensorDictBase): with the mask ``[*B, n_agents, K]``, bool.

    Returns:
        TensorDictBase: the same one, with actions ``[*B, n_agents]``, int64.

    Examples:
        >>> from tensordict import TensorDict
        >>> mask = torch.tensor([[[False, True, False], [False, False, True]]])
        >>> data = TensorDict({"agents": {"action_mask": mask}}, batch_size=[1])
        >>> draw_legal_actions(data)["agents", "action"]
        tensor([[1, 2]])
    """
    mask = tensordict["agents", "action_mask"]
    action = torch.distributions.Categorical(probs=mask.float()).sample()
    return tensordict.set(("agents", "action"), action)


def check_legal(
    action: torch.Tensor,
    mask: torch.Tensor,
    *,
    name: str,
    dead_action: int,
    step: Callable[[int], int],
) -> None:
    """Raise an error for the first action that the mask forbids.

    Args:
        action (torch.Tensor): ``[num_envs, n_agents]``, integers.
        mask (torch.Tensor): ``[num_envs, n_agents, K]``, bool.

    Keyword Args:
        name (str): of the environment.
        dead_action (int): the one action of the dead.
        step (callable): of an environment's index, the step that it is about to take.

    Raises:
        ValueError: with environment, step, agent, action and what would be legal.

    Examples:
        >>> mask = torch.tensor([[[True, False], [False, True]]])
        >>> check_legal(torch.tensor([[0, 0]]), mask, name="duel", dead_action=0, step=lambda i: 3)
        Traceback (most recent call last):
            ...
        ValueError: duel, environment 0, step 3: agent_1, alive, cannot take action 0: expected \
one of [1], by its action mask.
    """
    n_actions = mask.shape[-1]
    chosen = mask.gather(-1, action.long().clamp(0, n_actions - 1).unsqueeze(-1)).squeeze(-1)
    illegal = ~chosen | (action < 0) | (action >= n_actions)  # [num_envs, n_agents]
    if illegal.any():
        env, agent = illegal.nonzero()[0].tolist()
        legal = mask[env, agent].nonzero().flatten().tolist()
        raise ValueError(
            f"{name}, environment {env}, step {step(env)}: agent_{agent}, "
            f"{'dead' if legal == [dead_action] else 'alive'}, cannot take action "
            f"{int(action[env, agent])}: expected one of {legal}, by its action mask."
        )
