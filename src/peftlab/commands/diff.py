"""``peftlab diff RUN RUN``: in what two runs differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.console import Console

from peftlab.errors import RunError
from peftlab.records.divergence import without_bare_words
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder
from peftlab.report.difference import ByText, Difference, Line, difference
from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.table import Cell, Head, Row, Section, Table, Tone

DESCRIPTION = """\
Say in what two runs differ: config, data, circumstances (versions, hardware), and their results side by side."""


def main(arguments: Sequence[str]) -> int:
    """Print what differs.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab diff", description=DESCRIPTION)
    parser.add_argument("first", metavar="RUN", help="a run folder, <output_dir>/<name>/<key>")
    parser.add_argument("second", metavar="RUN")
    parser.add_argument("--rows", action="store_true", help="compare their tests text by text too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_intermixed_args(list(arguments))
    found = difference(_one(given.first), _one(given.second), rows=given.rows)
    if given.json:
        print(json.dumps(without_bare_words(found.plain()), ensure_ascii=False))
    else:
        tell(found, console())
    return 0


def _one(given: str) -> RunFolder:
    found = run_folders([given])
    if len(found) > 1:
        raise RunError(
            f"'{given}' holds {len(found)} runs. Give one, such as {found[0].path}; `peftlab runs {given}` lists them."
        )
    return found[0]


def tell(found: Difference, out: Console) -> None:
    """Print ``found``."""
    for letter, folder, status in zip("AB", found.folders, found.statuses, strict=True):
        print_lines(out, [f"{letter}  {folder}  ({status})"])
    sections = [
        _section("config", [line for line in found.config if line.decides]),
        _section("config that changes no number", [line for line in found.config if not line.decides], quiet=True),
        _section("data", found.data),
        _section("circumstances", found.circumstances),
    ]
    shown = tuple(section for section in sections if section.rows)
    if shown:
        print_table(out, Table((Head("what differs"), Head("A"), Head("B")), shown))
    else:
        print_lines(out, ["", "Nothing differs in config, data and circumstances."])
    if found.results:
        heads = (Head("result"), Head("A", number=True), Head("B", number=True), Head("B − A", number=True))
        rows = tuple(Row((Cell(x.name), Cell(x.first), Cell(x.second), Cell(_signed(x)))) for x in found.results)
        print_table(out, Table(heads, (Section("", rows),)))
    if found.by_text is not None:
        print_lines(out, [in_words(found.by_text)])
    print_lines(out, found.notes)


def _section(title: str, lines: Sequence[Line], *, quiet: bool = False) -> Section:
    tone: Tone = "quiet" if quiet else ""
    return Section(title, tuple(Row(tuple(Cell(t, tone=tone) for t in (x.name, x.first, x.second))) for x in lines))


def _signed(line: Line) -> str:
    if line.difference is None:
        return "–"
    if not line.difference:
        return "0"
    text = f"{line.difference:+,d}" if isinstance(line.difference, int) else f"{line.difference:+.4g}"
    return text.replace("-", "−", 1)


def in_words(found: ByText) -> str:
    """The comparison text by text."""
    said = (
        f"Text by text, {found.rows:,} of the test: {found.judged} B − A {found.difference:+.4f}, 95 % interval "
        f"{found.low:+.4f} to {found.high:+.4f} by the spread over texts."
    ).replace("-", "−")
    if found.p is not None:
        said += (
            f" A alone is right on {found.only_first:,}, B alone on {found.only_second:,} "
            f"(exact McNemar test: p = {found.p:.3g})."
        )
    return f"{said} One run each: how much seeds differ it does not say."
