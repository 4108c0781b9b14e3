"""``peftlab status FOLDER``: how the runs of a sweep stand, wherever they run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import get_args

from rich.console import Console

from peftlab.cluster.state import FolderState, State, folder_state
from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.table import Head, plain_table

DESCRIPTION = """\
Say how the runs in FOLDER (<output_dir>/<name>) stand, from their records and locks and from Slurm's queue: running,
queued, failed, lost (the process that its lock names is gone), done."""

MOST = 40
"""Runs that are not done, of which each has a line."""


def main(arguments: Sequence[str]) -> int:
    """Print a line for each run that is not done, one for each worker, and the sum.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab status", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="<output_dir>/<name>, or <output_dir>")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all runs")
    given = parser.parse_args(list(arguments))
    state = folder_state(given.folder)
    if given.json:
        print(json.dumps(state.plain(), ensure_ascii=False))
    else:
        tell(state, console())
    return 0


def tell(state: FolderState, out: Console) -> None:
    """Print ``state``."""
    order = list(get_args(State))
    shown = sorted((run for run in state.runs if run.state != "done"), key=lambda run: order.index(run.state))
    if shown:
        heads = [Head("run"), Head("state"), Head("epochs", number=True), Head("about")]
        rows = [(run.title, run.state, str(run.epochs), run.about) for run in shown]
        print_table(out, plain_table(heads, rows), most_rows=MOST, elsewhere="--json")
    if state.workers:
        heads = [Head("worker"), Head("state"), Head("on")]
        rows3 = [(w.id, w.state.lower(), w.nodes or f"({w.reason})") for w in state.workers]
        print_table(out, plain_table(heads, rows3), most_rows=MOST, elsewhere="--json")
    counts = state.sum()
    total = counts.pop("total")
    print_lines(out, state.notes)
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print_lines(out, [f"{state.folder}: {total} {'run' if total == 1 else 'runs'}: {said or 'none'}"])
