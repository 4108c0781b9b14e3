"""Markdown: text letter for letter, a table, a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from peftlab.report.failures import Failure
from peftlab.report.render.links import relative
from peftlab.report.report import Report
from peftlab.report.table import Cell, Table

_ANYWHERE = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
"""What means something wherever it stands; _ only beside a word, since lora_rank is no emphasis."""
_AT_THE_START = re.compile(r"^(#|>|[-+](?= )|\d+(?=[.)](?: |$))|=+$|-+$)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def escaped(text: str) -> str:
    r"""``text`` in one line, with nothing in it that Markdown, HTML or GitHub's formulas would read as their own."""
    text = " ".join(text.split())
    text = _ANYWHERE.sub(lambda found: f"\\{found[0]}", text)
    text = _TAG.sub("&lt;", _ENTITY.sub("&amp;", text))
    return _AT_THE_START.sub(_at_the_start, text)


def _at_the_start(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def markdown_table(table: Table) -> str:
    """The table, without title and notes, and without columns that its caption stands for.

    Its columns are not padded to one width, as tabulate would: in a README's history, a longer label then changes its
    own line and not all.
    """
    table = table.brief
    lines = [
        _line(escaped(head.title) for head in table.heads),
        _line("---:" if head.number else "---" for head in table.heads),
    ]
    for section in table.sections:
        if section.title:
            lines.append(_line([f"**{escaped(section.title)}**", *[""] * (len(table.heads) - 1)]))
        lines += [_line(map(_cell, row.cells)) for row in section.rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return f"**{text}**" if cell.mark == "best" else f"<ins>{text}</ins>" if cell.mark == "tied" else text


def _line(cells: Iterable[str]) -> str:
    """A line of a table, of escaped cells."""
    return "| " + " | ".join(cells) + " |"


def render_markdown(
    report: Report, figures: Sequence[str] = (), absent: Sequence[str] = (), target: Path | None = None
) -> str:
    """report.md: tables, notes and failures.

    Args:
        report: what to show.
        figures: names of the pictures beside the file.
        absent: why other pictures were not drawn.
        target: the folder that it goes to; links are relative to it. Without it, logs are named and not linked.
    """
    parts = [f"# {escaped(report.title)}", *_table(report.results)]
    if report.comparison is not None:
        parts += [f"## {escaped(report.comparison.title)}", *_table(report.comparison)]
    parts += _listed("What it was measured on", [*report.measured_on, *report.selection, *report.source])
    parts += _listed("Notes", report.notes)
    if figures:
        parts += ["## Figures", *(f"![{name}]({name})" for name in figures)]
    parts += _listed("Figures left out", absent)
    failures = [f"- {escaped(f'{one.title}: {one.reason}')}{_log(one, target)}" for one in report.failures]
    parts += ["## Runs without a result", "\n".join(failures)] if failures else []
    parts += _listed("Left out", report.left_out_lines)
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    return [markdown_table(table), *map(escaped, table.paragraphs)]


def _log(failure: Failure, target: Path | None) -> str:
    if failure.log is None:
        return ""
    return f" (log: {escaped(failure.log)})" if target is None else f" ([log]({relative(failure.log, target)}))"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {escaped(line)}" for line in lines)] if lines else []
