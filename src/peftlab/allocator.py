"""How this process's memory comes from the kernel while it trains. Imports no torch.

glibc gives every large block fresh pages and returns them when it is freed, so that the kernel clears every page of
every large tensor of every step: a third of the time of a step of a small model. Told to keep what it has
(``mallopt``), it hands the same pages out again. The numbers are the same; what the process needs at most it keeps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


@contextmanager
def keeping_memory(wanted: bool = True) -> Iterator[bool]:
    """Inside, freed memory stays with the process, where its allocator is glibc's; afterwards it is given back.

    Yields:
        whether it does.
    """
    libc = _glibc() if wanted else None
    if libc is None:
        yield False
        return
    for option, value in _KEPT.items():
        libc.mallopt(option, value)
    try:
        yield True
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
