"""Physics of a batch of robots: one MuJoCo thread pool, or a Python loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np


class SimulatorError(RuntimeError):
    """An error of one simulator, with its index."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Physics(Protocol):
    """Simulations of one MuJoCo model.

    ``fields`` maps names of ``MjData`` fields to arrays ``[num_envs, ...]``, which every call
    updates. After a step they describe the last substep, as in ``mujoco.mj_step``.
    """

    fields: dict[str, np.ndarray]

    def step(self, controls: np.ndarray, substeps: int) -> None:
        """Step all simulations with controls ``[num_envs, nu]``."""

    def reset(self, indices: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Reset the simulations of ``indices``, in ascending order."""

    def state(self) -> np.ndarray:
        """Return integration states ``[num_envs, s]``: all that a step depends on."""

    def load_state(self, state: np.ndarray) -> None:
        """Restore integration states."""

    def copy_data(self, index: int, data: Any) -> None:
        """Copy one simulation to ``data``."""


def make_physics(model: Any, num_envs: int, num_threads: int, fields: Sequence[str]) -> Physics:
    """Make simulations on ``mujoco.batch``, or in a loop where MuJoCo lacks it (before 3.17)."""
    if find_spec("mujoco.batch") is None:
        return LoopPhysics(model, num_envs, fields)
    return BatchPhysics(model, num_envs, num_threads, fields)


class BatchPhysics:
    """Simulations on the threads of ``mujoco.batch.Batch``; results do not depend on their number.

    A batch cannot call ``mj_rnePostConstraint`` after a step. Robots with contacts are therefore
    copied, and it computes ``cfrc_ext`` of the copy. Without contacts, ``cfrc_ext`` is zero.
    """

    def __init__(self, model: Any, num_envs: int, num_threads: int, fields: Sequence[str]) -> None:
        import mujoco
        from mujoco.batch import Batch

        self._mujoco = mujoco
        self._model = model
        # Persistent: copies include contacts and their forces.
        self._batch = Batch(model, num_envs, num_threads, persistent=True)
        self._scratch = mujoco.MjData(model)
        self._initial = self._batch.state[0].copy()
        self.fields = {name: self._batch.bind(name) for name in fields if name != "cfrc_ext"}
        self._contacts = self._batch.bind("ncon").reshape(num_envs)
        self._forces: np.ndarray | None = None
        if "cfrc_ext" in fields:
            self._forces = np.zeros((num_envs, *self._scratch.cfrc_ext.shape))
            self.fields["cfrc_ext"] = self._forces

    def step(self, controls: np.ndarray, substeps: int) -> None:
        with self._named_errors():
            self._batch.ctrl = controls
            self._batch.step(nstep=substeps)
        if self._forces is None:
            return
        self._forces[:] = 0
        scratch = self._scratch
        for i in np.flatnonzero(self._contacts).tolist():
            self._batch.get_data(i, scratch)
            self._mujoco.mj_rnePostConstraint(self._model, scratch)
            self._forces[i] = scratch.cfrc_ext

    def reset(self, indices: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        with self._named_errors():
            self._batch.state[indices] = self._initial
            self.fields["qpos"][indices] = qpos
            self.fields["qvel"][indices] = qvel
            self._batch.forward(indices)
        if self._forces is not None:
            self._forces[indices] = 0  # a forward pass does not compute them

    def state(self) -> np.ndarray:
        return self._batch.state.copy()

    def load_state(self, state: np.ndarray) -> None:
        self._batch.state[:] = state
        # Positions of bodies, for rendering; this does not change the state.
        self._batch.forward(stage=self._mujoco.mjtStage.mjSTAGE_POS.value)

    def copy_data(self, index: int, data: Any) -> None:
        self._batch.get_data(index, data)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        from mujoco.batch import SimulationError

        try:
            yield
        except SimulationError as error:
            index = int(error.ids[0])
            raise SimulatorError(index, self._batch.error(index)) from error


class LoopPhysics:
    """Simulations one after the other, for MuJoCo without ``mujoco.batch``."""

    def __init__(self, model: Any, num_envs: int, fields: Sequence[str]) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model = model
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self.fields = {
            name: np.zeros((num_envs, *getattr(self._data[0], name).shape)) for name in fields
        }

    def step(self, controls: np.ndarray, substeps: int) -> None:
        for i, data in enumerate(self._data):
            with self._reading(i):
                data.ctrl[:] = controls[i]
                self._mujoco.mj_step(self._model, data, nstep=substeps)
                if "cfrc_ext" in self.fields:
                    self._mujoco.mj_rnePostConstraint(self._model, data)

    def reset(self, indices: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        for k, i in enumerate(indices.tolist()):
            with self._reading(i):
                data = self._data[i]
                self._mujoco.mj_resetData(self._model, data)
                data.qpos[:], data.qvel[:] = qpos[k], qvel[k]
                self._mujoco.mj_forward(self._model, data)

    def state(self) -> np.ndarray:
        size = self._mujoco.mj_stateSize(self._model, self._kind)
        states = np.empty((len(self._data), size))
        for data, state in zip(self._data, states, strict=True):
            self._mujoco.mj_getState(self._model, data, state, self._kind)
        return states

    def load_state(self, state: np.ndarray) -> None:
        for i, data in enumerate(self._data):
            self._mujoco.mj_setState(self._model, data, state[i], self._kind)
            self._mujoco.mj_fwdPosition(self._model, data)  # for rendering

    def copy_data(self, index: int, data: Any) -> None:
        self._mujoco.mj_copyData(data, self._model, self._data[index])

    @contextmanager
    def _reading(self, i: int) -> Iterator[None]:
        """Name the simulator in errors, and read its fields afterwards."""
        try:
            yield
        except Exception as error:
            raise SimulatorError(i, f"{type(error).__name__}: {error}") from error
        for name, values in self.fields.items():
            values[i] = getattr(self._data[i], name)
