"""The tables as LaTeX, ready for \\input{results.tex} in a paper that loads booktabs: a short caption, and below the
table, in small letters, what a reader must know of its figures. How a table is set (over one column or both), and with
which letters, LaTeX decides where the table goes: ``templates/table.tex``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from peftlab.report.render.environment import FOLDER
from peftlab.report.render.paper import blocks_of, cell_lines, head_lines
from peftlab.report.report import Report
from peftlab.report.table import Cell, Head, Mark, Table

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''",
    "‘": "`", "’": "'", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "∞": r"$\infty$", "√": r"$\sqrt{}$",
    "\N{MINUS SIGN}": "$-$", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
"""Signs that LaTeX does not print as they are → how it prints them."""
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
SPECIAL |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {_n.replace('lambda', 'lamda')}"): f"$\\{_n}$" for _n in _GREEK.split()
}
SPECIAL |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.replace('Lambda', 'Lamda')}"): f"$\\{name}$"
    for name in ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega")
}


def latex_escaped(text: str) -> str:
    """``text`` as LaTeX prints it. Characters that plain pdfLaTeX cannot print are named by their code point."""
    return " ".join(text.split()).translate(_SIGNS)


class _Signs(dict[int, str]):
    """What :meth:`str.translate` makes of each code point; one that is met the first time is added."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        self[code] = shown = sign if sign.isascii() or "À" <= sign <= "ſ" else f"[U+{code:04X}]"
        return shown


_SIGNS = _Signs({ord(sign): shown for sign, shown in SPECIAL.items()})


TABLE = (FOLDER / "table.tex").read_text(encoding="utf-8")
"""A table, but for what stands between ``<<`` and ``>>``."""
BREAK = r"\\"
"""Of a line."""


def latex_tables(report: Report) -> dict[str, str]:
    """The file of each table, by its name: the results, and the comparison with the baseline if there is one."""
    label = label_of(report)
    notes = [" ".join(report.results.notes), about_the_runs(report)]
    caption = f"{sentence(report.title)} {report.results.caption}"
    tables = {"results.tex": latex_table(report.results.brief, caption, label, notes)}
    if (compared := report.comparison) is not None:
        caption = f"{report.title}, {compared.title.replace('Against', 'against', 1)}. {compared.caption}"
        tables["comparison.tex"] = latex_table(compared.brief, caption, f"{label}-comparison", compared.notes)
    return tables


def latex_table(table: Table, caption: str, label: str, notes: Sequence[str]) -> str:
    """``table`` as a float, with ``notes`` below it."""
    heads = head_lines(table)
    blocks = blocks_of(table, heads)
    size = table.leads + len(blocks[0])
    rows: list[str] = []
    for number, columns in enumerate(blocks):
        shown = [*range(table.leads), *columns]
        rows += ["\\midrule[\\heavyrulewidth]"] if number else []
        rows += [_row([_stacked(heads[i], table.heads[i]) for i in shown], size), "\\midrule"]
        for place, section in enumerate(table.sections):
            rows += ["\\midrule"] if place else []
            if section.title:
                rows.append(rf"\multicolumn{{{size}}}{{@{{}}l@{{}}}}{{\textit{{{latex_escaped(section.title)}}}}} \\")
            rows += [_row([_cell(row.cells[i], table.heads[i]) for i in shown], size) for row in section.rows]
    values = {
        "columns": "".join("r" if head.number else "l" for head in table.heads[:size]),
        "rows": "\n".join(f"    {row}" for row in rows),
        "caption": latex_escaped(caption),
        "label": label,
        "notes": "\n".join(f"    {latex_escaped(note)}\\par" for note in notes if note),
    }
    return re.sub(r"<< (\w+) >>", lambda found: values[found[1]], TABLE)


def about_the_runs(report: Report) -> str:
    """What the notes say of the data and of how weights were chosen."""
    return " ".join(map(sentence, [*report.measured_on, *report.selection]))


def label_of(report: Report) -> str:
    """What the labels of the report's tables begin with: the name of its sweep, or of its runs."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", report.name).strip("-")[:40] or "peftlab"


def _row(cells: Sequence[str], size: int) -> str:
    return rf"{_behind_a_break(' & '.join([*cells, *[''] * (size - len(cells))]))} \\"


def _behind_a_break(text: str) -> str:
    r"""``text`` where LaTeX would take a [ or * for an option of the ``\\`` or ``\midrule`` before it."""
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def _stacked(lines: Sequence[str], head: Head) -> str:
    """The lines of a head, which stands on the last one."""
    return _in_lines([latex_escaped(line) for line in lines], "b", "r" if head.number else "l")


def _cell(cell: Cell, head: Head) -> str:
    lines = [_MARKED[cell.mark].format(latex_escaped(line)) for line in cell_lines(cell.text, head)]
    return _in_lines(lines, "t", "l")


def _in_lines(lines: Sequence[str], end: str, side: str) -> str:
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{end}]{{@{{}}{side}@{{}}}}{BREAK.join(map(_behind_a_break, lines))}\end{{tabular}}"


_MARKED: dict[Mark, str] = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"\underline{{{}}}"}


def sentence(text: str) -> str:
    """``text`` with a point at its end, if nothing else is there."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
