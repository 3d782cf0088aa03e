"""What TorchRL's WandbLogger calls of W&B: a run with an id, a config and rows, kept in memory."""

from __future__ import annotations

RUNS: dict[str, Run] = {}


class Config(dict):
    def update(self, values, allow_val_change=False):
        for key, value in values.items():
            if not allow_val_change and self.get(key, value) != value:
                raise ValueError(f"{key} was {self[key]}")
            self[key] = value


class Run:
    def __init__(self, id, name, project, dir):
        self.id, self.name, self.project, self.dir = id, name, project, dir
        self.config, self.step_metrics, self.rows = Config(), {}, []
        self.finished = False

    def define_metric(self, name, step_metric=None):
        self.step_metrics[name] = step_metric

    def log(self, payload, step=None, commit=True):
        assert not self.finished
        self.rows.append(dict(payload))

    def finish(self):
        self.finished = True


def init(*, name, dir, id, project, resume):
    assert resume == "allow"
    run = RUNS.setdefault(id, Run(id, name, project, dir))
    run.finished = False
    return run
