"""Makes BenchMARL importable beside this package's TorchRL, or says why it is not."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import PackageNotFoundError, version

import torchrl.collectors
from packaging.version import Version

OLDEST, NEXT = "1.5.2", "1.6"
INSTALL = (
    f'pip install "torchrl_agentmixer[benchmarl]" && pip install --no-deps benchmarl=={OLDEST}'
)


def load_benchmarl() -> None:
    """Import BenchMARL on a TorchRL that is newer than the one it asks for.

    BenchMARL 1.5.2 declares ``torchrl<0.12``. What it misses in 0.14 is a name: the collector it
    calls ``SyncDataCollector`` is ``Collector``. It is lent that name while it is imported, without
    preallocated buffers, in which this TorchRL loses the log-probabilities of BenchMARL's recurrent
    policies. Older releases also use names of losses' arguments that are gone.

    Raises:
        ImportError: if BenchMARL is missing, or of a version that does not work.
    """
    try:
        found = version("benchmarl")
    except PackageNotFoundError as error:
        raise ImportError(
            f"torchrl_agentmixer.benchmarl needs BenchMARL: {INSTALL} (docs/benchmarl.md)"
        ) from error
    if not Version(OLDEST) <= Version(found) < Version(NEXT):
        raise ImportError(
            f"torchrl_agentmixer.benchmarl: expected BenchMARL >={OLDEST},<{NEXT}, got {found}, "
            f"which does not work with TorchRL {version('torchrl')}: {INSTALL} (docs/benchmarl.md)"
        )
    collectors = vars(torchrl.collectors)
    collectors["SyncDataCollector"] = functools.partial(
        torchrl.collectors.Collector, use_buffers=False
    )
    try:
        importlib.import_module("benchmarl")
    finally:
        del collectors["SyncDataCollector"]
