"""A report is decided before it is shown: renderers change nothing, and use nothing that computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import grimp
import pytest
from rich.console import Console

from peftlab.report.build import Request, build
from peftlab.report.figures.style import Gallery
from peftlab.report.render.data import render_groups_csv, render_json, render_runs_csv
from peftlab.report.render.latex import latex_tables
from peftlab.report.render.markdown import render_markdown
from peftlab.report.render.page import render_page
from peftlab.report.render.terminal_report import print_report
from peftlab.report.report import Report
from tests.report.made_up import sweep_file, three_methods


def on_a_terminal(report: Report) -> str:
    out = Console(width=80, record=True, quiet=False)
    print_report(report, out)
    return out.export_text()


RENDERERS: dict[str, Callable[[Report], str]] = {
    "markdown": render_markdown,
    "latex": lambda report: "\n".join(latex_tables(report).values()),
    "json": render_json,
    "runs": render_runs_csv,
    "groups": render_groups_csv,
    "page": lambda report: render_page(report, Gallery(), Path("out"), files=False),
    "terminal": on_a_terminal,
}


@pytest.fixture
def report(scratch: Path) -> Report:
    folder = three_methods(scratch / "t")
    sweep_file(folder)
    return build(Request((str(folder),)))


def test_a_report_is_frozen(report: Report) -> None:
    for one, name in ((report, "notes"), (report.results, "heads"), (report.rows[0], "label")):
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, ())


def test_no_output_depends_on_another(report: Report) -> None:
    """Each is the same alone, and after all the others."""
    alone = {name: render(copy.deepcopy(report)) for name, render in RENDERERS.items()}
    for name, render in reversed(RENDERERS.items()):
        assert render(report) == alone[name]


def test_all_show_the_same_cells(report: Report) -> None:
    texts = {
        cell.text for table in (report.results, report.comparison) if table for row in table.rows for cell in row.cells
    }
    for name in ("markdown", "page"):
        said = RENDERERS[name](report)
        assert [text for text in texts if text not in said] == []
    said = RENDERERS["latex"](report).replace(r"$\pm$", "±")
    assert [text for text in texts if text not in said] == []


def test_renderers_use_nothing_that_computes() -> None:
    graph: Any = grimp.build_graph("peftlab", cache_dir=None)
    names = "analysis build columns groups_sweep legends marks notes pairing same_rows statistics"
    computing = {f"peftlab.report.{name}" for name in names.split()}
    for module in graph.find_descendants("peftlab.report.render"):
        assert not graph.find_modules_directly_imported_by(module) & computing, module
