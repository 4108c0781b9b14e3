"""``peftlab runs [FOLDER…]``: the runs below some folders, one a line."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from peftlab.errors import ConfigError
from peftlab.metric_names import MetricName
from peftlab.process import uncollected
from peftlab.records.divergence import without_bare_words
from peftlab.records.find import run_folders
from peftlab.report.key_names import shown
from peftlab.report.listed import Listed, read_listed
from peftlab.report.listing import best_of, in_order, only, shared_by_most, told_apart, value_of
from peftlab.report.number_text import NOTHING, fixed, plain_number
from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.table import Head, plain_table

DESCRIPTION = """\
List the runs in or below FOLDER (default: outputs), finished or not: what tells them apart, how they stand, and the
selecting figure on validation and test."""
EPILOG = """\
NAME of --sort and --columns is a key of the config (peft.rank, or rank where that is clear), a metric by its name in
metrics.csv, another number of the record (timing.train_seconds, parameters.trainable), name, key, status, epochs or
ended_at. peftlab explain columns lists the places in a record."""
MOST = 40
"""Lines, unless all are asked for."""


def main(arguments: Sequence[str]) -> int:
    """Print the list.

    Returns:
        0.
    """
    given = _parser().parse_intermixed_args(list(arguments))
    folders = [word for word in given.words if "=" not in word]
    conditions = [word for word in given.words if "=" in word]
    if unfit := [word for word in given.words if re.match("[^=]*[<>!]", word)]:
        raise ConfigError(
            f"{unfit[0]}: a condition is KEY=VALUE, or KEY=VALUE,VALUE for one of several, of a key of the config. "
            "Figures are ordered with --sort, and shown with --columns."
        )
    with uncollected():  # records by the thousands, all of them kept
        runs = read_listed(run_folders(folders or ["outputs"]))
        runs = in_order(in_order(runs, lambda run: run.ended_at or None), lambda run: run.name)
        runs = only(runs, conditions)
        found = _asked_for(runs, given)
        columns = [name.strip() for name in (given.columns or "").split(",") if name.strip()]
        if given.columns is not None and not columns:
            raise ConfigError("--columns is empty. Name a key of the config, a metric or a place in the record.")
        if given.json:
            print(json.dumps([_plain(run) for _, members in found for run in members], ensure_ascii=False))
            return 0
        out, most = console(), None if given.all or given.best else MOST
        for title, members in found:
            _print(out, members, runs, columns, title=title, most=most)
        counts = Counter(run.status for run in runs)
        said = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
        print_lines(out, [f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'}: {said}"])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("peftlab runs", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FOLDER | KEY=VALUE",
        help="where; and only runs with this value (KEY=VALUE,VALUE: one of these)",
    )
    parser.add_argument("--sort", metavar="NAME", help="order by this; the selecting figure with the best first")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--best", nargs="?", const=1, type=int, metavar="N",
        help="only the N best (default 1) by the selecting figure on validation, of each data set",
    )  # fmt: skip
    parser.add_argument("--columns", metavar="NAME,…", help="show these, not the selecting figure")
    parser.add_argument("--all", action="store_true", help=f"all lines, not the first {MOST}")
    parser.add_argument("--json", action="store_true", help="print a JSON list with config and figures of each")
    return parser


def _asked_for(runs: list[Listed], given: argparse.Namespace) -> list[tuple[str, list[Listed]]]:
    if given.best is not None:
        if given.best < 1:
            raise ConfigError(f"--best {given.best}: give how many, 1 or more.")
        if given.sort or given.reverse:
            raise ConfigError("--best sorts by the selecting figure on validation: leave --sort and --reverse out.")
        found = best_of(runs, given.best)
        if not found:
            raise ConfigError("--best: none of these runs is finished and has a figure on validation.")
        return found
    if given.sort is None:
        return [("", runs[::-1] if given.reverse else runs)]
    falling = any(
        given.sort in (name.in_history, name.in_record) and run.better == "max"
        for run in runs
        for name in (MetricName("validation", run.selects), MetricName("test", run.selects))
    )
    ordered = in_order(runs, value_of(given.sort, runs, "--sort"), falling=falling != given.reverse)
    return [("", ordered)]


def _print(
    out: Console, shown_runs: list[Listed], runs: list[Listed], columns: list[str], *, title: str, most: int | None
) -> None:
    differs = dict(zip((run.folder for run in runs), told_apart(runs), strict=True))
    own = [differs[run.folder] for run in shown_runs]
    shared = shared_by_most(own)
    printed = shown_runs[:most]
    one_name = len({run.name for run in runs}) == 1
    heads = [Head("run" if one_name else "name/key", whole=True)]
    heads += [Head("what differs", gives_way=bool(columns)), Head("state", whole=True)]
    if columns:
        values = [value_of(name, runs, "--columns") for name in columns]
        heads += [Head(name, number=True, optional=True) for name in columns]
        written = [_figure_or_number if _is_metric(name) else _number for name in columns]
        cells = [[write(value(run)) for write, value in zip(written, values, strict=True)] for run in printed]
    else:
        selects = {run.selects for run in runs if run.selects}
        of = next(iter(selects)) if len(selects) == 1 else "figure"
        heads += [Head("epochs", number=True, optional=True)]
        heads += [Head(MetricName(split, of).title, number=True) for split in ("validation", "test")]
        heads += [Head("ended (UTC)", optional=True)]
        cells = [
            [str(run.epochs), *(_figure(run.figure(split)) for split in ("validation", "test")), _minute(run.ended_at)]
            for run in printed
        ]
    rows = [
        (run.key if one_name else f"{run.name}/{run.key}", _in_words(says, shared), run.status, *cell)
        for run, says, cell in zip(printed, own[:most], cells, strict=True)
    ]
    if shared:
        print_lines(out, [f"Unless a run says otherwise: {_in_words(shared, {})}"])
    more = len(shown_runs) - len(printed)
    elsewhere = "--all (lines) and --json (columns)" if more else "--json"
    print_table(out, plain_table(heads, rows, title=title), also=more, elsewhere=elsewhere)


def _in_words(says: Mapping[str, str], but: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in says.items() if but.get(key) != value)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else fixed(value)


def _is_metric(name: str) -> bool:
    return (MetricName.from_record(name) or MetricName.from_history(name)) is not None


def _figure_or_number(value: Any) -> str:
    """A metric as the selecting figure is written, so that a column has as many decimals in all its rows."""
    return fixed(value) if isinstance(value, float) and abs(value) < 1000 else _number(value)


def _number(value: Any) -> str:
    if value is None:
        return NOTHING
    return plain_number(value) if isinstance(value, float) else shown(value)


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ") or NOTHING


def _plain(run: Listed) -> dict[str, Any]:
    said = {
        "folder": run.folder, "name": run.name, "key": run.key, "status": run.status, "epochs": run.epochs,
        "ended_at": run.ended_at or None, "error": run.error or None, "selects": run.selects or None,
        "config": run.config, "values": run.values,
    }  # fmt: skip
    found: dict[str, Any] = without_bare_words(said)
    return found
