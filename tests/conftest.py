"""What tests of several folders use."""

from __future__ import annotations

import io
import logging
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_script(monkeypatch):
    """``python script arguments``, in this process, which has imported torch already.

    Returns what it printed; ``ok`` is whether it is to succeed.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra sets others
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(script, *arguments, ok=True):
        path, printed, code = ROOT / script, io.StringIO(), 0
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        # Hydra closes all there are, and absl's, where a test imported it, closes pytest's stream.
        monkeypatch.setattr(logging, "_handlerList", [])
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code
        assert (not code) == ok, f"{printed.getvalue()}{code}"
        return printed.getvalue()

    yield run
    root.handlers[:], root.level = handlers, level
    for number, handler in signals.items():
        signal.signal(number, handler)
