"""``peftlab submit train …``: one run, or the jobs of ``-m``, on a Slurm cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peftlab.cluster.command import submit_and_tell, tell_plan
from peftlab.cluster.settings import read_cluster
from peftlab.cluster.work import train_work
from peftlab.errors import ConfigError

DESCRIPTION = """\
Submit what stands behind 'train' to a Slurm cluster: one run as one worker, the jobs of -m as an array of equal
workers. Called again, it submits what is missing. For a declared sweep: peftlab sweep FILE --on slurm."""


def main(arguments: Sequence[str]) -> int:
    """Check every job, submit workers, and say how many.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab submit", description=DESCRIPTION)
    parser.add_argument("--cluster", metavar="FILE", help="where workers run and what each has (default: as shipped)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a key of the cluster file")
    parser.add_argument(
        "--dry-run", action="store_true", help="check, and print what would be submitted; asks no Slurm"
    )
    parser.add_argument("command", metavar="train", help="the command")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="what peftlab train is given")
    given = parser.parse_args(list(arguments))
    if given.command != "train":
        sweep = " A sweep's file: peftlab sweep FILE --on slurm." if given.command == "sweep" else ""
        raise ConfigError(f"peftlab submits train, not {given.command}: peftlab submit --set key=value train ….{sweep}")
    cluster = read_cluster(None if given.cluster is None else Path(given.cluster), given.set)
    work = train_work(given.words)
    return tell_plan(work, cluster) if given.dry_run else submit_and_tell(work, cluster)
