"""``peftlab report FOLDER…``: tables, statistics, figures and a page of the records below some folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import ConfigError, listed, nearest
from peftlab.process import uncollected
from peftlab.report.build import Request, build, default_target
from peftlab.report.owned import write_report
from peftlab.report.render.data import render_groups_csv, render_json, render_runs_csv
from peftlab.report.render.latex import latex_tables
from peftlab.report.render.markdown import render_markdown
from peftlab.report.render.terminal import console, print_lines
from peftlab.report.render.terminal_report import print_report
from peftlab.report.report import Report

FORMATS = ("md", "tex", "csv", "json", "html", "figures")


def main(arguments: Sequence[str]) -> int:
    """Read the records, print the table and write the report.

    Returns:
        0; 1 if a record had to be left out.
    """
    given = _parser().parse_intermixed_args(list(arguments))
    formats = _formats(given.format)
    with uncollected():  # records by the thousands, all of them kept
        report = build(
            Request(
                folders=tuple(given.folders), metric=given.metric, columns=given.columns, by=_listed(given.by),
                where=tuple(given.where), baseline=given.baseline, best=given.best,
            )
        )  # fmt: skip
        print_report(report)
        target = Path(given.to) if given.to else default_target(given.folders)
        written = write(report, target, formats, chosen=given.to is not None)
    print(target)  # alone: to be copied
    print_lines(console(), [f"  {', '.join(written)}"])
    if report.left_out:
        print(f"peftlab report: {len(report.left_out)} left out:", file=sys.stderr)
        for line in report.left_out_lines:
            print(f"  {line}", file=sys.stderr)
    return 1 if report.left_out else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "peftlab report",
        description="Make tables, paired statistics, figures and one HTML page of the records below FOLDER. Runs of "
        "one config are one row, whatever their seed; where a sweep has left a sweep.json, its cells are the rows.",
        epilog="Exit status 1: a record could not be read; the report is made of the others and says which.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run's, a name's, or one of many names")
    parser.add_argument("--to", metavar="DIR", help="where the report goes (default: FOLDER/report of the first)")
    parser.add_argument(
        "--metric",
        metavar="PATH",
        help="what is compared (default: the sweep's, or what selects for the first run's objective, on test)",
    )
    parser.add_argument(
        "--columns", metavar="PATH,…", help="places in record.json: parameters.trainable, config.optim.lr"
    )
    parser.add_argument("--by", metavar="KEY,…", help="group by these config keys, not by the whole config")
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="only runs with this config value; repeatable"
    )
    parser.add_argument("--baseline", metavar="ROW", help="label or id of the row that the others are tested against")
    parser.add_argument(
        "--best", choices=("highest", "lowest"), help="which value is best (default: as the records say)"
    )
    parser.add_argument("--format", metavar="NAME,…", help=f"only some of: {', '.join(FORMATS)}")
    return parser


def _listed(given: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())


def _formats(given: str | None) -> tuple[str, ...]:
    chosen = _listed(given)
    for name in chosen:
        if name not in FORMATS:
            raise ConfigError(f"--format {name}: unknown.{nearest(name, FORMATS)} There are: {listed(FORMATS)}.")
    if given is not None and not chosen:
        raise ConfigError(f"--format is empty. There are: {listed(FORMATS)}.")
    return chosen or FORMATS


_KINDS = {"tex": (".tex",), "figures": (".png", ".pdf")}
"""Of formats that have more files or fewer, by what a report is of: the endings of these."""


def write(report: Report, target: Path, formats: Sequence[str], *, chosen: bool = False) -> list[str]:
    """Write the report's files into ``target``; return their names.

    Args:
        report: what is written.
        target: the folder.
        formats: which of :data:`FORMATS`.
        chosen: whether the folder was named by the user, whose files may be in it.

    Raises:
        PeftlabError: if one cannot be written, or is somebody's own.
    """
    files: dict[str, str | bytes] = {}
    gallery = None
    if "figures" in formats or "html" in formats:
        from peftlab.report.figures.gallery import draw_all  # imports matplotlib

        gallery = draw_all(report)
    names = [f"{drawn.name}.png" for drawn in gallery.drawn] if gallery and "figures" in formats else []
    absent = gallery.absent if gallery else []
    if "md" in formats:
        files["report.md"] = render_markdown(report, names, absent, target)
    if "tex" in formats:
        tables = latex_tables(report)
        files |= {"report.tex": "\n".join(tables.values()), **tables}
    if "csv" in formats:
        files |= {"report.csv": render_runs_csv(report), "groups.csv": render_groups_csv(report)}
    if "json" in formats:
        files["report.json"] = render_json(report, absent)
    if gallery and "figures" in formats:
        for drawn in gallery.drawn:
            files |= {f"{drawn.name}.png": drawn.png, f"{drawn.name}.pdf": drawn.pdf, f"{drawn.name}.csv": drawn.csv}
    if gallery and "html" in formats:
        from peftlab.report.render.page import render_page

        files["report.html"] = render_page(report, gallery, target, files="figures" in formats)
    kinds = [ending for name, endings in _KINDS.items() if name in formats for ending in endings]
    write_report(target, files, chosen=chosen, kinds=tuple(kinds))
    return list(files)
