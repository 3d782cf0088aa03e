"""Memory that the C library keeps instead of giving it back to the system."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> bool:
    """Let freed CPU memory be reused by this process, where the C library is glibc.

    By default glibc returns large blocks to the system and asks for them again at the next
    operation, and each new page is a fault. With hidden activations of tens of megabytes, which
    agent-mixing has, that is half of an update's time. Memory stays at its peak in return.

    Returns:
        bool: whether the C library took the setting; elsewhere nothing changes.

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
