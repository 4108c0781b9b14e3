"""``peftlab diff RUN RUN``: in what two runs differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from peftlab.dialogues import turns_of
from peftlab.errors import PeftlabError, RunError
from peftlab.pairs import parts
from peftlab.records.divergence import without_bare_words
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder, finished_run
from peftlab.report.by_text import ByText, Disagreement, with_texts
from peftlab.report.difference import Difference, Line, difference
from peftlab.report.number_text import fixed
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
    parser.add_argument(
        "--rows",
        action="store_true",
        help="compare their tests text by text too, and print the texts that they disagree about",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_intermixed_args(list(arguments))
    folders = _one(given.first), _one(given.second)
    found = _with_texts(difference(*folders, rows=given.rows), folders)
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


def _with_texts(found: Difference, folders: Sequence[RunFolder]) -> Difference:
    """``found`` with the texts that the two say different things of, read again from the data of one of them."""
    if found.by_text is None or not found.by_text.disagreements:
        return found
    why = ""
    for folder in folders:
        try:
            texts = _texts_of(folder)
        except (PeftlabError, OSError) as error:
            why = why or str(error)
            continue
        told = replace(found, by_text=with_texts(found.by_text, texts))
        assert told.by_text is not None
        if not (lost := sum(one.text is None for one in told.by_text.disagreements)):
            return told
        why = f"the data has changed since the test: {lost:,} of the texts are not in it"
        found = told
    return replace(found, notes=(*found.notes, f"Texts that are not shown could not be read again: {why}"))


def _texts_of(folder: RunFolder) -> dict[str, str]:
    """The texts of a run's test by their hashes, as its data has them now."""
    from peftlab.data.module import row_hash  # imports torch

    test = finished_run(str(folder.path))[1].data.load().test
    return {row_hash(text, label): text for text, label in zip(test.texts, test.labels, strict=True)}


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
        tell_by_text(found.by_text, out)
    print_lines(out, found.notes)


MOST_TEXTS = 20
"""Texts that are printed; ``--json`` has all."""
MOST_LETTERS = 100
"""Of a text or an answer."""


def tell_by_text(found: ByText, out: Console) -> None:
    """Print the comparison, and the texts that the two disagree about."""
    print_lines(out, [in_words(found)])
    if not found.disagreements:
        print_lines(out, ["They say the same of every text."])
        return
    shown, several = found.disagreements[:MOST_TEXTS], any(one.task for one in found.disagreements)
    tasks, number = [Head("task")] if several else [], not isinstance(shown[0].first, str)
    heads = (
        Head("row", number=True), Head("text"), *tasks, Head("label", number=isinstance(shown[0].label, float)),
        Head("A says", number=number), Head("B says", number=number),
    )  # fmt: skip
    print_table(out, Table(heads, (Section("", tuple(_row(one, several=several) for one in shown)),)))
    more = len(found.disagreements) - len(shown)
    order = "in the order of the test" if found.p is not None else "those first that are furthest apart"
    rest = f"; {more:,} more are in --json" if more else ""
    print_lines(out, [f"They say different things of {len(found.disagreements):,} texts, {order}{rest}."])


def _row(one: Disagreement, *, several: bool) -> Row:
    task = [one.task or ""] if several else []
    text = "–" if one.text is None else _short(_for_people(one.text))
    return Row(tuple(map(Cell, [str(one.row), text, *task, *map(_said, (one.label, one.first, one.second))])))


def _said(value: str | float | None) -> str:
    return "–" if value is None else _short(value) if isinstance(value, str) else f"{value:.4g}".replace("-", "−", 1)


def _for_people(text: str) -> str:
    """A text, a pair of texts, or the question that a dialogue ends with."""
    if text.startswith('[["'):
        try:
            return turns_of(text)[-2].content
        except (ValueError, IndexError):  # a text that only looks so
            pass
    return " | ".join(parts(text))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 2].rstrip()} …"


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
    mean, low, high = (fixed(value, sign=True) for value in (found.difference, found.low, found.high))
    said = f"Text by text, {found.rows:,} of the test: {found.judged} B − A {mean}"
    said += f", 95 % interval {low} to {high} by the spread over texts." if found.rows > 1 else "."
    if found.p is not None:
        said += (
            f" A alone is right on {found.only_first:,}, B alone on {found.only_second:,} "
            f"(exact McNemar test: p = {found.p:.3g})."
        )
    return f"{said} One run each: how much seeds differ it does not say."
