"""``peftlab …`` in a process of its own, with a pid, signals and an exit status, in a tenth of the time of a new one.

It is forked from the server that jobs of sweeps are forked from, which has imported what a run needs: five seconds of a
new interpreter. Lightning starts further ranks of a run as new interpreters, as it does anywhere.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peftlab.sweeps.processes import PRELOADED


class Forked:
    """A command that runs; ``with`` kills what the test has left of it."""

    def __init__(self, *arguments: object) -> None:
        self._out, self._err = (Path(f"forked-{time.monotonic_ns()}.{name}").resolve() for name in ("out", "err"))
        for file in (self._out, self._err):
            file.touch()
        words = [str(argument) for argument in arguments]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        given = (words, os.getcwd(), dict(os.environ), str(self._out), str(self._err))  # noqa: PTH109
        self._process = context.Process(target=_main, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    @property
    def out(self) -> str:
        """What it has printed until now."""
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def status(self, timeout: float = 300) -> int:
        """Wait for its end; below zero: the signal that it died of."""
        self._process.join(timeout)
        status = self._process.exitcode
        assert status is not None, f"it still runs after {timeout} s: {self.err}"
        return status

    def until_said(self, words: str, timeout: float = 300) -> None:
        """Wait until it has printed ``words``."""
        end = time.monotonic() + timeout
        while words not in self.out:
            assert self._process.is_alive() or words in self.out, f"it ended without '{words}': {self.err}"
            assert time.monotonic() < end, f"'{words}' is not printed after {timeout} s: {self.err}"
            time.sleep(0.005)

    def killed_at(self, words: str) -> None:
        """Kill it as soon as it has printed ``words``."""
        with self:
            self.until_said(words)
            self.send_signal(signal.SIGKILL)
            assert self.status() == -signal.SIGKILL, "it was faster"


def run_forked(
    command: list[str], *, check: bool, stdout: int | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """In place of ``subprocess.run`` where a command starts ``peftlab`` again."""
    assert command[:4] == [sys.executable, "-P", "-m", "peftlab"]
    assert not check
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with Forked(*command[4:]) as done:
            status = done.status()
    os.write(1 if stdout is None else stdout, done.out.encode())
    os.write(2, done.err.encode())
    for file in (done._out, done._err):
        file.unlink()
    return subprocess.CompletedProcess(command, status)


def peftlab_forked(*arguments: object, timeout: float = 300) -> Forked:
    """Run ``peftlab`` with ``arguments`` to its end, which must be a success."""
    with Forked(*arguments) as done:
        assert done.status(timeout) == 0, done.err
    return done


def _main(arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    os.chdir(folder)
    os.environ.clear()  # the server's is that of the first test's
    os.environ.update(environment)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from peftlab import process
    from peftlab.cli import main

    process.STARTED = time.time()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # as if typed: Lightning starts further ranks with the command that it finds here
    sys.argv[:] = ["peftlab", *arguments]
    sys.modules["__main__"] = importlib.import_module("peftlab.__main__")
    sys.exit(main(arguments))
