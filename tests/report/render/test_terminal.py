"""The report on a terminal, and where there is none."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peftlab.report.build import Request, build
from peftlab.report.columns import Column, cell_of, column_of
from peftlab.report.number_text import fixed
from peftlab.report.render import terminal_report
from peftlab.report.render.markdown import render_markdown
from peftlab.report.render.terminal import PlainConsole, print_facts, print_hanging, print_lines, print_table
from peftlab.report.report import Report
from peftlab.report.results import interval_text
from peftlab.report.table import Head, plain_table
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
    monkeypatch.setattr(terminal_report, "console", lambda: out)
    terminal_report.print_report(build(Request((str(folder),))))
    said = out.export_text(styles=True)
    assert "\x1b[1m0.8233 ± 0.0153" in said
    assert "Bold: the best mean" in said
    assert "0.0153 *" not in said


def on_a_terminal(report: Report, width: int) -> str:
    out = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    terminal_report.print_report(report, out)
    return out.file.getvalue()


def test_a_narrow_terminal_says_what_it_has_no_room_for(scratch: Path) -> None:
    report = build(Request((str(three_methods(scratch / "t")),), baseline="peft=head"))
    narrow, wide = on_a_terminal(report, 80), on_a_terminal(report, 110)
    assert "Too narrow here for: 95 % interval (bootstrap); report.md has them." in narrow
    assert "Too narrow" not in wide
    for said in (narrow, wide):
        for cell in ("+0.1067", "[+0.0653, +0.1480]", "0.8233 ± 0.0153 *", "0.7100 ± 0.0100", "0.0078"):
            assert cell in said
    assert "[+0.1000, +0.1200]" in wide
    assert max(map(len, narrow.splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 100, 200])
def test_nothing_is_cut(width: int) -> None:
    words = ["alpha", "beta", "gamma", "delta"]
    heads = [Head("name of the row"), *(Head(word, number=True) for word in words)]
    lines = [[f"a row with a long name and number {n}", *(f"0.{n}{m}00 ± 0.0100" for m in range(4))] for n in range(3)]
    out = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(out, plain_table(heads, lines))
    said = out.file.getvalue()
    assert max(map(len, said.splitlines())) <= width
    for word in " ".join(" ".join(line) for line in lines).split():
        assert word in said
    if width == 100:  # names give way, figures do not
        assert "0.0000 ± 0.0100   0.0100 ± 0.0100   0.0200 ± 0.0100" in said


def test_what_rounds_to_zero_has_no_sign(scratch: Path) -> None:
    assert (fixed(-4e-19), fixed(4e-19, sign=True), fixed(-0.1, sign=True)) == ("0.0000", "0.0000", "−0.1000")
    assert interval_text((-4e-19, 0.25), column_of("metrics.test.accuracy")) == "[0.0000, +0.2500]"
    assert (
        cell_of((-1e-9, 0.0), Column(title="", value="", format="difference"), complete=2, expected=2).text
        == "0.0000 ± 0.0000"
    )
    runs = [
        record(0.5 + sign * (seed - 1) / 10, key=f"{method}{seed}", seed=seed, method=method)
        for method, sign in (("head", 1), ("lora", -1))
        for seed in range(3)
    ]
    text = render_markdown(build(Request((str(write(scratch / "t", runs)),), baseline="peft=head")))
    assert "-0.0000" not in text
    assert "−0.0000" not in text
    assert "| peft=lora | 0.0000 |" in text


@pytest.mark.parametrize(("through_a_pipe", "expected"), [(True, 72), (False, 110)])
def test_a_pipe_is_as_wide_as_the_terminal_behind_it(tmp_path: Path, through_a_pipe: bool, expected: int) -> None:
    """What goes into a file is not."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 72, 0, 0))
    code = "from peftlab.report.render.terminal import console; print(console().width)"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with (tmp_path / "log").open("w+") as log:
        out: Any = subprocess.PIPE if through_a_pipe else log
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=terminal, env=environment, check=True)
        log.seek(0)
        assert int(done.stdout if through_a_pipe else log.read()) == expected
    os.close(reader)
    os.close(terminal)


def test_what_is_no_terminal_gets_no_trailing_blanks() -> None:
    out = io.StringIO()
    plain = PlainConsole(file=out, width=60)
    print_facts(plain, [("name", "a fact"), ("another", "x")])
    print_table(plain, plain_table([Head("a"), Head("b", number=True)], [("one", "1"), ("two and more", "2")]))
    print_lines(plain, ["a line"])
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["name     a fact", "another  x"]
    assert lines[-1] == "a line"
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_long_line_hangs_on_a_terminal_and_is_whole_in_a_file() -> None:
    path = f"outputs/{'a_long_name_' * 6}/0123456789ab"
    said = f"{path}: test accuracy is 0.8125 in the record, and 0.8000 by the counts of its confusion matrix"
    for text, below in ((said, path), (f"note: {said}", "    " + path)):
        terminal, file = io.StringIO(), io.StringIO()
        for out in (PlainConsole(file=terminal, width=80, force_terminal=True), PlainConsole(file=file, width=110)):
            print_hanging(out, text, then="    ", first=("differs    ", "red"))
        assert file.getvalue() == f"differs    {text}\n"
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
        assert any(line.strip().startswith(below.strip()) for line in shown), "no path is cut"
        assert all(len(line) <= 80 for line in shown if path not in line)
        assert all(line.startswith("    ") for line in shown[1:])
        assert " ".join(" ".join(shown).split()) == " ".join(f"differs    {text}".split())


def test_of_lines_no_path_is_cut() -> None:
    path, file = f"outputs/{'a_long_name_' * 8}/picture.png", io.StringIO()
    print_lines(PlainConsole(file=file, width=80, force_terminal=True, color_system=None), [f"see {path} and read on"])
    assert file.getvalue() == f"see\n{path}\nand read on\n"
    file = io.StringIO()
    print_lines(
        PlainConsole(file=file, width=20, force_terminal=True, color_system=None), ["  four of 12 rows", "a b " * 6]
    )
    assert file.getvalue() == "  four of 12 rows\na b a b a b a b a b\na b\n"
