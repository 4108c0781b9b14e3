"""How a sweep stands: a live table on a terminal, plain lines in a log file. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from peftlab.errors import counted
from peftlab.objectives.recorded import objective_facts, selected
from peftlab.report.render.terminal import PlainConsole, renderable
from peftlab.report.table import Head, plain_table
from peftlab.terminal import filled

BELOW = "    "
"""In front of what goes on below a line."""


def _console() -> PlainConsole:
    """Lines are whole in a log file, and broken between words on a terminal."""
    on_terminal = PlainConsole(highlight=False)
    return on_terminal if on_terminal.is_terminal else PlainConsole(soft_wrap=True, highlight=False)


@dataclass
class Running:
    """A job at work."""

    title: str
    place: str
    began: float


@dataclass
class Progress:
    """Counts jobs and shows them; used as a context manager around the whole sweep."""

    console: Console = field(default_factory=_console)
    clock: Callable[[], float] = time.monotonic
    total: int = 0
    """Jobs of the plan, those included that were finished before."""
    done: int = 0
    failed: int = 0
    skipped: int = 0
    running: dict[str, Running] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """Jobs that another launcher has at work, by what is said of them."""
    best: tuple[float, str] | None = None
    """Best validation figure so far, and of which job; of the objective that the first record has."""
    figure: str = ""
    """Name of that figure."""

    def __enter__(self) -> Progress:
        self._began = self._ended = self.clock()
        self._live = Live(get_renderable=self.render, console=self.console, transient=True, refresh_per_second=2)
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live table away; what is printed from here on stays below what was said."""
        self._live.stop()

    def say(self, line: str, behind: str = "") -> None:
        """A line that stays: above the table, or in the log file; ``behind`` it, or below where it has no room."""
        whole = f"{line}   {behind}".rstrip()
        if self.console.is_terminal and cell_len(whole) > (width := self.console.width):
            below = filled(behind, width, first=BELOW, then=BELOW) if behind else []
            whole = "\n".join([*filled(line, width, then=BELOW), *below])
        self.console.print(Text(whole), soft_wrap=True)  # a path that is longer than a line stays whole
        self.console.file.flush()

    def start(self, key: str, title: str, place: str) -> None:
        """A job has begun."""
        self.waiting.pop(key, None)
        self.running[key] = Running(title, place, self.clock())

    def wait(self, key: str, title: str, holder: str) -> None:
        """A job's run is in the hands of another process."""
        self.running.pop(key, None)
        if key not in self.waiting:
            self.say(f"{title}: another process ({holder}) trains this run; waiting for it")
        self.waiting[key] = f"{title}: at work in process {holder}"

    def again(self, key: str, title: str, reason: str, attempt: int, attempts: int) -> None:
        """A job has failed and is tried again."""
        self.running.pop(key, None)
        self.say(f"{title}: {reason}; attempt {attempt} of {attempts} follows")

    def skip(self, count: int = 1) -> None:
        """Jobs that were finished before."""
        self.skipped += count

    def take(self, record: dict[str, Any], title: str) -> None:
        """Remember the best validation figure."""
        value, about = selected(record, "validation"), objective_facts(record)
        self.figure = self.figure or about["selects"]
        if value is None or about["selects"] != self.figure:
            return
        sign = -1.0 if about["metrics"][self.figure] == "min" else 1.0
        if self.best is None or sign * value > sign * self.best[0]:
            self.best = (value, title)

    def finish(self, key: str, title: str, record: dict[str, Any]) -> None:
        """A job has a record now."""
        self.take(record, title)
        figures = [(split, selected(record, split)) for split in ("validation", "test")]
        self._end(key, title, ", ".join(f"{split} {value:.4f}" for split, value in figures if value is not None))

    def fail(self, key: str, title: str, reason: str, log: Path | None) -> None:
        """A job will have none."""
        self.failed += 1
        self._end(key, title, f"FAILED ({reason}){f', see {log}' if log else ''}")

    def diverge(self, key: str, title: str, reason: str) -> None:
        """A job's training diverged, which is a result."""
        self._end(key, title, reason)

    def prune(self, key: str, title: str, reason: str) -> None:
        """A job was stopped early by its plan, which is no failure."""
        self._end(key, title, reason)

    def _end(self, key: str, title: str, said: str) -> None:
        self.done += 1
        self._ended = self.clock()
        self.waiting.pop(key, None)
        job = self.running.pop(key, None)
        took = f"took {self.clock() - job.began:.0f} s" if job else ""
        self.say(f"[{self.done}/{self.to_run}] {title}: {said}", ", ".join(filter(None, [took, self.to_go()])))

    @property
    def to_run(self) -> int:
        """Jobs that were not finished before, as far as is known."""
        return max(self.total - self.skipped, self.done)

    def to_go(self) -> str:
        """How long it will take at the pace so far, and of how many jobs that is; empty before there is one."""
        finished, left = self.done - self.failed, self.to_run - self.done
        if not finished or not left:
            return ""
        since = self.clock() - self._ended  # of jobs at work: it is no sign that they are slow
        seconds = max(0.0, (self._ended - self._began) / finished * left - since)
        return f"about {_duration(seconds)} to go (from {counted(finished, 'finished job')})"

    def render(self) -> RenderableType:
        """The live table."""
        heads = [Head("running"), Head("on"), Head("seconds", number=True)]
        table = plain_table(
            heads, [(job.title, job.place, f"{self.clock() - job.began:.0f}") for job in self.running.values()]
        )
        left = self.to_run - self.done - len(self.running)
        counts = (
            f"{self.done - self.failed} done, {self.failed} failed, {self.skipped} finished before, "
            f"{len(self.running)} running, {max(left, 0)} to come"
        )
        lines = [Text(line) for line in self.waiting.values()]
        if self.best is not None:
            lines.append(Text(f"best validation {self.figure} so far: {self.best[0]:.4f} ({self.best[1]})"))
        lines += [Text(line) for line in (counts, self.to_go()) if line]
        return Group(renderable(table, self.console.width), *lines)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
