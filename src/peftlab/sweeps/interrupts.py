"""Ctrl-C, and what else asks a launcher to end: kept, and acted upon where it looks.

Python raises KeyboardInterrupt wherever it happens to be. In a finalizer, or in another callback whose errors are
dropped, the interrupt is dropped with them, and a launcher waits for its jobs as if nobody had pressed a key. Of other
signals it would die at once, and its jobs with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import FrameType, TracebackType

from peftlab.signals import ASKING, Interrupted, give_back, leave_terminal, take


class Interrupts:
    """Hears signals while it is open: in the main thread, and where nobody else does."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal."""
        self.count = 0
        """How often Ctrl-C was pressed."""

    def __enter__(self) -> Interrupts:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = take(ASKING, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        give_back(self._before)
        os.close(self._reader)
        os.close(self._writer)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.number = number if self.number is None else self.number
        self.count += number == signal.SIGINT
        if number == signal.SIGHUP:
            leave_terminal()
        with contextlib.suppress(BlockingIOError):  # the pipe is full: whoever waits will wake
            os.write(self._writer, b"\0")

    def check(self) -> None:
        """Raise Interrupted if a signal was heard."""
        if self.number is not None:
            raise Interrupted(self.number)

    def wait(self, sentinels: Sequence[int], seconds: float | None = None) -> list[int]:
        """Those of ``sentinels`` (of processes) that are ready, as soon as one is, or a signal comes; else none."""
        ready = wait([*sentinels, self._reader], seconds)
        if self._reader in ready:
            os.read(self._reader, 4096)
        return [sentinel for sentinel in sentinels if sentinel in ready]
