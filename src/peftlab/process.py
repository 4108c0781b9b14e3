"""Facts of this process that others must be able to set, and how it starts."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

STARTED = time.time()
"""When this process began its work (seconds since the epoch), for the record's start-to-first-step time; a process
that is forked for a job sets it anew."""


@contextmanager
def uncollected() -> Iterator[None]:
    """While modules are imported and a config is composed: thousands of new objects, next to no garbage.

    Looking for garbage meanwhile takes a tenth of the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
