"""``peftlab remove RUN…``: take runs away that nothing else needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from peftlab.errors import RunError
from peftlab.process import uncollected
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder
from peftlab.report.listed import read_listed
from peftlab.report.listing import only
from peftlab.report.render.terminal import console, print_lines
from peftlab.runs.removal import remove, size_of, why_kept

DESCRIPTION = """\
Remove runs, after asking. A run stays that is in use, that another run starts from (backbone.from_run,
continue_from), or that belongs to a sweep."""
SHOWN = 20


def main(arguments: Sequence[str]) -> int:
    """Ask, and remove.

    Returns:
        0 if they are gone; 1 if they stay, because the answer was no.

    Raises:
        RunError: if one of them must stay; none is removed then.
    """
    parser = argparse.ArgumentParser("peftlab remove", description=DESCRIPTION)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | FOLDER | KEY=VALUE",
        help="a run folder, or a folder of them; with conditions (status=failed, peft.rank=4), the runs that meet them",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parser.parse_intermixed_args(list(arguments))
    folders, conditions = [w for w in given.words if "=" not in w], [w for w in given.words if "=" in w]
    if not folders:
        raise RunError("name the folder that these runs are in: peftlab remove outputs/ablation status=failed.")
    with uncollected():
        found = _meant(folders, conditions)
        kept = why_kept(found)
    if kept:
        lines = [f"{folder.path} {why}" for folder, why in kept.items()]
        more = [f"… and {len(lines) - SHOWN:,} more."] if len(lines) > SHOWN else []
        raise RunError("nothing was removed.\n  " + "\n  ".join([*lines[:SHOWN], *more]))
    total = sum(map(size_of, found))
    if not given.yes and not _agreed(found, total):
        print("nothing was removed.")
        return 1
    freed = 0
    for folder in found:
        freed += remove(folder)
    print(f"removed {_counted(len(found))} ({_mib(freed)}).")
    return 0


def _meant(folders: Sequence[str], conditions: Sequence[str]) -> list[RunFolder]:
    found = run_folders(folders)
    if not conditions:
        return found
    kept = {run.folder for run in only(read_listed(found), conditions)}
    return [folder for folder in found if str(folder.path) in kept]


def _agreed(found: Sequence[RunFolder], total: int) -> bool:
    if not sys.stdin.isatty():
        raise RunError(
            f"{_counted(len(found))} ({_mib(total)}) would be removed: say --yes, as nobody can be asked here."
        )
    out = console()
    print_lines(out, [str(folder.path) for folder in found[:SHOWN]])
    if len(found) > SHOWN:
        print_lines(out, [f"… and {len(found) - SHOWN:,} more"])
    answer = input(f"Remove {_counted(len(found))} ({_mib(total)})? They cannot be brought back. [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _counted(runs: int) -> str:
    return f"{runs:,} {'run' if runs == 1 else 'runs'}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
