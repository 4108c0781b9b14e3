"""How a sweep stands, on a terminal and in a log file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from peftlab.sweeps.progress import Progress


def record(validation: float, test: float) -> dict[str, Any]:
    return {"metrics": {"validation": {"accuracy": validation}, "test": {"accuracy": test}}}


FROM_ONE = "to go (from 1 finished job)"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_a_log_file() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(console=Console(file=out, width=200, soft_wrap=True, highlight=False), clock=clock)
    with progress:
        progress.total = 5
        progress.skip(2)
        progress.start("a", "LoRA, rank 2, seed 0", "slot 1")
        clock.now = 41
        progress.finish("a", "LoRA, rank 2, seed 0", record(0.87, 0.865))
        progress.start("b", "LoRA, rank [4], seed 0", "slot 1")
        clock.now = 50
        progress.again("b", "LoRA, rank [4], seed 0", "exit status 1", 2, 2)
        progress.start("b", "LoRA, rank [4], seed 0", "slot 1")
        clock.now = 60
        progress.fail("b", "LoRA, rank [4], seed 0", "exit status 1", Path("x.txt"))
    assert out.getvalue().splitlines() == [
        f"[1/3] LoRA, rank 2, seed 0: validation 0.8700, test 0.8650   took 41 s, about 1 min 22 s {FROM_ONE}",
        "LoRA, rank [4], seed 0: exit status 1; attempt 2 of 2 follows",
        f"[2/3] LoRA, rank [4], seed 0: FAILED (exit status 1), see x.txt   took 10 s, about 1 min 00 s {FROM_ONE}",
    ]


def test_a_line_that_is_too_long_for_a_terminal_goes_on_between_words() -> None:
    title = "a long name of a cell of a sweep, rank 2, alpha 16, targets query and value, seed 0"
    shown = {}
    for width in (80, 200):
        clock = Clock()
        console = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False)
        progress = Progress(console=console, clock=clock, total=3)
        progress._began, progress.running = 0.0, {}
        progress.start("a", title, "slot 1")
        clock.now = 61
        progress.finish("a", title, record(0.87, 0.865))
        assert isinstance(console.file, io.StringIO)
        shown[width] = console.file.getvalue().splitlines()
    assert shown[200] == [
        f"[1/3] {title}: validation 0.8700, test 0.8650   took 61 s, about 2 min 02 s to go (from 1 finished job)"
    ]
    assert shown[80] == [
        "[1/3] a long name of a cell of a sweep, rank 2, alpha 16, targets query and",
        "    value, seed 0: validation 0.8700, test 0.8650",
        "    took 61 s, about 2 min 02 s to go (from 1 finished job)",
    ]


def test_nothing_is_foretold_before_there_is_a_basis() -> None:
    """A job that has failed is none, and at the end nothing is to come."""
    progress = Progress(console=Console(file=io.StringIO()), clock=Clock(), total=3)
    with progress:
        progress.fail("a", "a", "exit status 1", None)
        assert progress.to_go() == ""
        progress.finish("b", "b", record(0.8, 0.8))
        assert progress.to_go().endswith("to go (from 1 finished job)")
        progress.finish("c", "c", record(0.8, 0.8))
        assert progress.to_go() == ""


def test_the_live_table() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(console=console, clock=clock)
    with progress:
        progress.total = 10
        progress.skip()
        for key, validation, test in (("a", 0.7, 0.1), ("b", 0.9, 0.2), ("c", 0.8, 0.99)):
            progress.start(key, f"job {key}", "GPU 3")
            clock.now += 20
            progress.finish(key, f"job {key}", record(validation, test))
        progress.start("d", "job d [head]", "GPU 3, 4")
        progress.wait("e", "job e", "77")
        clock.now += 7
        shown = Console(file=io.StringIO(), width=100)
        shown.print(progress.render())
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    for part in (
        "job d [head]   GPU 3, 4         7",
        "job e: at work in process 77",
        "best validation accuracy so far: 0.9000 (job b)",
        "3 done, 0 failed, 1 finished before, 1 running, 5 to come\n",
        "about 1 min 53 s to go (from 3 finished jobs)",
    ):
        assert part in text, text
