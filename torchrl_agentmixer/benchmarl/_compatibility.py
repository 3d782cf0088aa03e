"""Import of BenchMARL with this package's TorchRL."""

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
    """Import BenchMARL with a newer TorchRL than it declares.

    BenchMARL 1.5.2 declares ``torchrl<0.12`` and imports ``SyncDataCollector``, which is
    ``Collector`` in TorchRL 0.14. The old name exists during the import only. Its collectors have
    no preallocated buffers, in which TorchRL 0.14 loses the log-probabilities of recurrent
    policies. Older releases of BenchMARL also use removed arguments of losses.

    Raises:
        ImportError: if BenchMARL is missing, or of an unsupported version.
    """
    try:
        found = version("benchmarl")
    except PackageNotFoundError as error:
        raise ImportError(
            f"torchrl_agentmixer.benchmarl needs BenchMARL: {INSTALL} (docs/benchmarl.md)"
        ) from error
    if not Version(OLDEST) <= Version(found) < Version(NEXT):
        raise ImportError(
            f"torchrl_agentmixer.benchmarl: expected BenchMARL >={OLDEST},<{NEXT}, got {found}: "
            f"{INSTALL} (docs/benchmarl.md)"
        )
    collectors = vars(torchrl.collectors)
    collectors["SyncDataCollector"] = functools.partial(
        torchrl.collectors.Collector, use_buffers=False
    )
    try:
        importlib.import_module("benchmarl")
    finally:
        del collectors["SyncDataCollector"]
