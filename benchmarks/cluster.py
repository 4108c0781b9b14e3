"""A sweep on a real Slurm of two nodes, through everything that goes wrong on one, beside the same sweep run here.

    python benchmarks/cluster.py [--keep DIR]

The launcher is killed after it has written down what it is about to do, again after sbatch has taken the job, and the
same command then twice more. While the workers run, a job is killed with -9, one worker is requeued by Slurm, one comes
to the end of its time, and slurmctld and a slurmd are restarted. In the end each run has one record that was written
once, the table is the local one but for times, and `peftlab status` was right at each step. The exit status says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import slurm_here
from torture_sweep import Sweep, same_table

from peftlab.records.holder import Holder

WORKERS, JOBS = 4, 8
SWEEP = """\
name: small
title: Two ranks, four seeds
source: a trial of workers on Slurm
command: peftlab sweep small.yaml
cost: two minutes on 2 CPU cores
selection: best
overrides:
  [backbone=tiny, logger=none, data=text_files, data.path=rows.jsonl, data.max_length=48, data.batch_size=16,
   data.eval_batch_size=64, optim.lr=3e-3, trainer.max_epochs=4, trainer.accelerator=cpu, trainer.threads=1,
   trainer.checkpoint_every_n_steps=25, peft=lora]
seeds: [0, 1, 2, 3]
metric: metrics.test.accuracy
baseline: lora_2
cells:
  - {id: lora, label: "rank {peft.rank}", grid: {peft.rank: [2, 4]}}
columns:
  - {title: test accuracy, value: metrics.test.accuracy}
  - {title: test loss, value: metrics.test.loss}
  - {title: training seconds, value: timing.train_seconds}
"""
CLUSTER = "workers: 4\ncpus: 1\nmemory: 2G\ntime: 10\nlead_seconds: 30\n"
KILLS_BEFORE = "#!/bin/bash\nkill -9 $PPID\n"
KILLS_AFTER = '#!/bin/bash\nanswer=$({sbatch} "$@")\nkill -9 $PPID\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave everything there")
    given = parser.parse_args()
    if (reason := slurm_here.why_not()) is not None:
        print(f"skipped: {reason}.")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() if given.keep is None else contextlib.nullcontext(given.keep) as folder:
        place = Path(folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        write_rows(place / "rows.jsonl")
        (place / "small.yaml").write_text(SWEEP)
        (place / "cluster.yaml").write_text(CLUSTER)
        calm = Sweep("small.yaml", ["-j", "2"], place / "calm")
        if calm.start().wait():
            raise SystemExit(f"the sweep failed here:\n{calm.log.read_text()[-3000:]}")
        print(f"here: {len(calm.results())} records in {time.monotonic() - began:.0f} s", flush=True)
        with slurm_here.slurm(place / "slurm") as slurm:
            trial = Trial(slurm, place)
            trial.submitted()
            trial.disturbed()
            trial.ended()
        checks = trial.checks | compared(calm, trial)
    for text, right in checks.items():
        print(f"{'yes' if right else 'NO '}  {text}")
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if all(checks.values()) else 1


class Trial:
    """The same sweep on Slurm."""

    def __init__(self, slurm: slurm_here.Slurm, place: Path) -> None:
        self.slurm, self.place = slurm, place
        self.sweep = Sweep("small.yaml", [], place / "remote")
        self.checks: dict[str, bool] = {}
        self.stages: list[str] = []

    # -- what happens ---------------------------------------------------------------------------------

    def submitted(self) -> None:
        """Four launchers, of which two are killed. No worker begins before them all: the jobs would be over."""
        self.partition("DOWN")
        self.launch(KILLS_BEFORE)
        state = self.status("killed before sbatch")
        queued = state["sum"]["queued"] == state["sum"]["total"] == JOBS
        self.check("the killed launcher left no job, and all runs are queued", queued and not state["workers"])
        self.launch(KILLS_AFTER.format(sbatch=shutil.which("sbatch")))
        self.status("killed after sbatch")
        self.check(f"the second left an array of {WORKERS}", len(self.workers()) == WORKERS)
        for count in ("third", "fourth"):
            said = self.launch()
            self.check(
                f"the {count} launcher sent nothing: {said.splitlines()[-2][:60]}…", "in the queue already" in said
            )
        self.check(f"there are {WORKERS} workers", len(self.workers()) == WORKERS)

    def disturbed(self) -> None:
        """Everything that goes wrong on a cluster, while the workers run."""
        self.partition("UP")
        held = self.three_held()
        self.status("at work")
        (run, killed), (_, first), (_, second) = held
        os.kill(int(killed.pid), signal.SIGKILL)
        self.stages.append(f"job {run} killed -9")
        os.kill(int(first.pid), signal.SIGCONT)
        time.sleep(2)
        self.slurm.ask("scontrol", "requeue", first.job)
        self.status(f"{first.job} requeued")
        self.slurm.stop("slurmctld", "n2")
        self.stages.append("slurmctld and a slurmd stopped")
        unknown = self.status("no slurmctld")
        self.check("status says that the queue is not known", "not known" in " ".join(unknown["notes"]))
        self.slurm.start("slurmctld", "n2")
        self.until(self.slurm.ready, "Slurm is back")
        self.status("Slurm is back")
        # On a fast machine all jobs would be over before the time of one is: its own waits until it is asked to end. On
        # a slow one it would be killed while it waits, half a minute later, if it were asked before all this; and a
        # limit that lies behind it already would wake it and end it at once, not ask.
        waiting = int(second.pid)
        self.slurm.ask("scontrol", "update", f"JobId={second.job}", f"TimeLimit={self.minutes_of(second.job) + 2}")
        self.until(lambda: _asked(waiting), f"the job of {second.job} is asked to end")
        os.kill(waiting, signal.SIGCONT)
        self.until(lambda: "turn 2 begins" in self.log_of(second.job), f"{second.job} is in its second turn", push=True)
        self.check(
            "the worker whose time was over ended in order and went on", "exit status 85" in self.log_of(second.job)
        )
        with contextlib.suppress(RuntimeError):  # it may have found nothing left to do
            self.slurm.ask("scontrol", "update", f"JobId={second.job}", "TimeLimit=10")

    def three_held(self) -> list[tuple[str, Holder]]:
        """Three runs at work, of three workers, stopped where they are: on a busy machine they might never meet."""
        held: dict[str, tuple[str, Holder]] = {}

        def hold() -> bool:
            for run, holder in self.running().items():
                if holder.job not in held and len(held) < 3:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        os.kill(int(holder.pid), signal.SIGSTOP)
                        held[holder.job] = (run, holder)
            return len(held) == 3

        self.until(hold, "three jobs are at work")
        return [held[job] for job in sorted(held)]

    def ended(self) -> None:
        """Until nobody works, and the same command once more."""
        self.until(lambda: not self.workers(), "all workers have ended", push=True, seconds=400)
        state = self.status("ended")
        self.check(
            "status: 8 done, nothing else",
            state["sum"] == {"running": 0, "queued": 0, "failed": 0, "lost": 0, "done": JOBS, "total": JOBS},
        )
        self.check("a finished sweep submits nothing", "nothing was submitted" in self.launch())
        for stage in self.stages:
            print(f"     {stage}")

    # -- looking --------------------------------------------------------------------------------------

    def launch(self, sbatch: str = "") -> str:
        """Call the command, with another program in sbatch's place if one is given."""
        environment = os.environ | self.slurm.environment
        if sbatch:
            programs = self.place / "programs"
            programs.mkdir(exist_ok=True)
            (programs / "sbatch").write_text(sbatch)
            (programs / "sbatch").chmod(0o755)
            environment["PATH"] = f"{programs}:{environment['PATH']}"
        command = [*self.sweep.command, "--on", "slurm", "--cluster", "cluster.yaml"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if (done.returncode != 0) != bool(sbatch):
            raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def status(self, stage: str) -> dict[str, Any]:
        """What `peftlab status` says, compared with what can be seen without it."""
        command = [sys.executable, "-m", "peftlab", "status", "remote/small", "--json"]
        before, running = self.done(), self.running()
        began = time.monotonic()
        done = subprocess.run(
            command, env=os.environ | self.slurm.environment, capture_output=True, text=True, timeout=60
        )
        seconds = time.monotonic() - began
        after, still = self.done(), self.running()
        state: dict[str, Any] = json.loads(done.stdout)
        said = {Path(run["run"]).name for run in state["runs"] if run["state"] == "running"}
        counts = state["sum"]
        right = (
            before <= counts["done"] <= after
            and counts["total"] == JOBS
            and set(running) & set(still) <= said
            and len(said) <= WORKERS
        )
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count and name != "total")
        self.stages.append(f"{stage}: {told}; {len(state['workers'])} workers ({seconds:.1f} s)")
        self.check(f"status is right: {stage}", right)
        return state

    def check(self, text: str, right: bool) -> None:
        self.checks[text] = right

    def done(self) -> int:
        self.sweep.look()
        return len(self.sweep.stamps)

    def running(self) -> dict[str, Holder]:
        """Run → the process that holds it, by what the kernel knows of processes."""
        return {
            path.parent.name: holder
            for path, holder in ((lock, _holder(lock)) for lock in self.place.glob("remote/small/*/.lock"))
            if holder
        }

    def partition(self, state: str) -> None:
        """Whether Slurm starts what is queued: ``UP``, or ``DOWN``."""
        self.slurm.ask("scontrol", "update", "PartitionName=all", f"State={state}")

    def workers(self) -> list[str]:
        return self.slurm.ask("squeue", "--noheader", "--array", "--format=%i").split()

    def minutes_of(self, worker: str) -> int:
        """For how many whole minutes it has worked."""
        started = self.slurm.ask("squeue", "--noheader", f"--job={worker}", "--format=%S").strip()
        return int((datetime.now() - datetime.fromisoformat(started)).total_seconds() // 60)  # both as clocks here show

    def log_of(self, worker: str) -> str:
        (path,) = self.place.glob(f"remote/small/.slurm/logs/*-{worker}.txt")
        return path.read_text()

    def until(self, condition: Callable[[], bool], what: str, *, push: bool = False, seconds: float = 240) -> None:
        """Wait; with ``push``, workers that were queued again begin after five seconds, not after Slurm's two minutes.

        In the very second in which it was queued again a node would refuse it: its former turn's credential, which is
        revoked, is of that second too.
        """
        end, seen = time.monotonic() + seconds, dict[str, float]()
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds:.0f} s in vain until {what}\n{self.slurm.ask('squeue', '--array')}")
            self.sweep.look()
            for line in (
                self.slurm.ask("squeue", "--noheader", "--array", "--format=%i %T %r").splitlines() if push else ()
            ):
                worker, state, reason = line.split(maxsplit=2)
                if state != "PENDING" or reason != "BeginTime":
                    seen.pop(worker, None)
                elif time.monotonic() - seen.setdefault(worker, time.monotonic()) > 5:
                    with contextlib.suppress(RuntimeError):
                        self.slurm.ask("scontrol", "update", f"JobId={worker}", "StartTime=now")
            time.sleep(0.5)


def compared(calm: Sweep, trial: Trial) -> dict[str, bool]:
    """What the two sweeps left."""
    trial.sweep.look()
    expected, found = calm.results(), trial.sweep.results()
    snapshots = {
        json.loads(path.read_text()).get("snapshot") for path in trial.place.glob("remote/small/*/record.json")
    }
    return {
        f"{len(found)} records for {len(expected)} jobs": found.keys() == expected.keys() and len(found) == JOBS,
        "each was written once": len(trial.sweep.stamps) == JOBS and not trial.sweep.touched,
        "metrics, history and weights are the same to the bit": found == expected,
        "table.md is the same but for times": same_table(calm.table(), trial.sweep.table()),
        "all runs name the one snapshot that they ran from": len(snapshots) == 1 and None not in snapshots,
    }


def _holder(lock: Path) -> Holder | None:
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        holder = Holder.read(file)
        if holder and Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            return holder
    return None


def _asked(pid: int) -> bool:
    """Whether a signal other than the one that stopped it waits for the process."""
    with contextlib.suppress(FileNotFoundError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return any(int(status[name], 16) for name in ("SigPnd", "ShdPnd"))
    return False


def write_rows(path: Path) -> None:
    """2,400 short texts of two kinds."""
    draw = random.Random(7)
    words = {"good": ["superb and funny", "I loved it", "great acting"], "bad": ["dull", "I hated it", "awful acting"]}
    with path.open("w", encoding="utf-8") as file:
        for number in range(2400):
            label = ("bad", "good")[number % 2]
            text = " ".join(draw.choice(words[label]) for _ in range(draw.randrange(1, 4)))
            file.write(json.dumps({"text": f"{text} {number}", "label": label}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
