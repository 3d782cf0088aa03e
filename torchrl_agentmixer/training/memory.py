"""Memory allocation of the C library."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> bool:
    """Let the process reuse freed CPU memory, where the C library is glibc.

    By default glibc returns large blocks to the system, and requests them again with a page fault
    per page: half of the time of an update with a Policy Modifier. Memory then stays at its peak.

    Returns:
        bool: whether the C library accepts the setting.

    Examples:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_MAX: 0}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
