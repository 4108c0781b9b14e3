"""Markdown shows labels letter for letter, whatever they hold."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from peftlab.report.build import Request, build
from peftlab.report.render.markdown import escaped, markdown_table, render_markdown
from peftlab.report.table import Head, plain_table
from peftlab.sweeps.table import render_markdown as table_of_sweep
from tests.report.made_up import sweep_file, three_methods
from tests.sweeps.made_up import declared

ODD = "a|b <script>x()</script> $5$ \\ c\\|d *e* _f_ `g` [h](i) &lt; ~~j~~ lora_rank"
LABELS = [
    ODD, "two\nlines", "# no heading", "> no quotation", "1. no list", "- no list", "+ no list", "---",
    "<!-- no comment", "\\", "|", "a\\", "<https://x.y>", "**", "p < 0.0001", "[+0.07, -0.13]",
]  # fmt: skip


def shown(text: str) -> str:
    """What a reader of the Markdown sees."""
    return unescape(re.sub(r"<[^>]*>", "", MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)))


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_shown_letter_for_letter(label: str) -> None:
    wanted = " ".join(label.split())
    assert shown(f"- {escaped(label)}").strip() == wanted
    table = markdown_table(plain_table([Head(""), Head("n")], [[label, "5"]]))
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table)
    cells = [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<td>(.*?)</td>", html, re.DOTALL)]
    assert cells == [wanted, "5"]


def test_dollars_begin_no_formula() -> None:
    assert escaped("$x$ costs 5 $") == "\\$x\\$ costs 5 \\$"


def test_what_needs_no_backslash_has_none() -> None:
    assert escaped("lora_rank=2, p < 0.05 (n - 1), [+0.1, -0.2]; 3 & 4. x.y") == (
        "lora_rank=2, p < 0.05 (n - 1), [+0.1, -0.2]; 3 & 4. x.y"
    )


def test_reports_and_sweeps_escape_alike(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    content = sweep_file(folder, title=ODD)
    for cell in content["cells"]:
        cell["label"] = f"{ODD}\n{cell['id']}"
    content["cells"][0] |= {"group": ODD, "failed": {"7": ODD}}
    (folder / "sweep.json").write_text(json.dumps(content))
    text = render_markdown(build(Request((str(folder),))))
    cells = [{"id": "one", "label": ODD, "group": ODD}]
    table = table_of_sweep(declared(cells=cells), {})
    for made in (text, table):
        assert "<script>" not in made
        assert ODD in shown(made)
