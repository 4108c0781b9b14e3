"""A job's process: forked from a warm server, in a process group of its own, and never without its launcher.

The launcher imports torch, once for all jobs, as it checks their configs, and nothing heavier. The server
(multiprocessing's fork server) has imported what every run needs and has touched no accelerator and no thread pool, so
that its forks are as good as new interpreters. (What threads there are, OpenBLAS's and jemalloc's, end or pause for the
fork through handlers of their own.)
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from peftlab.errors import RunError
from peftlab.sweeps.job_spec import JobSpec

PRELOADED = ["peftlab.sweeps.server"]
SERVER_LOST = 255
"""What multiprocessing calls the exit status of a job whose server has died."""


def start(spec: JobSpec) -> ForkServerProcess:
    """Start a job.

    Raises:
        RunError: if no process can be had.
    """
    return started(_main, (spec,), f"peftlab {Path(spec.folder).name}")


def started(does: Callable[..., None], given: tuple[Any, ...], name: str) -> ForkServerProcess:
    """Start a process that calls ``does`` with what is ``given``.

    Raises:
        RunError: if no process can be had.
    """
    context = _context()
    for left in range(2, -1, -1):
        process = context.Process(target=does, args=given, name=name)
        try:
            process.start()
            break
        except (OSError, EOFError) as error:  # a server that was killed may still look alive; then there is a new one
            if not left:
                raise RunError(f"no process could be started for the job: {error or 'its server ended'}.") from error
            time.sleep(0.2)
    return process


def warm_up() -> None:
    """Let the server begin its imports, which take seconds, while its launcher still looks at the jobs."""
    _context()
    with contextlib.suppress(OSError):  # whoever starts a job will hear of it
        forkserver.ensure_running()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def asked(does: Callable[[Any], Any], question: Any) -> Any:
    """What ``does`` answers to ``question`` in a warm process of its own, which says nothing.

    Raises:
        RunError: if the process dies.
    """
    receives, sends = multiprocessing.Pipe(duplex=False)
    process = started(_answer, (does, question, dict(os.environ), sends), "peftlab question")
    sends.close()
    with receives:
        try:
            answer = receives.recv()
        except EOFError:
            process.join()
            raise RunError(
                f"looking at the jobs before the first one failed: its process ended with status {process.exitcode}."
            ) from None
    process.join()
    return answer


def _answer(does: Callable[[Any], Any], question: Any, environment: dict[str, str], sends: Connection) -> None:
    """In the process of :func:`asked`."""
    os.environ.clear()
    os.environ.update(environment)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with sends, contextlib.suppress(BrokenPipeError):  # whoever has asked is gone
        sends.send(does(question))


def signal_job(process: ForkServerProcess, number: int) -> None:
    """Send a signal to a job: SIGKILL to its whole group, others to its first process, which passes them on."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            kill_group(process)
        if process.exitcode is None:
            os.kill(process.pid, number)


def kill_group(process: ForkServerProcess) -> None:
    """Kill what is left of a job: ranks and loaders that have outlived their first process."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _main(spec: JobSpec) -> None:
    """In the job's own process."""
    with contextlib.suppress(PermissionError):  # EPERM: it leads its group already
        os.setpgid(0, 0)
    os.environ.clear()  # the server's is that of the launcher's start
    os.environ.update(spec.environment)
    with Path(spec.log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_launcher, daemon=True, name="launcher watch").start()
    from peftlab.sweeps.worker import work

    sys.exit(work(spec))


def _end_with_launcher() -> None:
    """Kill this job, its other ranks included, when the launcher is gone, however it ended.

    The kernel's own signal for it (PR_SET_PDEATHSIG) tells of the parent, and the parent of a forked job is the server,
    which lives as long as any job does. ``parent_process`` waits on a pipe instead whose other end only the launcher
    holds; the kernel closes it when the launcher dies. When the last job is gone, the server finds its own pipe closed
    and ends too.
    """
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_with_parent() -> None:
    """For the other ranks of a DDP run, which rank 0's main thread starts: die when that dies (on Linux)."""
    if sys.platform == "linux":
        parent_dies = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_dies, signal.SIGKILL, 0, 0, 0)
