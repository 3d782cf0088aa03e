"""Report on a folder of runs.

python -m torchrl_agentmixer.reporting runs --out report
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_agentmixer.reporting.report import METRICS, write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; errors that a user can fix are printed as one line."""
    parser = argparse.ArgumentParser(
        prog="python -m torchrl_agentmixer.reporting",
        description="Tables, plots and data of all runs in a folder.",
    )
    parser.add_argument("runs", type=Path, help="a folder of <task>/<method>/<run>")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--metric", choices=METRICS, default="score")
    parser.add_argument("--baseline", help="the method that the others are compared with")
    parser.add_argument("--resamples", type=int, default=2000, help="number of bootstrap samples")
    chosen = parser.parse_args(arguments)
    try:
        written = write_report(
            chosen.runs,
            chosen.out,
            metric=chosen.metric,
            baseline=chosen.baseline,
            resamples=chosen.resamples,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    sys.stdout.write("\n".join(map(str, written)) + "\n")


if __name__ == "__main__":
    main()
