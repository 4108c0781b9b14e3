"""Signals that ask a process to end: heard, and acted upon where a run can be resumed from. Imports no torch.

A cluster's scheduler, a terminal that closes, Ctrl-C: while batches are trained the handler only sets a flag, and the
run ends at the next whole step, with a checkpoint (``training/inside_epoch.py``). Elsewhere it ends at once; what is
there resumes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run, or a sweep, to end."""
RESUMABLE = 85
"""Exit status of a run or sweep that was asked to end, and that the same command goes on with."""
CTRL_C = 130
"""The same after SIGINT, as shells have it."""

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by the signal ``number``."""

    def __init__(self, number: int, how: str = "the same command goes on with what is there") -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}; {how}.")

    @property
    def status(self) -> int:
        """What the process exits with."""
        return status_of(self.number)


def status_of(number: int) -> int:
    """The exit status after the signal ``number``."""
    return CTRL_C if number == signal.SIGINT else RESUMABLE


class Asked:
    """Which signal has asked this process to end, if one has."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first one."""
        self.at_steps = False
        """Whether something looks at :attr:`number` between steps; else the process ends where it is."""
        self._ctrl_c = 0
        self._process = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals, in the main thread, and where neither the starter nor the program has said otherwise."""
        self._forget()
        before = take(ASKING, self._hear)
        try:
            yield
        finally:
            give_back(before)
            self._forget()

    def _forget(self) -> None:
        self.number, self.at_steps, self._ctrl_c, self._process = None, False, 0, os.getpid()

    def check(self) -> None:
        """End here, if a signal has asked for it.

        Raises:
            Interrupted: if so.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's process, forked from this one, is none of ours
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        if number == signal.SIGHUP:
            leave_terminal()
        first = self.number is None
        self.number = number if self.number is None else self.number
        self._ctrl_c += number == signal.SIGINT
        if self._ctrl_c > 1 or (first and not self.at_steps):
            raise Interrupted(number)


ASKED = Asked()
"""Of this process: signals are its own, whatever runs in it."""


def take(numbers: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Let ``handler`` hear ``numbers``, as far as nobody else does; what was there before.

    ``nohup`` and a shell's background jobs ignore signals on purpose, and a program may have handlers of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    found = {number: signal.getsignal(number) for number in numbers}
    taken = {number: one for number, one in found.items() if one in usual or getattr(one, "__self__", None) is ASKED}
    for number in taken:
        signal.signal(number, handler)
    return taken


def give_back(before: dict[int, Any]) -> None:
    """Undo :func:`take`."""
    for number, handler in before.items():
        signal.signal(number, handler)


def leave_terminal() -> None:
    """The terminal is gone: a line written to it would be an error, and end the run before its checkpoint."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
