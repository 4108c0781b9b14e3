"""``peftlab wandb-sync FOLDER…``: replay local records into Weights & Biases."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import ConfigError, RunError
from peftlab.interop.wandb_replay import Target, planned, replay, writable
from peftlab.records.find import run_folders
from peftlab.terminal import say
from peftlab.training.wandb_runs import has_account

DESCRIPTION = """\
Replay local records into Weights & Biases: one run a record, its id the key, one step an epoch, the record's metrics as
summary. Records that were synced there before and have not changed are left alone, so it can be called again at any
time; a record that has changed replaces its W&B run, as it does a run that logger=wandb wrote under the same key. A
record that was edited by hand, or is damaged, is left out, and the exit status is then 1."""


def main(arguments: Sequence[str]) -> int:
    """Sync every finished run that is new or has changed.

    Returns:
        0 if no record had to be left out because it is not as it was written, else 1; other problems are errors.
    """
    parser = argparse.ArgumentParser("peftlab wandb-sync", description=DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders of runs (outputs)")
    parser.add_argument("--project", default="peftlab", help="%(default)s without it")
    parser.add_argument("--entity", help="user or team; without it that of the account")
    parser.add_argument("--mode", choices=("online", "offline"), help="$WANDB_MODE without it, else online")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; do nothing")
    given = parser.parse_args(list(arguments))
    target = _target(given)
    runs = [planned(folder, target) for folder in run_folders(given.folders)]
    to_do = [run for run in runs if run.action in ("new", "changed")]
    if target.mode == "online" and to_do and not given.dry_run and not has_account():
        raise ConfigError(
            "--mode=online needs an account: set WANDB_API_KEY or call `wandb login`; or give --mode offline."
        )
    if not given.dry_run and (locked := [run for run in to_do if not writable(run.folder)]):
        raise RunError(f"cannot write {locked[0].folder.path}: what was synced is noted in the run's folder. Copy it.")
    uploads: list[Path] = []
    try:
        for run in runs:
            if run in to_do and not given.dry_run and (upload := replay(run, target)) is not None:
                uploads.append(upload)
            say(f"{_WORDS[run.action]:<10}{run.folder.path}" + (f": {run.why}" if run.why else ""))
    finally:
        if to_do and not given.dry_run:
            import wandb

            wandb.teardown()
    _print_summary(Counter(run.action for run in runs), target, dry_run=given.dry_run)
    for upload in uploads:
        print(f"wandb sync {upload}")
    return 1 if any(run.action == "refused" for run in runs) else 0


_WORDS = {"new": "new", "changed": "replaced", "synced": "unchanged", "skipped": "skipped", "refused": "left out"}


def _target(given: argparse.Namespace) -> Target:
    """Where the records go.

    Raises:
        ConfigError: for a name that W&B would not take, or a mode in the environment that mirrors nothing.
    """
    for option in ("project", "entity"):
        name = getattr(given, option)
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            raise ConfigError(f"--{option}='{name}': letters, digits, '-', '_' and '.' make a name of W&B.")
    match given.mode or os.environ.get("WANDB_MODE") or "online":
        case "online":
            return Target(given.project, given.entity, "online")
        case "offline":
            return Target(given.project, given.entity, "offline")
        case other:
            raise ConfigError(f"WANDB_MODE={other} sends nothing anywhere: give --mode online or --mode offline.")


def _print_summary(counts: Counter[str], target: Target, *, dry_run: bool) -> None:
    where = f"{target.entity}/{target.project}" if target.entity else target.project
    parts = [f"{counts[action]} {words}" for action, words in _WORDS.items() if counts[action]]
    say(f"{where}, {target.mode}{', nothing done' if dry_run else ''}: {', '.join(parts)}")
    if target.mode == "offline" and not dry_run and counts["new"] + counts["changed"]:
        print("To upload, with an account:")
