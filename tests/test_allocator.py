"""Memory that is freed and kept: the kernel is asked for fresh pages once, and the numbers are the same."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from peftlab.allocator import keeping_memory
from tests.conftest import REPOSITORY

SIZE = 9_000_000
"""Numbers of a tensor of 36 MB: more than glibc ever keeps by itself."""


def faults(keep: bool) -> int:
    """Pages that the kernel had to clear while large tensors came and went."""
    with keeping_memory(keep):
        for _ in range(15):  # until there is room for it, with what alignment takes
            torch.ones(SIZE)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(SIZE)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_take_the_pages_that_are_there() -> None:
    with keeping_memory() as kept:
        pass
    if not kept:
        pytest.skip("this C library is not glibc")
    # In a process of its own: in one that has done much there may be room in the middle of what it holds anyway.
    code = "from tests.test_allocator import faults; print(faults(False), faults(True), faults(False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    plain, kept_pages, afterwards = map(int, done.stdout.split())
    assert kept_pages < 0.1 * plain
    assert afterwards > 0.5 * plain


def test_it_can_be_declined() -> None:
    with keeping_memory(False) as kept:
        assert not kept
