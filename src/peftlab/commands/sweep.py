"""``peftlab sweep FILE``: run what a declared sweep lacks, then make its table and pictures from the records."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.errors import ConfigError, counted
from peftlab.fields import NAME_PATTERN
from peftlab.files import write_atomically
from peftlab.report.published import replace_table, require_markers
from peftlab.report.render.markdown import escaped
from peftlab.signals import ASKED
from peftlab.sweeps import pool, processes
from peftlab.sweeps.beginning import beginning, file_schema
from peftlab.sweeps.call import Call
from peftlab.sweeps.jobs import Outcome
from peftlab.sweeps.manifest import write_manifest
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.preflight import (
    check_all,
    check_records,
    lines,
    require_data,
    require_sound,
    shared_overrides,
)  # fmt: skip
from peftlab.sweeps.slots import Machine, PoolOptions
from peftlab.terminal import say

if TYPE_CHECKING:
    from peftlab.report.figures.style import Drawn

NAME = re.compile(NAME_PATTERN)


def main(arguments: Sequence[str]) -> int:
    """Check all jobs, run those that are not finished, and write the table.

    Returns:
        0; 1 if a job failed.
    """
    with ASKED.heard():
        return _sweep(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    given = _parser().parse_intermixed_args(list(arguments))
    if given.schema:
        print(json.dumps(file_schema(), indent=2, ensure_ascii=False))
        return 0
    if given.file is None:
        raise ConfigError("name a file: peftlab sweep sweeps/rank_alpha.yaml; or begin one: peftlab sweep --new FILE.")
    if given.new:
        return _new(Path(given.file))
    if given.new_cluster:
        return _new_cluster(Path(given.file))
    for flag, least in (("jobs", 1), ("devices_per_job", 1), ("threads_per_job", 1), ("retries", 0)):
        if (value := getattr(given, flag)) is not None and value < least:
            raise ConfigError(f"--{flag.replace('_', '-')} {value}: it must be at least {least}.")
    if given.on_error not in ("continue", "stop"):
        raise ConfigError(f"--on-error {given.on_error}: it must be continue or stop.")
    options = PoolOptions(
        n_parallel=given.jobs,
        devices_per_job=given.devices_per_job,
        jobs_per_device=_jobs_per_device(given.jobs_per_device),
        threads_per_job=given.threads_per_job,
        on_error=given.on_error,
        retries=given.retries or 0,
        minutes_per_job=given.minutes_per_job,
    )
    call = Call(Path(given.file), given.overrides, given.config_dir)
    if given.on is not None or given.cluster is not None or given.set:
        return _submit(given, call)
    publish = None if given.publish is None else Path(given.publish)
    if publish is not None:
        require_markers(publish, call.sweep.name)
    if given.dry_run:
        return _dry_run(call)
    beforehand = call.plan(reading=True)
    if not (given.report_only or (beforehand.folder / "sweep.json").exists()):  # what has one may be finished
        processes.warm_up()
    checked = check_all(beforehand)
    if not given.report_only:
        require_sound(beforehand, checked)
    plan = call.plan(reading=given.report_only, slots=len(Machine.divided(options).slots))
    try:
        outcome = pool.finished(plan) if given.report_only else pool.run(plan, options)
        if outcome.elsewhere:
            _tell_failures(plan, outcome)
            count = len(outcome.elsewhere)
            at_work = f"{counted(count, 'job')} {'is' if count == 1 else 'are'} at work in other workers"
            print(f"{at_work}; the last of them makes the table.")
            return 1 if outcome.failures else 0
        if not outcome.records and not outcome.failures and not outcome.diverged:
            raise ConfigError(f"no run of {given.file} is finished: there is nothing to make a table of.")
        try:
            if outcome.records:
                check_records(plan, outcome)
                _write(plan, outcome, call.file, publish)
            else:
                write_manifest(plan, outcome, call.file)
                for title, where in outcome.diverged.items():
                    print(f"{title}: {where}")
        finally:  # also when the table could not be written
            _tell_failures(plan, outcome)
    finally:
        plan.close()
    return 1 if outcome.failures else 0


def _new(path: Path) -> int:
    """Write a file to begin with."""
    if not NAME.fullmatch(path.stem):
        raise ConfigError(
            f"--new {path}: the sweep is called as its file, and '{path.stem}' cannot name a folder: it must begin "
            "with a letter or digit, and have only letters, digits and . _ + = , -"
        )
    _write_new(path, beginning(path.stem), "--new")
    say(f"{path}: two cells, three seeds. `peftlab check {path}` says what would run.")
    return 0


def _new_cluster(path: Path) -> int:
    """Write a cluster file to begin with: the shipped one, which explains every key."""
    from peftlab.cluster.settings import SHIPPED

    _write_new(path, SHIPPED.read_text(encoding="utf-8"), "--new-cluster")
    print(
        f"{path}: change what your cluster calls otherwise. Then: "
        f"peftlab sweep FILE --on slurm --cluster {path} --dry-run"
    )
    return 0


def _write_new(path: Path, text: str, flag: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{flag} {path}: the file is there already. Give another name.") from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: it cannot be written: {error.strerror}.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "peftlab sweep",
        description="Run a declared sweep; started again, it runs what is missing. The table and two pictures go to "
        "<output_dir>/<name>/.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a declaration, for example sweeps/lecture.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="setting=option of the file; seeds=0,1 instead of its own; key=value for every job",
    )
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs")
    parser.add_argument("--new", action="store_true", help="write FILE, to begin with; run nothing")
    parser.add_argument("--new-cluster", action="store_true", help="write FILE, a cluster file to begin with")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of such files, for editors")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="runs at a time (default: one for each GPU or CPU)")
    parser.add_argument("--devices-per-job", type=int, default=1, metavar="N", help="GPUs of a run (default: 1)")
    parser.add_argument(
        "--jobs-per-device",
        default="1",
        metavar="N|auto",
        help="runs that share a GPU (default: 1); auto: as many as its memory holds, by what the first took",
    )
    parser.add_argument("--threads-per-job", type=int, metavar="N", help="CPU threads of a run (default: CPUs / jobs)")
    parser.add_argument("--on-error", default="continue", metavar="continue|stop", help="after a run has failed")
    parser.add_argument("--retries", type=int, metavar="N", help="of a run that crashed (default: 0; on a cluster 1)")
    parser.add_argument("--minutes-per-job", type=float, metavar="N", help="then a run is killed (default: never)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check and list the jobs, run nothing; with --on slurm also what would be submitted",
    )
    parser.add_argument("--report-only", action="store_true", help="make the table from what is there, run nothing")
    parser.add_argument(
        "--on", metavar="slurm", help="submit it to a cluster as an array of equal workers; see also peftlab status"
    )
    parser.add_argument("--cluster", metavar="FILE", help="where workers run and what each has (default: as shipped)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a key of the cluster file")
    parser.add_argument(
        "--publish",
        metavar="FILE",
        help="also put the table between the markers of a Markdown file, and the pictures into docs/ beside it",
    )
    return parser


def _jobs_per_device(given: str) -> int | None:
    if given == "auto":
        return None
    if not given.isdigit() or int(given) < 1:
        raise ConfigError(f"--jobs-per-device {given}: it must be a whole number, at least 1, or auto.")
    return int(given)


def _submit(given: argparse.Namespace, call: Call) -> int:
    from peftlab.cluster.command import pool_options, submit_and_tell, tell_plan
    from peftlab.cluster.settings import read_cluster
    from peftlab.cluster.work import sweep_work

    if given.on != "slurm":
        was = "--cluster and --set go with --on slurm" if given.on is None else f"--on {given.on}: it must be slurm"
        raise ConfigError(f"{was}.")
    if given.publish is not None or given.report_only:
        raise ConfigError("--publish and --report-only work on what is finished: call them without --on slurm then.")
    cluster = read_cluster(None if given.cluster is None else Path(given.cluster), given.set)
    work = sweep_work(call, pool_options(given))
    if given.dry_run:
        _dry_run(call)
        print()
        return tell_plan(work, cluster)
    where = [] if given.config_dir is None else ["--config-dir", given.config_dir]
    again = shlex.join(["peftlab", "sweep", given.file, *where, *given.overrides])
    return submit_and_tell(work, cluster, table=f"{again} --report-only")


def _dry_run(call: Call) -> int:
    """Check every job, and list them."""
    plan = call.plan(reading=True)
    for line in require_data(plan, check_all(plan)):
        say(line)
    _list(plan, call)
    return 0


def _list(plan: DeclaredPlan, call: Call) -> None:
    outcome = pool.finished(plan, to_run=True)
    listed_jobs = lines(plan, outcome)
    if shared := shared_overrides(listed_jobs):
        say(f"all jobs: {' '.join(shared)}", then=" " * 10)
    for number, line in enumerate(listed_jobs, start=1):
        say(f"{number:4d}  {line.state:8s}  {line.text(shared)}", then=" " * 12)
    cost = f" Cost: {call.sweep.cost}" if call.sweep.cost else ""
    done = sum(line.state == "finished" for line in listed_jobs)
    of_them = "" if plan.total() == 1 else "of them "
    say(f"{counted(plan.total(), 'job')}, {done} {of_them}finished. {call.sweep.title}.{cost}")


def _write(plan: DeclaredPlan, outcome: Outcome, file: Path, publish: Path | None) -> None:
    from peftlab.report.render.terminal import console
    from peftlab.sweeps.table import render_csv, render_markdown, render_terminal

    sweep, records, choices, folder = plan.sweep, plan.records(outcome), plan.choices(outcome), plan.folder
    table = render_markdown(sweep, records, choices, plan.diverged(outcome))
    out = console()  # before anything is written: the disk may be full
    if out.is_terminal:
        render_terminal(out, sweep, records, choices, plan.diverged(outcome))
    else:
        print(f"\n{table}")
    write_manifest(plan, outcome, file)
    write_atomically(folder / "table.md", f"# {escaped(sweep.title)}\n\n{table}")
    write_atomically(folder / "table.csv", render_csv(sweep, records, choices))
    pictures = _pictures(plan)
    for picture in pictures:
        write_atomically(folder / f"{picture.name}.png", picture.png)
    names = ", ".join(f"{picture.name}.png" for picture in pictures)
    print(folder)  # alone: to be copied
    print(f"  table.md, table.csv, {names}, sweep.json")
    print("statistics, LaTeX, more figures and a page:")
    print(f"  peftlab report {folder}")
    if publish is not None:
        for picture in pictures:
            write_atomically(publish.parent / "docs" / f"{sweep.name}_{picture.name}.png", picture.png)
        replace_table(publish, sweep.name, table)
        say(f"put the table into {publish}, and the pictures into {publish.parent / 'docs'}/")


def _pictures(plan: DeclaredPlan) -> list[Drawn]:
    """The metric against trainable parameters, and the learning curves if the sweep asks for some."""
    from peftlab.report.build import Request, build
    from peftlab.report.figures.runs import draw_curves
    from peftlab.report.figures.scatter import draw_parameters

    report = build(Request(folders=(str(plan.folder),)))
    drawn = [draw_parameters(report)]
    if any(arm.curve for arm in plan.sweep.cells):
        drawn.append(draw_curves(report))
    return [picture for picture in drawn if not isinstance(picture, str)]


def _tell_failures(plan: DeclaredPlan, outcome: Outcome) -> None:
    """Each job without a result: why, and the end of its log."""
    if not outcome.failures:
        return
    print(f"{len(outcome.failures)} of {counted(plan.total(), 'job')} failed:")
    for failure in outcome.failures.values():
        where = f" ({failure.log})" if failure.log else ""
        say(f"  {failure.job.title}: {failure.reason}{where}")
        for line in failure.tail.splitlines():
            print(f"    {line}")
    print(pool.GO_ON)
