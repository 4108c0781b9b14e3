"""``peftlab sweep FILE``: run what a declared sweep lacks, then make its table and pictures from the records."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from peftlab.composition import parse
from peftlab.errors import ConfigError, listed
from peftlab.files import write_atomically
from peftlab.sweeps import run as sweep_run
from peftlab.sweeps.declaration import Job, Sweep, plan, read_sweep


def main(arguments: Sequence[str]) -> int:
    """Check all jobs, run those that are not finished, and write the table.

    Returns:
        0; 1 if a job failed.
    """
    parser = argparse.ArgumentParser(
        "peftlab sweep",
        description="Run a declared sweep; started again, it runs what is missing. The table and two pictures go to "
        "<output_dir>/<name>/.",
    )
    parser.add_argument("file", metavar="FILE", help="a declaration, for example sweeps/lecture.yaml")
    parser.add_argument("overrides", nargs="*", help="setting=option of the file; key=value for every job")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="runs at a time (default: one for each CPU)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the jobs, run nothing")
    parser.add_argument("--report-only", action="store_true", help="make the table from what is there, run nothing")
    parser.add_argument(
        "--publish",
        metavar="FILE",
        help="also put the table between the markers of a Markdown file, and the pictures into docs/ beside it",
    )
    given = parser.parse_intermixed_args(list(arguments))
    if given.jobs is not None and given.jobs < 1:
        raise ConfigError(f"--jobs {given.jobs}: at least 1 job must run at a time.")
    parse(given.overrides)
    sweep = read_sweep(Path(given.file))
    chosen = dict(o.split("=", 1) for o in given.overrides if o.partition("=")[0] in sweep.settings)
    more = [o for o in given.overrides if o.partition("=")[0] not in sweep.settings]
    if named := [o for o in more if o.partition("=")[0] in ("name", "seed")]:
        raise ConfigError(f"{named[0]}: the name and the seeds of a sweep stand in {given.file}.")
    if given.publish is not None:
        require_markers(Path(given.publish), sweep.name)
    jobs = plan(sweep, chosen, more)
    sweep_run.check_all(jobs)
    if given.dry_run:
        _list(sweep, jobs)
        return 0
    if given.report_only:
        outcome = sweep_run.finished(jobs)
    else:
        outcome = sweep_run.run(jobs, parallel=given.jobs or len(os.sched_getaffinity(0)))
    if not outcome.records:
        raise ConfigError(f"no run of {given.file} is finished: there is nothing to make a table of.")
    folder = next(iter(outcome.folders.values())).parent
    _write(sweep, outcome, folder, None if given.publish is None else Path(given.publish))
    if outcome.failures:
        print(f"{len(outcome.failures)} of {len(jobs)} jobs failed:")
        for failure in outcome.failures:
            print(f"  {failure}")
        print("The same command again skips what is finished and runs the rest.")
    return 1 if outcome.failures else 0


def _list(sweep: Sweep, jobs: Sequence[Job]) -> None:
    known = sweep_run.finished(jobs)
    for number, job in enumerate(jobs, start=1):
        state = "finished" if (job.cell, job.seed) in known.records else "to run"
        start = f"  from the run of {job.start}" if job.start else ""
        print(f"{number:4d}  {state:8s}  {job.title}: {' '.join(job.overrides)}{start}")
    print(f"{len(jobs)} jobs, {len(known.records)} of them finished. {sweep.title}. Cost: {sweep.cost}")


def _write(sweep: Sweep, outcome: sweep_run.Outcome, folder: Path, publish: Path | None) -> None:
    from peftlab.report.sweep_figures import draw_against_parameters, draw_learning_curves
    from peftlab.report.sweep_table import csv_text, markdown

    table = markdown(sweep, outcome.records)
    write_atomically(folder / "table.md", f"# {sweep.title}\n\n{table}")
    write_atomically(folder / "table.csv", csv_text(sweep, outcome.records))
    pictures = {"curves": draw_learning_curves, "parameters": draw_against_parameters}
    for name, draw in pictures.items():
        draw(folder / f"{name}.png", sweep, outcome.records)
    print(f"\n{table}")
    print(f"{folder}/: table.md, table.csv, curves.png, parameters.png")
    if publish is not None:
        for name in pictures:
            copy = publish.parent / "docs" / f"{sweep.name}_{name}.png"
            write_atomically(copy, (folder / f"{name}.png").read_bytes())
        _replace_between_markers(publish, sweep.name, table)
        print(f"put the table into {publish}, and the pictures into {publish.parent / 'docs'}/")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- table {name} -->", f"<!-- end of table {name} -->"


def require_markers(path: Path, name: str) -> None:
    """Raise ConfigError unless ``path`` has a place for the table of ``name``."""
    begin, end = _markers(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--publish {path}: it cannot be read ({error}).") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ConfigError(f"--publish {path}: the table goes between the lines {listed([begin, end])}; put them there.")


def _replace_between_markers(path: Path, name: str, table: str) -> None:
    begin, end = _markers(name)
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    write_atomically(path, f"{before}{begin}\n{table}{end}{rest.split(end)[1]}")
