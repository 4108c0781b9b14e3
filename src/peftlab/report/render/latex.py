"""report.tex: the tables as LaTeX, ready for \\input{report.tex} in a paper that loads booktabs: a short caption, and
below the table, in small letters, what a reader must know of its figures."""

from __future__ import annotations

import re
import unicodedata

from peftlab.report.render.environment import environment
from peftlab.report.report import Report
from peftlab.report.table import Cell, Mark

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


def render_latex(report: Report) -> str:
    """Table environments: the results, and the comparison with the baseline if there is one."""
    label = label_of(report)
    notes = [" ".join(report.results.notes), about_the_runs(report)]
    tables = [(report.results.brief, f"{sentence(report.title)} {report.results.caption}", label, notes)]
    if (compared := report.comparison) is not None:
        caption = f"{report.title}, {compared.title.replace('Against', 'against', 1)}. {compared.caption}"
        tables.append((compared.brief, caption, f"{label}-comparison", [*compared.notes]))
    filled = environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    filled.filters |= {"tex": latex_escaped, "cell": _cell}
    return filled.get_template("report.tex").render(tables=tables)


def about_the_runs(report: Report) -> str:
    """What the notes say of the data and of how weights were chosen."""
    return " ".join(map(sentence, [*report.measured_on, *report.selection]))


def label_of(report: Report) -> str:
    """What the labels of the report's tables begin with: the name of its sweep, or of its runs."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", report.name).strip("-")[:40] or "peftlab"


def _cell(cell: Cell) -> str:
    return _MARKED[cell.mark].format(latex_escaped(cell.text))


_MARKED: dict[Mark, str] = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"\underline{{{}}}"}


def sentence(text: str) -> str:
    """``text`` with a point at its end, if nothing else is there."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
