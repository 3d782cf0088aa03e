"""What breaks a run: it ends soon, says what it was, and a checkpoint from before stays whole."""

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
from torchrl_agentmixer.envs import make_env, simulation_state
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunCheckpoints, RunDirectory, train
from torchrl_agentmixer.training.finite import check_update
from torchrl_agentmixer.training.signals import what_died

TASK = partial(make_env, "grid/predator_prey", num_envs=2)
SEEDED = partial(TASK, seed=0)


class FromStep(Transform):
    """Something happens from the given step of the environment on."""

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
    """In a worker, as a terminal does it: the signal goes to the worker and to its parent."""
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
    """Frames and parts of the newest checkpoint, whose parameters are all finite."""
    frames, parts = RunCheckpoints(path / "checkpoints").load_newest()
    assert all(v.isfinite().all() for v in parts["algorithm"]["parameters"].values())
    assert read_metrics(path)["frames"][-1] == frames
    return frames, parts


def test_a_nan_reward(tmp_path):
    """Step 25 is step 4, counted from 0, of the batch that ends at 120."""
    with pytest.raises(FloatingPointError) as raised:
        go(tmp_path, TransformedEnv(four(), FromStep(25, nan_reward)))
    message = str(raised.value)
    assert "entry ('next', 'reward') of the batch that ends at frame 120 is nan" in message
    assert "index (1, 4, 0)" in message
    assert f"{RunCheckpoints(tmp_path / 'checkpoints').newest} is from before" in message
    assert newest(tmp_path)[0] == 80


class Diverging:
    """A method that goes wrong at its third update, in the given way."""

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
def test_an_update_that_diverges_and_a_way_back(tmp_path, how, words):
    with pytest.raises(FloatingPointError, match=words) as raised:
        go(tmp_path, four(), method=Diverging(how))
    assert "checkpoint-000000000080.torchrl is from before" in str(raised.value)
    frames, parts = newest(tmp_path)
    assert frames == 80
    # On with a lower learning rate, and what the optimizer knew.
    algorithm = go(tmp_path, four(), resume=True, lr=1e-5)
    assert {group["lr"] for group in algorithm.optimizer.param_groups} == {1e-5}
    steps = [state["step"] for state in algorithm.optimizer.state.values()]
    before = [s["step"] for s in parts["algorithm"]["optimizer"]["state"].values()]
    assert steps == [2 * step for step in before]
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


def test_the_first_parameter_that_is_not_finite_is_named():
    state = {"a": torch.ones(2), "n": torch.tensor(3), "b": torch.tensor([[1.0, -torch.inf]])}
    with pytest.raises(FloatingPointError, match=r"'b' is -inf at index \(0, 1\) of shape \(1, 2"):
        check_update({"loss": 1.0, "return": None}, state, 40)
    check_update({"loss": 1.0, "return": None}, {"a": torch.ones(2), "note": "text"}, 40)
    check_update({}, {}, 40)


def test_without_checkpoints_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(CHECKPOINTS, "checkpoint_interval", None)
    with pytest.raises(FloatingPointError, match="There is no checkpoint to go back to"):
        go(tmp_path, TransformedEnv(four(), FromStep(25, nan_reward)))


def test_an_environment_that_raises(tmp_path):
    messages = []
    env = TransformedEnv(four(), FromStep(25, error))
    with pytest.raises(ArithmeticError, match="the prey is gone"):
        go(tmp_path, env, on_message=messages.append)
    assert messages[0].startswith("ArithmeticError after frame 80. ")
    assert "checkpoint-000000000080.torchrl is from before" in messages[0]
    assert newest(tmp_path)[0] == 80


def workers(*envs):
    return ParallelEnv(len(envs), list(envs), mp_start_method="fork")  # faster than to spawn


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
    env = workers(SEEDED, partial(broken, error))
    started = []
    with pytest.raises(RuntimeError) as raised:
        go(tmp_path, env, on_start=lambda _: started.extend(w.pid for w in env._workers))
    assert (
        f"worker 1 of 2 of the parallel environment (process {started[1]}) ended with exit "
        "code 1; its own error is printed above, after frame 80. " in str(raised.value)
    )
    assert "ArithmeticError: the prey is gone" in capfd.readouterr().err
    assert gone(started)
    assert newest(tmp_path)[0] == 80


def stubborn():
    return TransformedEnv(SEEDED(), FromStep(1, ignore_sigterm))


def test_a_worker_that_is_killed(tmp_path):
    """The other one does not end when it is asked to: it is not left behind either."""
    env = workers(SEEDED, stubborn)
    started, killed = [], []

    def kill(row):
        if row["frames"] == 80:
            started.extend(worker.pid for worker in env._workers)
            killed.append(time.monotonic())
            os.kill(started[0], signal.SIGKILL)

    with pytest.raises(RuntimeError) as raised:
        go(tmp_path, env, on_metrics=kill)
    assert time.monotonic() - killed[0] < 60  # what a user waits: the one time there is a promise
    assert (
        f"worker 0 of 2 of the parallel environment (process {started[0]}) was killed by "
        "SIGKILL, after frame 80. " in str(raised.value)
    )
    assert gone(started)
    assert newest(tmp_path)[0] == 80
    # And the checkpoint is good: on with new workers, in new episodes.
    messages = []
    env = workers(SEEDED, SEEDED)
    go(tmp_path, env, resume=True, on_message=messages.append)
    assert messages[-1].endswith("the environment cannot tell its state; episodes begin anew.")
    assert read_metrics(tmp_path)["frames"] == [40, 80, 120, 160]


def test_a_signal_to_all_processes_of_a_job(tmp_path):
    """Ctrl-C reaches the workers too: the run ends as one that was asked to."""
    messages = []
    with pytest.raises(SystemExit) as ended:
        go(tmp_path, workers(SEEDED, partial(broken, control_c)), on_message=messages.append)
    assert ended.value.code == 130
    assert messages[-1].startswith("SIGINT: worker 1 of 2 of the parallel environment")
    assert newest(tmp_path)[0] == 80


def test_of_workers_that_ended_the_one_that_did_it_is_named():
    spawn = get_context("spawn")  # without the signal handlers that this process may have by now
    ended = spawn.Process(target=time.sleep, args=(60,))
    died = spawn.Process(target=os._exit, args=(3,))
    assert what_died([]) is None
    for process in (ended, died):
        process.start()
    ended.terminate()
    for process in (ended, died):
        process.join()
    assert what_died([ended, died]).startswith("worker 1 of 2 of the parallel environment")
    assert f"(process {died.pid}) ended with exit code 3" in what_died([ended, died])
    assert what_died([ended]).endswith(f"(process {ended.pid}) was killed by SIGTERM")


def test_environments_of_several_cannot_tell_their_state():
    env = SerialEnv(2, SEEDED)
    env.reset()
    assert simulation_state(env) is None


class Requeued(BaseException):
    pass


def test_a_job_that_is_told_of_its_time_limit(tmp_path):
    """As submitit tells it, by a signal that it handles: not before there is a checkpoint."""

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
