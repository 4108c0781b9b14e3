"""report.tex: the tables as LaTeX, ready for \\input{report.tex} in a paper that loads booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from peftlab.report.build import Report
from peftlab.report.legends import comparison_legend, legend
from peftlab.report.tables import COMPARISON_HEAD, comparison_rows, head, lead_head, metric_place, sections

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''",
    "‘": "`", "’": "'", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "∞": r"$\infty$", "√": r"$\sqrt{}$",
    "\N{MINUS SIGN}": "$-$", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
_SPECIAL |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {_n.replace('lambda', 'lamda')}"): f"$\\{_n}$" for _n in _GREEK.split()
}
_SPECIAL |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.replace('Lambda', 'Lamda')}"): f"$\\{name}$"
    for name in ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega")
}


def escape(text: str) -> str:
    """``text`` as LaTeX prints it. Characters that plain pdfLaTeX cannot print are named by their code point."""
    return "".join(_SPECIAL.get(sign) or _plain(sign) for sign in " ".join(text.split()))


def _plain(sign: str) -> str:
    if sign.isascii() or "À" <= sign <= "ſ":
        return sign
    return f"[U+{ord(sign):04X}]"


def latex(report: Report) -> str:
    """Table environments: the results, and the comparison with the baseline if there is one."""
    place, lead = metric_place(report), lead_head(report)
    body = []
    for number, (section, rows) in enumerate(sections(report)):
        if number:
            body.append(r"\midrule")
        if section:
            body.append(rf"\multicolumn{{{len(lead) + len(head(report))}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
        for row in rows:
            cells = list(map(escape, row.cells))
            if row.mark:
                cells[place] = rf"\{'textbf' if row.mark == 'best' else 'underline'}{{{cells[place]}}}"
            body.append(_line([*map(escape, row.lead), *cells]))
    data = [*report.measured_on, *report.selection]
    tables = [
        _table(
            spec="l" * len(lead) + "r" * len(head(report)),
            titles=[*lead, *head(report)],
            body=body,
            caption=f"{report.title}. {legend(report)} {' '.join(_sentence(line) for line in data)}",
            label="results",
            report=report,
        )
    ]
    if report.baseline is not None and report.comparisons:
        tables.append(
            _table(
                spec="l" + "r" * len(COMPARISON_HEAD),
                titles=["", *COMPARISON_HEAD],
                body=[_line([escape(label), *map(escape, cells)]) for label, cells in comparison_rows(report)],
                caption=f"{report.title}: against {report.baseline.label}. {comparison_legend(report)}",
                label="comparison",
                report=report,
            )
        )
    return f"% needs \\usepackage{{booktabs}} and \\usepackage{{graphicx}}\n{chr(10).join(tables)}"


def _table(*, spec: str, titles: Sequence[str], body: Sequence[str], caption: str, label: str, report: Report) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", report.title.lower()).strip("-")[:40] or "peftlab"
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(caption)}}}",
        rf"  \label{{tab:{name}-{label}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%  never wider than the text",
        rf"  \begin{{tabular}}{{{spec}}}",
        r"    \toprule",
        f"    {_line([escape(title) for title in titles])}",
        r"    \midrule",
        *(f"    {line}" for line in body),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
