"""report.html: the whole report as one page that asks nothing of anywhere: figures, style and script are in it."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

from peftlab.report.figures.style import Gallery
from peftlab.report.render.environment import FOLDER, environment
from peftlab.report.render.links import relative
from peftlab.report.render.page_data import page_data
from peftlab.report.report import Report
from peftlab.report.run_numbers import seeds_of
from peftlab.report.table import Cell, Head, Row, Section, Table
from peftlab.version import __version__

SEPARATOR = "\x1f"
"""Between the key=value entries that a row can be filtered by."""

SCRIPTS = ("page_numbers.js", "page_table.js", "page_copy.js", "page_curves.js", "page.js")
"""Parts of the page's script, in order; one scope holds them all."""


def render_page(report: Report, gallery: Gallery, target: Path, *, files: bool) -> str:
    """The page.

    Args:
        report: what to show.
        gallery: its figures.
        target: the folder that the page goes to; links are relative to it.
        files: whether the figures stand beside the page as PDF and CSV too.
    """
    filled = environment(autoescape=True)
    filled.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    filled.globals |= {"zip": zip, "kinds_of": _kinds_of}
    filled.filters |= {"link": lambda path: relative(path, target), "base64": _base64}
    results = with_sections_as_a_column(report.results)
    return filled.get_template("page.html").render(
        report=report, results=results, gallery=gallery, files=files, separator=SEPARATOR, version=__version__,
        data=page_data(report, target), seeds=seeds_of(report),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script="".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )  # fmt: skip


def with_sections_as_a_column(table: Table) -> Table:
    """``table`` with a column for its sections, if it has any: rows that are sorted leave their headings."""
    if not any(section.title for section in table.sections):
        return table
    rows = tuple(Row((Cell(section.title), *row.cells), row.id) for section in table.sections for row in section.rows)
    return replace(table, heads=(Head("section"), *table.heads), sections=(Section("", rows),), leads=table.leads + 1)


def _kinds_of(table: Table, label: int) -> list[str]:
    """Of each column, what its cells are: ``label`` of the row, ``lead``, ``number`` or ``text``."""
    kinds = ["number" if head.number else "text" for head in table.heads]
    kinds[: table.leads] = ["lead"] * table.leads
    kinds[label] = "label"
    return kinds


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
