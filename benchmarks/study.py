r"""Run a study: a grid of candidates, environments and seeds; write a CSV, tables and plots.

    python benchmarks/study.py benchmarks/studies/grids.yaml --out runs/grids \\
        --report docs/results/grids

A study file has these keys:

- ``experiments``: done in order. Each crosses ``environments`` with ``candidates`` and ``seeds`` (a
  number or a list). Environments and candidates are lists of overrides of ``examples/train.py``.
  ``metric`` is ``score`` (team reward per step, the default), ``return`` or ``win_rate``.
- ``candidates_from`` (optional): a Python file next to the study that registers more methods.
- ``archived`` (optional): candidates of the report that can no longer run, because their options
  were deleted. Their rows stay in the report.

A complete run is in ``<out>/<environment>/<candidate>/<seed>``. An interrupted run resumes from
its last checkpoint. The report has every evaluation of every seed as CSV, and a page with an
overview and, per environment, a table and a figure. The first candidate is the baseline.

Runs in the report at ``--report``, or in one given as ``--known``, are not repeated if their
overrides (``overrides.yaml``) equal those of the study. So a seed can be added to published tables
on another machine. A report with other runs is not replaced. Reports do not record the version of
the code: start a new report after a change that matters.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import signal
import sys
from collections.abc import Iterable
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import study_report
import yaml
from study_report import Report, RunName
from torch.multiprocessing import get_context

from torchrl_agentmixer.training import Interrupted

TRAIN = Path(__file__).parent.parent / "examples" / "train.py"
FIXED = ("plots=false", "num_threads=1", "auto_resume=true")


class Job(NamedTuple):
    """One run: its folder, and its overrides."""

    environment: str
    candidate: str
    seed: int
    metric: str
    overrides: tuple[str, ...]  # without the seed
    candidates_from: Path | None = None

    @property
    def name(self) -> RunName:
        return self.environment, self.candidate, self.seed

    def folder(self, out: Path) -> Path:
        return out / self.environment / self.candidate / str(self.seed)


class Study(NamedTuple):
    """Runs in order, and the candidates of the report that can no longer run."""

    jobs: list[Job]
    archived: set[str]


def read_study(path: Path) -> Study:
    """Read a study file; runs are sorted by experiment, and within an experiment by seed."""
    study = yaml.safe_load(path.read_text())
    module = path.parent / study["candidates_from"] if "candidates_from" in study else None
    jobs = []
    for experiment in study["experiments"]:
        seeds, metric = experiment["seeds"], experiment.get("metric", "score")
        jobs += [
            Job(environment, candidate, seed, metric, (*where, *what), module)
            for seed in (range(seeds) if isinstance(seeds, int) else seeds)
            for environment, where in experiment["environments"].items()
            for candidate, what in experiment["candidates"].items()
        ]
    names = [job.name for job in jobs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SystemExit(f"{path}: expected every run once, got {sorted(twice)} more than once.")
    return Study(jobs, set(study.get("archived", ())))


@cache
def load(path: Path) -> ModuleType:
    """Import a Python file that is not in a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def train(job: Job, folder: Path) -> dict[str, float | None]:
    """Train a run in ``folder``, or resume it; returns the last row of metrics."""
    from torchrl_agentmixer import experiment
    from torchrl_agentmixer.training.run_lock import lock_directory

    if job.candidates_from is not None:
        load(job.candidates_from)
    if folder.is_dir() and not experiment.can_resume(folder):
        release = lock_directory(folder)
        shutil.rmtree(folder)
        release()
    config = load(TRAIN).compose([*job.overrides, f"seed={job.seed}", *FIXED])
    return experiment.run(config, folder)


def run(job: Job, out: Path) -> None:
    """Do one run, and print its result; its folder gets its final name when it is complete.

    Raises:
        SystemExit: for a run that failed or was interrupted, after a line that says why.
    """
    folder = job.folder(out)
    unfinished = folder.with_suffix(".unfinished")
    try:
        last = train(job, unfinished)
    except Interrupted as error:  # its checkpoint is saved
        print(error, flush=True)
        sys.exit(error.exit_code)
    except Exception as error:
        print(f"{folder}: {type(error).__name__}: {error}", flush=True)
        sys.exit(1)
    unfinished.rename(folder)
    score = last[f"eval_{job.metric}"]
    print(f"{job.environment}, {job.candidate}, seed {job.seed}: {score:.4g}", flush=True)


def run_all(jobs: list[Job], out: Path, processes: int) -> int:
    """Do each run in a process of its own; returns the number of failures."""
    context, waiting, running, failed = get_context("spawn"), list(jobs), {}, 0

    def stop(*_: object) -> None:
        for process in running.values():
            process.terminate()
        sys.exit(143)  # when they have saved their checkpoints

    signal.signal(signal.SIGTERM, stop)
    while waiting or running:
        while waiting and len(running) < processes:
            job = waiting.pop(0)
            process = context.Process(target=run, args=(job, out), name=str(job.folder(out)))
            process.start()
            running[process.sentinel] = process
        for sentinel in wait(list(running)):
            process = running.pop(sentinel)
            process.join()
            failed += process.exitcode != 0
            if process.exitcode < 0:
                killer = signal.Signals(-process.exitcode).name
                print(f"{process.name}: killed by {killer}", flush=True)
    return failed


def usable(study: Study, report: Report) -> tuple[dict[RunName, list], set[RunName]]:
    """Rows of a report that the study keeps, by run, and the names of the other runs.

    Kept: runs with the study's overrides, and archived candidates.
    """
    expected = {job.name: list(job.overrides) for job in study.jobs}
    kept = {}
    for name, rows in report.rows.items():
        environment, candidate, _ = name
        overrides = report.overrides.get(environment, {}).get(candidate)
        if expected[name] == overrides if name in expected else candidate in study.archived:
            kept[name] = rows
    return kept, report.rows.keys() - kept.keys()


def listed(names: Iterable[RunName]) -> str:
    """Environments and candidates of runs."""
    return ", ".join(sorted({f"{environment}/{candidate}" for environment, candidate, _ in names}))


def reported(study: Study, target: Path | None, folders: list[Path]) -> Report:
    """Runs of the report at ``target``, and those of other reports that the study has."""
    names = {job.name for job in study.jobs}
    known = {}
    for folder in folders:
        kept, others = usable(study, study_report.read_report(folder))
        known |= {name: rows for name, rows in kept.items() if name in names}
        if others & names:
            print(f"{folder}: not taken, made with other overrides: {listed(others & names)}")
    earlier = study_report.read_report(target) if target else Report({}, {})
    kept, others = usable(study, earlier)
    if others:
        raise SystemExit(
            f"{target}: expected a report of this study, got runs of {listed(others)}, which the "
            "study lacks or has with other overrides. They would be lost. Report into another "
            "folder (--known takes what can be kept), or list the candidates as `archived`."
        )
    return Report(known | kept, earlier.overrides)


def collected(study: Study, out: Path, known: Report) -> Report:
    """All complete runs in the order of the study, and the archived ones."""
    rows: dict[RunName, list] = {}
    overrides: study_report.Overrides = {}
    for job in study.jobs:
        folder = job.folder(out)
        if folder.exists():
            rows[job.name] = study_report.read_run(job.name, job.metric, folder)
        elif job.name in known.rows:
            rows[job.name] = known.rows[job.name]
        if job.name in rows:
            overrides.setdefault(job.environment, {})[job.candidate] = list(job.overrides)
    for name, found in known.rows.items():
        environment, candidate, _ = name
        if name not in rows:  # archived
            rows[name] = found
            made_with = known.overrides[environment][candidate]
            overrides.setdefault(environment, {})[candidate] = made_with
    return Report(rows, overrides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="0: no runs, only the report")
    parser.add_argument("--report", type=Path, help="folder of the report of complete runs")
    parser.add_argument(
        "--known", type=Path, nargs="+", default=[], help="reports to take runs from"
    )
    parser.add_argument("--only", nargs="+", default=[], help="environments or candidates")
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    known = reported(study, arguments.report, arguments.known)
    failed = 0
    if arguments.processes:
        chosen = set(arguments.only)
        todo = [
            job
            for job in study.jobs
            if not job.folder(arguments.out).exists()
            and job.name not in known.rows
            and (not chosen or chosen & {job.environment, job.candidate})
        ]
        print(f"{len(study.jobs) - len(todo)} of {len(study.jobs)} runs complete or left out")
        failed = run_all(todo, arguments.out, arguments.processes)
    if arguments.report:
        found = collected(study, arguments.out, known)
        if not found.rows:
            raise SystemExit(f"{arguments.out}: expected complete runs of this study, found none.")
        print(study_report.write_report(found, arguments.report, study.archived))
    if failed:
        raise SystemExit(f"{failed} runs failed; the others are complete.")


if __name__ == "__main__":
    main()
