"""Failures: a run ends soon, the error names the cause, and earlier checkpoints stay intact."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import Transform

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env, simulation_state, team_env
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import (
    Interrupted,
    LoopConfig,
    RunCheckpoints,
    RunDirectory,
    train,
)
from torchrl_agentmixer.training.collection import STATE_UNAVAILABLE
from torchrl_agentmixer.training.finite import check_update
from torchrl_agentmixer.training.signals import SignalHandler, dead_worker

TASK = partial(make_env, "grid/predator_prey", num_envs=2)
SEEDED = partial(TASK, seed=0)


class FromStep(Transform):
    """Calls ``happens`` from the given step of the environment on."""

    def __init__(self, step, happens):
        super().__init__()
        self.step, self.happens, self.count = step, happens, 0

    def _step(self, tensordict, next_tensordict):
        self.count += 1
        if self.count >= self.step:
            self.happens(next_tensordict)
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


def nan_reward(data):
    data["reward"][1] = torch.nan


def error(data):
    raise ArithmeticError("the prey is gone")


def ignore_sigterm(data):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def control_c(data):
    """In a worker, as a terminal does: the signal reaches the worker and its parent."""
    os.kill(os.getppid(), signal.SIGINT)
    raise KeyboardInterrupt


def go(path, env, *, method=None, resume=False, lr=5e-4, **hooks):
    """Batches of 10 steps in 4 environments, with a checkpoint after each."""
    torch.manual_seed(0)
    eval_env = TASK(seed=0)
    algorithm = method or make_algorithm("mappo", eval_env, 160, {"epochs": 1, "lr": lr})
    config = LoopConfig(
        total_frames=160, frames_per_batch=40, eval_interval=160, eval_steps=2, **CHECKPOINTS
    )
    hooks.setdefault("on_message", lambda message: None)
    train(algorithm, env, eval_env, config, RunDirectory(path, resume=resume), **hooks)
    return algorithm


CHECKPOINTS = {"checkpoint_interval": 40}


def four(**options):
    return make_env("grid/predator_prey", num_envs=4, seed=0, **options)


def newest(path):
    """Frames and algorithm of the newest checkpoint, whose parameters are all finite."""
    frames, state = RunCheckpoints(path / "checkpoints").load_newest()
    algorithm = state["ranks"][0]["algorithm"]
    assert all(v.isfinite().all() for v in algorithm["parameters"].values())
    assert read_metrics(path)["frames"][-1] == frames
    return frames, algorithm


def test_a_nan_reward(tmp_path):
    """Step 25 is step 4, counted from 0, of the batch that ends at 120."""
    with pytest.raises(FloatingPointError) as raised:
        go(tmp_path, TransformedEnv(four(), FromStep(25, nan_reward)))
    message = str(raised.value)
    assert "entry ('next', 'reward') of the batch that ends at frame 120 is nan" in message
    assert "index (1, 4, 0)" in message
    assert str(RunCheckpoints(tmp_path / "checkpoints").newest) in message
    assert newest(tmp_path)[0] == 80


class Diverging:
    """An algorithm whose third update writes NaN or infinity."""

    def __init__(self, how, lr=5e-4):
        self._method = make_algorithm("mappo", TASK(seed=0), 160, {"epochs": 1, "lr": lr})
        self.how, self.updates = how, 0

    def __getattr__(self, name):
        return getattr(self._method, name)

    def update(self, batch):
        metrics = self._method.update(batch)
        self.updates += 1
        if self.updates == 3 and self.how in ("loss", "both"):
            metrics["loss_critic"] = float("inf")
        if self.updates == 3 and self.how in ("parameter", "both"):
            with torch.no_grad():
                list(self._method.critic.parameters())[-1][0] = torch.nan
        return metrics


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("loss", r"^metric 'loss_critic' is inf after the update at frame 120"),
        ("parameter", r"^parameter 'critic\S+' is nan at index \(0,?.*\) of shape"),
        ("both", r"^metric 'loss_critic' is inf and parameter 'critic\S+' is nan"),
    ],
)
def test_an_update_that_diverges_and_resume_with_a_lower_learning_rate(tmp_path, how, words):
    with pytest.raises(FloatingPointError, match=words) as raised:
        go(tmp_path, four(), method=Diverging(how))
    assert "checkpoint-000000000080.torchrl" in str(raised.value)
    frames, saved = newest(tmp_path)
    assert frames == 80
    # The optimizer keeps its state.
    algorithm = go(tmp_path, four(), resume=True, lr=1e-5)
    assert {group["lr"] for group in algorithm.optimizer.param_groups} == {1e-5}
    steps = [state["step"] for state in algorithm.optimizer.state.values()]
    before = [s["step"] for s in saved["optimizers"]["optimizer"]["state"].values()]
    assert steps == [2 * step for step in before]
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


def test_the_first_parameter_with_nan_or_infinity_is_named():
    state = {"a": torch.ones(2), "n": torch.tensor(3), "b": torch.tensor([[1.0, -torch.inf]])}
    with pytest.raises(FloatingPointError, match=r"'b' is -inf at index \(0, 1\) of shape \(1, 2"):
        check_update({"loss": 1.0, "return": None}, state, 40)
    check_update({"loss": 1.0, "return": None}, {"a": torch.ones(2), "note": "text"}, 40)
    check_update({}, {}, 40)


def test_without_checkpoints_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(CHECKPOINTS, "checkpoint_interval", None)
    with pytest.raises(FloatingPointError, match="no checkpoint"):
        go(tmp_path, TransformedEnv(four(), FromStep(25, nan_reward)))


def test_an_environment_that_raises(tmp_path):
    messages = []
    env = TransformedEnv(four(), FromStep(25, error))
    with pytest.raises(ArithmeticError, match="the prey is gone"):
        go(tmp_path, env, on_message=messages.append)
    assert "ArithmeticError at frame 80" in messages[0]
    assert "checkpoint-000000000080.torchrl" in messages[0]
    assert newest(tmp_path)[0] == 80


def workers(*envs):
    """Environments of one worker each, and their processes once they have started."""
    parallel = ParallelEnv(len(envs), list(envs), mp_start_method="fork")  # faster than spawn
    return team_env(parallel), lambda: parallel._workers


def gone(pids):
    def is_gone(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return len(pids) == 2 and all(map(is_gone, pids))


def broken(how):
    return TransformedEnv(SEEDED(), FromStep(25, how))


def test_a_worker_whose_environment_raises(tmp_path, capfd):
    env, processes = workers(SEEDED, partial(broken, error))
    started = []
    with pytest.raises(RuntimeError) as raised:
        go(tmp_path, env, on_start=lambda _: started.extend(w.pid for w in processes()))
    assert (
        f"worker 1 of 2 of the parallel environment (process {started[1]}) ended with exit code 1"
        in str(raised.value)
    )
    assert "at frame 80" in str(raised.value)
    assert "ArithmeticError: the prey is gone" in capfd.readouterr().err
    assert gone(started)
    assert newest(tmp_path)[0] == 80


def stubborn():
    return TransformedEnv(SEEDED(), FromStep(1, ignore_sigterm))


def test_a_worker_that_is_killed(tmp_path):
    """The other worker ignores SIGTERM, and is ended as well."""
    env, processes = workers(SEEDED, stubborn)
    started, killed = [], []

    def kill(row):
        if row["frames"] == 80:
            started.extend(worker.pid for worker in processes())
            killed.append(time.monotonic())
            os.kill(started[0], signal.SIGKILL)

    with pytest.raises(RuntimeError) as raised:
        go(tmp_path, env, on_metrics=kill)
    assert time.monotonic() - killed[0] < 60
    assert (
        f"worker 0 of 2 of the parallel environment (process {started[0]}) was killed by SIGKILL"
        in str(raised.value)
    )
    assert gone(started)
    assert newest(tmp_path)[0] == 80
    # The checkpoint resumes with new workers, in new episodes.
    messages = []
    env, _ = workers(SEEDED, SEEDED)
    go(tmp_path, env, resume=True, on_message=messages.append)
    assert STATE_UNAVAILABLE in messages[-1]
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


def test_a_signal_to_all_processes_of_a_job(tmp_path):
    """Ctrl-C reaches the workers too: the run ends as interrupted."""
    with pytest.raises(Interrupted, match="SIGINT: worker 1 of 2") as ended:
        go(tmp_path, workers(SEEDED, partial(broken, control_c))[0])
    assert ended.value.exit_code == 130
    assert newest(tmp_path)[0] == 80


def test_the_worker_that_crashed_is_named_before_those_that_were_terminated():
    spawn = get_context("spawn")  # without the signal handlers of this process
    ended = spawn.Process(target=time.sleep, args=(60,))
    died = spawn.Process(target=os._exit, args=(3,))
    assert dead_worker([]) is None
    for process in (ended, died):
        process.start()
    ended.terminate()
    for process in (ended, died):
        process.join()
    assert dead_worker([ended, died]).startswith("worker 1 of 2 of the parallel environment")
    assert f"(process {died.pid}) ended with exit code 3" in dead_worker([ended, died])
    assert dead_worker([ended]).endswith(f"(process {ended.pid}) was killed by SIGTERM")


def test_a_serial_env_cannot_save_its_state():
    env = SerialEnv(2, SEEDED)
    env.reset()
    assert simulation_state(env) is None


class Requeued(BaseException):
    pass


def test_a_handled_sigusr2_follows_the_checkpoint(tmp_path):
    """submitit handles SIGUSR2, and needs a complete checkpoint by then."""

    def requeue(number, frame):
        raise Requeued(newest(tmp_path)[0])

    def limit(row):
        if row["frames"] == 80:
            os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(Requeued) as raised:
            go(tmp_path, four(), on_metrics=limit)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert raised.value.args == (80,)
    go(tmp_path, four(), resume=True)
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


@pytest.mark.parametrize("interval", [40, None])
def test_an_interrupted_run_says_whether_it_can_be_resumed(tmp_path, monkeypatch, interval):
    monkeypatch.setitem(CHECKPOINTS, "checkpoint_interval", interval)

    def interrupt(row):
        if row["frames"] == 80:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        go(tmp_path, four(), on_metrics=interrupt)
    assert raised.value.exit_code == 143
    message = str(raised.value)
    assert "SIGTERM at frame 80" in message
    newest = RunCheckpoints(tmp_path / "checkpoints").newest
    assert (newest is None) == (interval is None)
    assert ("no checkpoint" in message) == (newest is None)
    assert (str(newest) in message) == (newest is not None)


def test_a_handler_from_c_code_is_replaced_by_the_default(monkeypatch):
    """``signal.getsignal`` returns ``None`` for it, which ``signal.signal`` rejects."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("signal.getsignal", lambda number: None)
    try:
        with SignalHandler() as signals:
            signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
        assert signals.received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
