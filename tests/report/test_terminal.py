"""The report on a terminal, and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from peftlab.report import tables_terminal
from peftlab.report.build import Request, build
from peftlab.report.tables import interval_text, markdown
from peftlab.report.tables_columns import fixed
from peftlab.sweeps.table import Figure
from tests.conftest import Peftlab
from tests.report.made_up import record, sweep_file, three_methods, write


def test_marks_are_signs_where_there_is_no_bold(scratch: Path, peftlab: Peftlab) -> None:
    folder = three_methods(scratch / "t")
    sweep_file(folder)
    said = peftlab("report", folder, "--format", "json").out
    assert "0.8233 ± 0.0153 *" in said
    assert "0.8167 ± 0.0153 =" in said
    words = " ".join(said.split())
    assert "*: the best mean of the rows" in words
    assert "=: not significantly different" in words
    assert "Bold" not in said
    assert "nderlined" not in said


def test_a_terminal_has_bold(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = three_methods(scratch / "t")
    sweep_file(folder)
    out = Console(width=110, record=True, force_terminal=True, color_system="truecolor")
    monkeypatch.setattr(tables_terminal, "console", lambda: out)
    tables_terminal.print_report(build(Request((str(folder),))))
    said = out.export_text(styles=True)
    assert "\x1b[1m0.8233 ± 0.0153" in said
    assert "Bold: the best mean" in said
    assert "0.0153 *" not in said


def test_the_terminal_says_where_the_bootstrap_interval_is(scratch: Path, peftlab: Peftlab) -> None:
    folder = three_methods(scratch / "t")
    said = peftlab("report", folder, "--baseline", "peft=head", "--format", "md").out
    assert "Not here, but in report.md: the bootstrap interval." in said
    assert "bootstrap" in (folder / "report" / "report.md").read_text()


def test_what_rounds_to_zero_has_no_sign(scratch: Path) -> None:
    assert (fixed(-4e-19), fixed(4e-19, sign=True), fixed(-0.1, sign=True)) == ("0.0000", "0.0000", "-0.1000")
    assert interval_text((-4e-19, 0.25)) == "[0.0000, +0.2500]"
    assert Figure((-1e-9, 0.0), 2).text("difference") == "0.0000 ± 0.0000"
    runs = [
        record(0.5 + sign * (seed - 1) / 10, key=f"{method}{seed}", seed=seed, method=method)
        for method, sign in (("head", 1), ("lora", -1))
        for seed in range(3)
    ]
    text = markdown(build(Request((str(write(scratch / "t", runs)),), baseline="peft=head")))
    assert "-0.0000" not in text
    assert "| 3 | 0.0000 |" in text
