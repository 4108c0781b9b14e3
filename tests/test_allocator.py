"""Memory that is freed and kept: the kernel is asked for fresh pages once, and the numbers are the same."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftlab.allocator import keeping_memory
from tests.conftest import REPOSITORY

SIZE = 9_000_000
"""Numbers of a tensor of 36 MB: more than glibc ever keeps by itself."""


def faults(keep: bool) -> tuple[int, int]:
    """Pages that the kernel had to clear while large tensors came and went, and bytes that were given back after."""
    with keeping_memory(keep):
        for _ in range(15):  # until there is room for it, with what alignment takes
            torch.ones(SIZE)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(SIZE)
        cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        held = _resident()
    return cleared, held - _resident()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_large_tensors_take_the_pages_that_are_there() -> None:
    with keeping_memory() as kept:
        pass
    if not kept:
        pytest.skip("this C library is not glibc")
    # In a process of its own: in one that has done much there may be room in the middle of what it holds anyway.
    code = "from tests.test_allocator import faults; print(*faults(False), *faults(True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    plain, _, kept_pages, given_back = map(int, done.stdout.split())
    assert kept_pages < 0.1 * plain
    assert given_back > 0.5 * 4 * SIZE


def test_it_can_be_declined() -> None:
    with keeping_memory(False) as kept:
        assert not kept
