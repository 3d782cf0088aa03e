"""Where a simulation stands: what to save, so that it goes on from there exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

State = dict[str, Any]


def simulation_state(env: EnvBase) -> State | None:
    """All that decides how an environment goes on, its random numbers included.

    Environments of this package have it by their own ``simulation_state()``; of transforms, the
    ``state_dict()`` is taken.

    Args:
        env (EnvBase): an environment, with transforms or without.

    Returns:
        dict: nested, of tensors, numbers and strings, which ``torch.load(weights_only=True)``
        reads; ``None`` where the environment cannot tell. Transforms can, whatever they are on.

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
        return {
            "transform": env.transform.state_dict(),
            "base": simulation_state(env.base_env),
        }
    if isinstance(env, ParallelEnv | SerialEnv):
        return None  # each worker has random numbers of its own, which it does not tell
    return env.simulation_state() if hasattr(env, "simulation_state") else None


def load_simulation_state(env: EnvBase, state: Mapping[str, Any] | None) -> bool:
    """Bring an environment to where another one stood, of the same kind and size.

    Args:
        env (EnvBase): built as the one whose state it is.
        state (mapping): what :func:`simulation_state` returned.

    Returns:
        bool: whether it goes on exactly as the other would: not where that one could not tell its
        state, or that under its transforms.

    Raises:
        ValueError: for the state of an environment of another kind or size.
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
    """All places of an object's graph that hold a tensor or nothing, in a fixed order.

    Args:
        root (object): where to begin.
        modules (tuple of str): how the modules begin whose objects are looked into, as are lists,
            tuples and dicts.
        known (tuple of object): objects not to look into.

    Yields:
        tuple: what holds it (an object or a list or dict), its attribute, index or key, and the
        path from the root.
    """
    seen = {id(one) for one in known}
    pending: list[tuple[Any, str]] = [(root, "")]
    while pending:
        holder, path = pending.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        entries: Any
        if isinstance(holder, dict):
            entries = holder.items()
        elif isinstance(holder, list | tuple):
            entries = enumerate(holder)
        elif isinstance(holder, type):
            continue
        elif type(holder).__module__.startswith(modules) and hasattr(holder, "__dict__"):
            entries = vars(holder).items()
        else:
            continue
        for index, (name, value) in enumerate(entries):
            place = f"{path}.{name if isinstance(name, str) else index}"
            if value is None or isinstance(value, torch.Tensor):
                yield holder, name, place
            else:
                pending.append((value, place))


def put(holder: Any, name: Any, value: Any) -> None:
    """Set an attribute, or an entry of a list or dict."""
    if isinstance(holder, list | dict):
        holder[name] = value
    else:
        vars(holder)[name] = value


def check_names(env: str, got: Iterable[Any], expected: Iterable[Any]) -> None:
    """Raise a ValueError if a state's entries are not those of the environment."""
    differ = sorted(map(str, set(got) ^ set(expected)))
    if differ:
        raise ValueError(
            f"{env}: expected the simulation state of an environment of the same kind; "
            f"{len(differ)} entries differ, such as {differ[:3]}."
        )


def check_shape(env: str, name: str, got: Any, expected: Any) -> None:
    """Raise a ValueError if an entry of a state is that of another number of environments."""
    if tuple(got.shape) != tuple(expected.shape):
        raise ValueError(
            f"{env}: expected {name!r} of shape {tuple(expected.shape)} in the simulation state, "
            f"got {tuple(got.shape)}: it is that of another number of environments."
        )


def plain_random_state(state: Any) -> Any:
    """numpy's or Python's random state with a tensor in place of an array."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.astype(np.int64))
    if isinstance(state, tuple):
        return tuple(plain_random_state(part) for part in state)
    return state


def numpy_random_state(plain: Any) -> Any:
    """What :func:`plain_random_state` made of ``numpy.random.get_state()``, undone."""
    return tuple(
        part.numpy(force=True).astype(np.uint32) if isinstance(part, torch.Tensor) else part
        for part in plain
    )
