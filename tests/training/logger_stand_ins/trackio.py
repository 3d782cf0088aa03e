"""What TorchRL's TrackioLogger calls of Trackio: runs by name, whose config each start replaces."""

from __future__ import annotations

from types import SimpleNamespace

RUNS: dict[tuple[str, str], SimpleNamespace] = {}


def init(*, name, project, resume):
    assert resume == "allow"
    run = RUNS.setdefault((project, name), SimpleNamespace(rows=[]))
    run.config, run.finished = {}, False

    def log(payload, step=None):
        assert not run.finished
        run.rows.append((step, payload))

    def finish():
        run.finished = True

    run.log, run.finish = log, finish
    return run
