"""report.html: the whole report as one page that asks nothing of anywhere: figures, style and script are in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from peftlab.report.build import Report
from peftlab.report.figures_style import Gallery
from peftlab.report.groups import Group
from peftlab.report.legends import comparison_legend, legend
from peftlab.report.links import relative
from peftlab.report.records import Run
from peftlab.report.statistics import Comparison
from peftlab.report.tables import (
    COMPARISON_HEAD,
    comparison_rows,
    head,
    lead_head,
    lead_keys,
    left_out_lines,
    metric_place,
    rows_of,
)
from peftlab.report.tables_columns import Column, fixed, plain_number
from peftlab.version import __version__

SEPARATOR = "\x1f"
"""Between the key=value entries that a row can be filtered by."""


def page(report: Report, gallery: Gallery, target: Path, *, files: bool) -> str:
    """The page.

    Args:
        report: what to show.
        gallery: its figures.
        target: the folder that the page goes to; links are relative to it.
        files: whether the figures stand beside the page as PDF and CSV too.
    """
    here = Path(__file__)
    style = here.with_name("page_style.css").read_text(encoding="utf-8")
    script = here.with_name("page_script.js").read_text(encoding="utf-8")
    title = escape(report.title)
    runs = json.dumps([_runs_of(report, group, target) for group in report.rows], ensure_ascii=False)
    parts = [
        f'<header><h1>{title}</h1><button id="theme" class="plain script" type="button" hidden>Dark</button></header>',
        _paragraphs([*report.measured_on, *report.selection, *([f"Source: {report.source}"] if report.source else [])]),
        "<main>",
        _results(report),
        _comparison(report),
        _section("Notes", report.notes),
        _figures(gallery, files=files),
        _failures(report, target),
        _section("Left out", left_out_lines(report), kind="warn"),
        "</main>",
        f'<footer class="soft"><p>Made by peftlab {escape(__version__)} of {len(report.runs):,} records.</p></footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks a server for one
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + '\n<script type="application/json" id="runs">'
        + runs.replace("<", "\\u003c")
        + f"</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _results(report: Report) -> str:
    sections = any(group.section for group in report.rows)
    titles = [*(["section"] if sections else []), *(title or "row" for title in lead_head(report))]
    heads = ['<th scope="col"><span aria-label="runs"></span></th>']
    label = int(sections)  # the column that stays in sight when a narrow window scrolls to the right
    heads += [_sortable(title, "text lead" if place == label else "text") for place, title in enumerate(titles)]
    heads += [_sortable(title, "number") for title in head(report)]
    place = metric_place(report)
    names = ", ".join(sorted(set(report.grouped.key_names.values())))
    bodies = []
    for number, row in enumerate(rows_of(report, report.rows)):
        group = row.group
        texts = [*([group.section] if sections else []), *row.lead]
        cells = [
            f'<th class="text lead{"" if lead_keys(report) else " label"}" scope="row">{escape(text)}</th>'
            if place_of == len(texts) - len(row.lead)
            else f'<td class="text">{escape(text)}</td>'
            for place_of, text in enumerate(texts)
        ]
        values: list[float | None] = [_sort_value(group, column) for column in report.columns]
        for index, (text, value) in enumerate(zip(row.cells, [*values, float(len(group.runs))], strict=True)):
            mark = f" {row.mark}" if row.mark and index == place else ""
            kind = "text" if index < len(report.columns) and report.columns[index].format == "text" else "number"
            cells.append(
                f'<td class="{kind}{mark}" data-v="{"" if value is None else repr(value)}">{escape(text)}</td>'
            )
        width = len(cells) + 1
        bodies.append(
            f'<tbody data-number="{number}" data-keys="{escape(_filter_entries(report, group))}">'
            f'<tr class="row"><td class="expand"><button type="button" aria-expanded="false" '
            f'aria-label="runs of {escape(group.label)}"></button></td>{"".join(cells)}</tr>'
            f'<tr class="runs" hidden><td colspan="{width}"></td></tr></tbody>'
        )
    return (
        '<section aria-labelledby="h-results"><h2 id="h-results">Results</h2>'
        '<div class="tools script" hidden><label for="filter">Filter</label>'
        '<input id="filter" type="search" autocomplete="off" '
        f'placeholder="words, or key=value{escape(_example(report))}">'
        '<button id="all" class="plain" type="button" aria-pressed="false">Runs of all rows</button>'
        '<span id="count" class="soft" role="status" aria-live="polite"></span></div>'
        "<noscript><p>Sorting, filtering and the lists of runs need JavaScript; report.csv has all runs.</p></noscript>"
        '<div class="scroll" role="region" aria-label="Results" tabindex="0">'
        f'<table id="results" class="sortable" data-names="{escape(names)}"><thead><tr>{"".join(heads)}</tr></thead>'
        f'{"".join(bodies)}</table></div><p class="soft">{escape(legend(report))}</p></section>'
    )


def _example(report: Report) -> str:
    for key, short in report.grouped.key_names.items():
        for group in report.rows:
            if key in group.keys and " " not in group.keys[key]:
                return f", like {short}={group.keys[key]}"
    return ""


def _filter_entries(report: Report, group: Group) -> str:
    """key=value by the short and by the whole key, in lower case."""
    short = report.grouped.key_names
    entries = [f"{name}={value}" for key, value in group.keys.items() for name in dict.fromkeys((short[key], key))]
    return SEPARATOR.join(entries).lower()


def _sort_value(group: Group, column: Column) -> float | None:
    values = [value for value in group.values(column.value) if abs(value) != float("inf") and value == value]
    return sum(values) / len(values) if values else None


def _sortable(title: str, kind: str) -> str:
    return (
        f'<th class="{kind}" scope="col" aria-sort="none"><button type="button">{escape(title) or "row"}</button></th>'
    )


def _comparison(report: Report) -> str:
    if report.baseline is None or not report.comparisons:
        return ""
    heads = [_sortable("row", "text lead"), *(_sortable(title, "number") for title in COMPARISON_HEAD)]
    keys: list[Callable[[Comparison], float | None]] = [
        lambda c: float(c.n), lambda c: c.difference, lambda c: c.interval[0] if c.interval else None,
        lambda c: c.bootstrap[0] if c.bootstrap else None, lambda c: c.p, lambda c: c.p_holm,
    ]  # fmt: skip
    bodies = []
    for (label, texts), found in zip(comparison_rows(report), report.comparisons.values(), strict=True):
        values = [key(found) for key in keys]
        cells = [
            f'<td class="number" data-v="{"" if value is None else repr(value)}">{escape(text)}</td>'
            for text, value in zip(texts, values, strict=True)
        ]
        name = f'<th class="text lead label" scope="row">{escape(label)}</th>'
        bodies.append(f'<tbody><tr class="row">{name}{"".join(cells)}</tr></tbody>')
    return (
        f'<section aria-labelledby="h-against"><h2 id="h-against">Against {escape(report.baseline.label)}</h2>'
        '<div class="scroll" role="region" aria-label="Comparison with the baseline" tabindex="0">'
        f'<table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>{"".join(bodies)}</table></div>'
        f'<p class="soft">{escape(comparison_legend(report))}</p></section>'
    )


def _runs_of(report: Report, group: Group, target: Path) -> dict[str, Any]:
    listed = [_run_entry(report, run, target) for run in group.runs]
    lines = [" ".join(f"{report.grouped.key_names[key]}={value}" for key, value in group.keys.items())]
    if group.chosen:
        lines.append("chosen on validation: " + ", ".join(f"{key}={value}" for key, value in group.chosen.items()))
    if group.missing:
        lines.append("without a result: seed " + ", ".join(group.missing))
    return {"list": listed, "about": "; ".join(filter(None, lines))}


def _run_entry(report: Report, run: Run, target: Path) -> list[Any]:
    value = run.number(report.metric.value)
    text = "–" if value is None else fixed(value) if report.metric.format == "score" else plain_number(value)
    has = ("config.yaml" in run.files) + 2 * ("curves.png" in run.files)
    log = f"/.logs/{quote(run.key)}.txt" if run.logged else ""  # beside the run's folder
    return [run.seed, text, run.key, relative(run.folder, target), has, log]


def _figures(gallery: Gallery, *, files: bool) -> str:
    parts = ['<section aria-labelledby="h-figures"><h2 id="h-figures">Figures</h2>']
    for drawn in gallery.drawn:
        data = base64.b64encode(drawn.png).decode("ascii")
        links = f' <a href="{drawn.name}.pdf">PDF</a> <a href="{drawn.name}.csv">numbers</a>' if files else ""
        parts.append(
            f'<figure><img alt="{escape(drawn.title)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(drawn.title)}.{links}</figcaption></figure>"
        )
    if gallery.absent:
        parts.append(f'<p class="soft">Left out: {escape(" ".join(gallery.absent))}</p>')
    return "".join([*parts, "</section>"])


def _failures(report: Report, target: Path) -> str:
    if not report.failures:
        return ""
    parts = ['<section aria-labelledby="h-failures"><h2 id="h-failures">Runs without a result</h2>']
    for failure in report.failures:
        link = f'<a href="{relative(failure.log, target)}">whole log</a>' if failure.log else ""
        empty = "The log is empty. " if failure.log else "There is no log."
        tail = f"<pre>{escape(failure.tail)}</pre>" if failure.tail else f'<p class="soft">{empty}</p>'
        parts.append(
            f"<details><summary>{escape(failure.title)}: {escape(failure.reason)}</summary>{tail}{link}</details>"
        )
    return "".join([*parts, "</section>"])


def _section(title: str, lines: Sequence[str], *, kind: str = "") -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section><h2>{escape(title)}</h2><ul class="{kind}">{items}</ul></section>'


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)
