"""How this process's memory comes from the kernel while it trains. Imports no torch.

glibc gives every large block fresh pages and returns them when it is freed, so that the kernel clears every page of
every large tensor of every step: a third of the time of a step of a small model. Told to keep what it has
(``mallopt``), it hands the same pages out again. The numbers are the same; what the process needs at most it keeps.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left, bisect_right
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


class Room:
    """The memory that this process's allocator needs for blocks that come and go, none of which is written to.

    Counted are the pages of all blocks that it has handed out so far: a process that writes to them has these, where
    freed memory is kept (:func:`keeping_memory`). Here they are never there: a terabyte costs addresses alone.
    """

    ALIGNMENT, PAGE = 64, 4096
    """Bytes; the first of the blocks that torch asks for on a CPU."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        self._from: list[int] = []
        self._to: list[int] = []
        self.pages = 0
        """Bytes of all pages so far."""

    @classmethod
    def here(cls) -> Room | None:
        """None where the allocator is not glibc's."""
        libc = _glibc()
        return None if libc is None else cls(libc)

    def take(self, size: int) -> int:
        """The address of a block of ``size`` bytes; 0 if there is none."""
        block = ctypes.c_void_p()
        if size == 0 or self._libc.posix_memalign(ctypes.byref(block), self.ALIGNMENT, size) != 0:
            return 0
        address = block.value or 0
        self.count(address, address + size)
        return address

    def give(self, address: int) -> None:
        """Free the block at ``address``."""
        if address:
            self._libc.free(address)

    def count(self, start: int, end: int) -> None:
        """Add the pages of the bytes from ``start`` to ``end``, if they are not among those counted."""
        start, end = start // self.PAGE * self.PAGE, -(-end // self.PAGE) * self.PAGE
        first, beyond = bisect_left(self._to, start), bisect_right(self._from, end)
        known = sum(self._to[place] - self._from[place] for place in range(first, beyond))
        if first < beyond:
            start, end = min(start, self._from[first]), max(end, self._to[beyond - 1])
        self._from[first:beyond], self._to[first:beyond] = [start], [end]
        self.pages += end - start - known
