"""``peftlab verify FOLDER…``: check finished runs against their own records."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from zipfile import is_zipfile

from peftlab.audit.bundle import unpacked
from peftlab.audit.verify import Verdict, verify
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder
from peftlab.report.render.terminal import console, print_hanging
from peftlab.terminal import printable, say

DESCRIPTION = """\
Check finished runs against their own records: that the record is whole and its figures agree with each other, that the
config gives the run's key, that every file has the content that was written, and that the adapter's numbers are finite.
Reads files only, a thousand runs in seconds. Exit status 1 if anything differs."""


def main(arguments: Sequence[str]) -> int:
    """Check every run, print a line for each and what differs.

    Returns:
        0 if every finished run is as its record says, else 1.
    """
    parser = argparse.ArgumentParser("peftlab verify", description=DESCRIPTION)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="run folders, folders of runs (outputs), or an archive of peftlab bundle",
    )
    parser.add_argument("--data", action="store_true", help="also read the data again and compare their hash")
    parser.add_argument(
        "--rerun-eval", action="store_true", help="also test each run again and compare every figure to the bit"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(arguments))
    with ExitStack() as open_bundles:
        return _verify(given, *_found(given.folders, open_bundles))


def _found(given: Sequence[str], open_bundles: ExitStack) -> tuple[list[RunFolder], dict[str, str]]:
    """The run folders, and how an unpacked bundle's folder is to be called."""
    places, called = list[str](), dict[str, str]()
    for name in given:
        path = Path(name).expanduser()
        if path.is_file() and (path.suffix == ".zip" or is_zipfile(path)):
            folder = open_bundles.enter_context(unpacked(path))
            called[str(folder)] = name
            places.append(str(folder))
        else:
            places.append(name)
    return run_folders(places), called


def _verify(given: argparse.Namespace, folders: Sequence[RunFolder], called: Mapping[str, str]) -> int:
    if given.data or given.rerun_eval:
        from peftlab.audit.verify_again import DataHashes, verify_data, verify_test

        hashes = DataHashes()
    verdicts = []
    for folder in folders:
        verdict = verify(folder)
        # What is broken already cannot be read or run again to any purpose.
        if given.data and verdict.status in SOUND:
            verify_data(verdict, hashes)
        if given.rerun_eval and verdict.status in SOUND:
            verify_test(verdict)
        verdicts.append(verdict)
        if not given.json:
            _print(verdict, called)
    counts: Counter[str] = Counter(verdict.status for verdict in verdicts)
    if given.json:
        summary = {name: counts[name] for name in _WORDS}
        runs = [verdict.plain() | {"folder": _called(verdict, called)} for verdict in verdicts]
        print(json.dumps(summary | {"runs": runs}, ensure_ascii=False))
    else:
        _print_summary(verdicts, counts)
    return 1 if counts["differs"] else 0


SOUND = ("ok", "diverged")
"""Runs that are as recorded, as far as their files say."""

_STYLES = {"diverged": "yellow", "ok": "green", "differs": "red", "unfinished": "yellow"}


def _called(verdict: Verdict, called: Mapping[str, str]) -> str:
    """The run's folder; of one in a bundle the archive's name and the place in it."""
    path = str(verdict.folder.path)
    unpacked_in = next((folder for folder in called if path.startswith(f"{folder}/")), None)
    return path if unpacked_in is None else f"{called[unpacked_in]}:{path[len(unpacked_in) + 1 :]}"


def _print(verdict: Verdict, called: Mapping[str, str]) -> None:
    out, line = console(), _called(verdict, called)
    if verdict.status == "unfinished":
        line += f": {verdict.unfinished}"
    elif verdict.status == "diverged":
        line += ": as recorded, but its training diverged, or the loss of the tested weights is not finite"
    print_hanging(out, line, then="    ", first=(f"{verdict.status:<11}", _STYLES[verdict.status]))
    for finding in verdict.differences:
        print_hanging(out, f"    {finding}", then="      ")
    for finding in verdict.notes:
        print_hanging(out, f"    note: {finding}", then="      ")
    if verdict.changes:
        out.print("    other than when the run was recorded:")
    for change in verdict.changes:
        print_hanging(out, f"      {change}", then="        ")


def _print_summary(verdicts: list[Verdict], counts: Counter[str]) -> None:
    parts = [f"{counts[name]} {words}" for name, words in _WORDS.items() if counts[name]]
    say(f"{len(verdicts)} {'run' if len(verdicts) == 1 else 'runs'}: {', '.join(parts)}")
    skipped = Counter(str(finding) for verdict in verdicts for finding in verdict.not_checked)
    if skipped:
        print("not checked:")
    for reason, count in skipped.items():
        say(printable(f"  {reason}") + (f" ({count} runs)" if count > 1 else ""))


_WORDS = {
    "ok": "as recorded",
    "differs": "not as recorded",
    "diverged": "diverged (as recorded)",
    "unfinished": "unfinished",
}
