"""Work that is worth several processes: forks of this one, which have what it has read and imported already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from peftlab import machine

Result = TypeVar("Result")


def cpus() -> int:
    """CPUs that this process may use; 1 where forks are not to be had."""
    return machine.cpus() if hasattr(os, "sched_getaffinity") else 1


def map_in_forks(
    function: Callable[..., Result], *arguments: Iterable[Any], meanwhile: Callable[[], Any] = lambda: None
) -> list[Result]:
    """``map(function, *arguments)``, in as many forks as there are CPUs; this process does ``meanwhile``."""
    import multiprocessing  # for few runs none are made
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(cpus(), multiprocessing.get_context("fork")) as pool:
        results = pool.map(function, *arguments)
        meanwhile()
        return list(results)
