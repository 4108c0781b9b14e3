"""Ctrl-C, counted, and acted upon where a launcher looks.

Python raises KeyboardInterrupt wherever it happens to be. In a finalizer, or in another callback whose errors are
dropped, the interrupt is dropped with them, and a launcher waits for its jobs as if nobody had pressed a key.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import FrameType, TracebackType


class Interrupts:
    """Hears SIGINT while it is open: in the main thread, and where Python's own handler would have been called."""

    def __init__(self) -> None:
        self.count = 0
        """How often Ctrl-C was pressed."""

    def __enter__(self) -> Interrupts:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        main = threading.current_thread() is threading.main_thread()
        # A shell's background job ignores Ctrl-C, and a program may have a handler of its own.
        self._hears = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._hears:
            signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hears:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self._reader)
        os.close(self._writer)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        with contextlib.suppress(BlockingIOError):  # the pipe is full: whoever waits will wake
            os.write(self._writer, b"\0")

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.count:
            raise KeyboardInterrupt

    def wait(self, sentinels: Sequence[int], seconds: float | None = None) -> list[int]:
        """Those of ``sentinels`` (of processes) that are ready, as soon as one is, or Ctrl-C is pressed; else none."""
        ready = wait([*sentinels, self._reader], seconds)
        if self._reader in ready:
            os.read(self._reader, 4096)
        return [sentinel for sentinel in sentinels if sentinel in ready]
