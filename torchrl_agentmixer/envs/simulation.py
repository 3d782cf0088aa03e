"""Simulation states: everything needed to resume an environment with equal results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

State = dict[str, Any]


def simulation_state(env: EnvBase) -> State | None:
    """State of a simulation, including its random number generators.

    Environments of this package have a method ``simulation_state()``. Transforms add their
    ``state_dict()``.

    Args:
        env (EnvBase): an environment, with transforms or without.

    Returns:
        dict: nested; of tensors, numbers and strings, which ``torch.load(weights_only=True)``
        reads. ``None`` if the environment's state is unavailable; under transforms, the entry
        ``"base"`` is ``None`` then.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/predator_prey", num_envs=2, seed=0)
        >>> data = env.reset()
        >>> action = env.rand_action(data)
        >>> state = simulation_state(env)
        >>> first = env.step(action.clone())["next", "state"]
        >>> other = make_env("grid/predator_prey", num_envs=2, seed=7)
        >>> load_simulation_state(other, state)
        True
        >>> bool((other.step(action)["next", "state"] == first).all())
        True
    """
    if isinstance(env, TransformedEnv):
        base = simulation_state(env.base_env)
        return {"transform": env.transform.state_dict(), "base": base}
    if isinstance(env, ParallelEnv | SerialEnv):
        return None  # the workers' random states are not available here
    return env.simulation_state() if hasattr(env, "simulation_state") else None


def load_simulation_state(env: EnvBase, state: Mapping[str, Any] | None) -> bool:
    """Restore the state of a simulation.

    Args:
        env (EnvBase): of the same kind and batch size as the environment that was saved.
        state (mapping): from :func:`simulation_state`.

    Returns:
        bool: whether the environment resumes exactly; false where the state was unavailable.

    Raises:
        ValueError: for the state of an environment of another kind or batch size.
    """
    if state is None:
        return False
    if isinstance(env, TransformedEnv):
        env.transform.load_state_dict(state["transform"])
        return load_simulation_state(env.base_env, state["base"])
    env.load_simulation_state(state)
    return True


def tensors_within(
    root: Any, modules: tuple[str, ...], known: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, Any, str]]:
    """Iterate over all tensors and ``None`` values in an object graph, in a fixed order.

    Searches lists, tuples, dicts and objects whose module name begins with one of ``modules``,
    except ``known``. Yields the container (for an object, its ``__dict__``), the index or key in
    it, and the path from the root.
    """
    seen = {id(one) for one in known}
    pending: list[tuple[Any, str]] = [(root, "")]
    while pending:
        holder, path = pending.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        container = holder
        if not isinstance(holder, dict | list | tuple):
            if isinstance(holder, type) or not type(holder).__module__.startswith(modules):
                continue
            container = getattr(holder, "__dict__", {})
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        for index, (name, value) in enumerate(entries):
            place = f"{path}.{name if isinstance(name, str) else index}"
            if value is None or isinstance(value, torch.Tensor):
                yield container, name, place
            else:
                pending.append((value, place))


def check_names(env: str, got: Iterable[Any], expected: Iterable[Any]) -> None:
    """Raise a ValueError if the entries of a state differ from those of the environment."""
    differ = sorted(map(str, set(got) ^ set(expected)))
    if differ:
        raise ValueError(
            f"{env}: expected the simulation state of an environment of the same kind; "
            f"{len(differ)} entries differ, such as {differ[:3]}."
        )


def check_shape(env: str, name: str, got: Any, expected: Any) -> None:
    """Raise a ValueError if an entry of a state has the shape of another batch size."""
    if tuple(got.shape) != tuple(expected.shape):
        raise ValueError(
            f"{env}: expected {name!r} of shape {tuple(expected.shape)} in the simulation state, "
            f"got {tuple(got.shape)}: `num_envs` differs."
        )


def plain_random_state(state: Any) -> Any:
    """Copy of numpy's or Python's random state with tensors instead of arrays."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.astype(np.int64))
    if isinstance(state, tuple):
        return tuple(plain_random_state(part) for part in state)
    return state


def numpy_random_state(plain: Any) -> Any:
    """Inverse of :func:`plain_random_state` for ``numpy.random.get_state()``."""
    return tuple(
        part.numpy(force=True).astype(np.uint32) if isinstance(part, torch.Tensor) else part
        for part in plain
    )
