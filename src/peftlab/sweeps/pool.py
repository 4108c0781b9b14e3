"""The pool: runs the jobs of a plan, each in a process of its own, and says what became of them. Imports no torch.

    identify (cache) ─► finished? take the record
                    ─► at work elsewhere? wait for it
                    ─► else a slot, a process ─► record, or again (retries), or a failure

A run's folder decides: what has a finished record is done, whoever made it; what another process has locked is waited
for. So two launchers on one folder share its jobs, and a launcher started again goes on where the last one was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, PeftlabError, counted
from peftlab.records.holder import Holder
from peftlab.sweeps import job_spec, processes
from peftlab.sweeps.beside import Beside
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.finished import finished, folder_of, take
from peftlab.sweeps.interrupts import Interrupts
from peftlab.sweeps.job_spec import JobSpec
from peftlab.sweeps.jobs import Failure, Job, Outcome, Plan
from peftlab.sweeps.progress import Progress
from peftlab.sweeps.queued_run import QueuedRun, reason_of, tail_of
from peftlab.sweeps.sharing import Sharing
from peftlab.sweeps.slots import Machine, PoolOptions, Slot
from peftlab.training.ranks import of_its_own, world_size
from peftlab.training.wandb_runs import CELL

__all__ = ["PoolOptions", "finished", "run"]

GRACE_SECONDS = 25.0
"""After Ctrl-C or another signal, jobs have this long for a step and a checkpoint; Slurm kills after 30."""
GRACE = "PEFTLAB_GRACE_SECONDS"
"""Environment variable that says so for a worker, which knows how long before its end it is told."""
POLL_SECONDS = 0.5
"""How often a run that another process holds is looked at."""
ASK_SECONDS = 1.0
"""How often a plan that may stop jobs early is asked about each running one."""
GO_ON = "The same command again skips what is finished and runs the rest."


def run(plan: Plan, options: PoolOptions | None = None, *, progress: Progress | None = None) -> Outcome:
    """Run what is not finished, and return what became of every job.

    Raises:
        ConfigError: if the machine cannot give what ``options`` ask for.
        Interrupted: on Ctrl-C and other signals, when the jobs have ended; finished ones stay.
    """
    with ConfigCache() as cache, Interrupts() as interrupts:
        return _Pool(plan, options or PoolOptions(), cache, progress or Progress(), interrupts).run()


@dataclass
class _Pool:
    plan: Plan
    options: PoolOptions
    cache: ConfigCache
    progress: Progress
    interrupts: Interrupts
    outcome: Outcome = field(default_factory=Outcome)
    queue: deque[QueuedRun] = field(default_factory=deque)
    running: dict[ForkServerProcess, QueuedRun] = field(default_factory=dict)
    elsewhere: list[QueuedRun] = field(default_factory=list)
    """Runs that another process holds."""
    tasks: dict[Path, QueuedRun] = field(default_factory=dict)
    stopping: bool = False
    beside: Beside = field(default_factory=Beside)
    received: int = 0
    """Jobs that the plan has handed out."""

    def run(self) -> Outcome:
        self.machine = Machine.divided(self.options)
        self.free = list(reversed(self.machine.slots))
        self.sharing = Sharing(self.options.jobs_per_device, len(self.machine.slots))
        with self.progress:
            self._hand_out()
            if self.outcome.skipped:
                self.progress.say(f"{_done_of(len(self.outcome.skipped), self.plan.total())} finished already")
            if self.queue:
                self.progress.say(f"running {counted(self.progress.to_run, 'job')}, {self.machine.title}")
            self.cache.save()  # the night may end before the sweep does
            try:
                while self.queue or self.running or self.elsewhere:
                    self._step()
            except KeyboardInterrupt:
                self._interrupted()
                raise
            except BaseException:
                self._end_all(0.0)
                raise
        for failure in self.plan.blocked(self.outcome):
            self.outcome.failures.setdefault(failure.job.id, failure)
        return self.outcome

    def _step(self) -> None:
        """Start what can start, wait until something happens, and note it."""
        self.interrupts.check()
        while self.queue and not self.stopping and self._place() is not None:
            self._start(self.queue.popleft())
        for task in list(self.elsewhere):
            self._look_at(task)
        if self.stopping and not self.running:
            self._leave_the_rest()
        elif self.running:
            for sentinel in self.interrupts.wait([p.sentinel for p in self.running], self._patience()):
                self._ended(next(p for p in self.running if p.sentinel == sentinel))
            self._stop_early()
            self._end_overdue()
        elif self.elsewhere and not self.queue:
            if self.beside.array and self.received >= self.plan.total():
                self._leave_to_others()
            else:
                self.interrupts.wait([], POLL_SECONDS)
        self._hand_out()

    def _place(self) -> Slot | None:
        """Where the next job may run; None: nowhere at the moment."""
        return self.sharing.place(self.free, [task.slot for task in self.running.values() if task.slot is not None])

    def _hand_out(self) -> None:
        """Take the plan's next jobs, until it has none that can start."""
        while not self.stopping and (jobs := self.plan.ready(self.outcome)):
            self.cache.refresh()
            for job in jobs:
                self.interrupts.check()
                self.progress.total = self.plan.total()
                self._receive(job)
            self.received += len(jobs)
            self.beside.announce(self.queue, self.plan.total() - self.received)
        self.progress.total = self.plan.total()

    def _receive(self, job: Job) -> None:
        try:
            config = self.cache.config(job)
            self._require_a_number(config.trainer.devices)
            folder = folder_of(job, config)
            task = self.tasks.get(folder.path)
            if task is None:
                task = self.tasks[folder.path] = QueuedRun([job], config, folder)
                task.stamp = task.record_stamp()
                record = task.record()
                if record is None:
                    self.queue.append(task)
                else:
                    task.ended = take(self.outcome, job, folder, record, before=True)
                    self.progress.skip()
                    self.progress.take(record, job.title)
                return
        except PeftlabError as error:
            self._fail_job(job, str(error), None)
            return
        task.jobs.append(job)  # the same run again, under another name
        if task.ended and task.failure:
            self._fail_job(job, task.failure, task.log)
        elif task.ended:
            before = task.jobs[0].id in self.outcome.skipped
            take(self.outcome, job, folder, task.folder.read_record(), before=before)
            if before:
                self.progress.skip()
            else:
                self._say_finished(job, task.folder.path)

    def _require_a_number(self, devices: int | str) -> None:
        """Of a job with several GPUs, their number decides what it computes, and so its key."""
        if devices == "auto" and (several := len(self.machine.slots[0].gpus)) > 1:
            raise ConfigError(
                f"trainer.devices=auto, and each job has {several} GPUs: set trainer.devices={several}, which is a "
                "part of the run's key."
            )

    def _start(self, task: QueuedRun) -> None:
        reason = self.beside.failure(task)  # before the record is looked at, which another attempt may have written
        try:
            record = task.record()  # another launcher may have made it since
            if record is not None:
                self._succeed(task, record)
            elif (holder := task.folder.held_by()) is not None:
                self._leave_elsewhere(task, holder)
            elif reason:
                self._fail(task, reason)
            else:
                self._start_process(task)
        except (PeftlabError, OSError) as error:
            self._fail(task, str(error))

    def _start_process(self, task: QueuedRun) -> None:
        task.attempts += 1
        slot = self._place()
        assert slot is not None
        task.log.parent.mkdir(parents=True, exist_ok=True)
        if task.attempts > 1:
            with task.log.open("a", encoding="utf-8") as log:
                log.write(f"\n--- attempt {task.attempts} of {self.options.retries + 1} ---\n")
        self.progress.start(str(task.folder.path), task.title, slot.title)
        process = processes.start(self._spec(task, slot))
        task.since, task.overdue = time.monotonic(), False
        self.free.remove(slot)
        task.slot = slot
        self.running[process] = task

    def _spec(self, task: QueuedRun, slot: Slot) -> JobSpec:
        job, trainer = task.jobs[0], task.config.trainer
        threads = trainer.threads or max(1, self.machine.threads // world_size(trainer))
        # OMP_NUM_THREADS is for the other ranks of a DDP job, and keeps Lightning from choosing a number of its own.
        environment = of_its_own(os.environ) | {"OMP_NUM_THREADS": str(threads)}
        if job.arm is not None:
            environment[CELL] = job.arm
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        where = [] if job.config_name == "train" else ["--config-name", job.config_name]
        where += [] if job.config_dir is None else ["--config-dir", job.config_dir]
        return JobSpec(
            values=task.config.plain(),
            folder=str(task.folder.path),
            arguments=("train", *where, *job.overrides),
            threads=threads,
            environment=environment,
            log=str(task.log),
        )

    def _ended(self, process: ForkServerProcess) -> None:
        process.join()
        processes.kill_group(process)  # ranks of a job that was killed
        task, status = self.running.pop(process), process.exitcode
        assert task.slot is not None
        self.free.append(task.slot)
        self.free.sort(key=lambda slot: -slot.number)
        assert status is not None
        try:
            record = task.record()
            if record is not None:
                self._succeed(task, record)
                return
            if task.pruned:
                self._prune(task)
                return
            holder = task.folder.held_by()
        except PeftlabError as error:
            self._fail(task, str(error))
            return
        # The job's own loaders hold its lock for a moment longer than itself when it is killed.
        theirs = holder is not None and (holder.elsewhere or holder.pid != str(process.pid))
        if status == job_spec.IN_USE or theirs:
            task.attempts -= 1
            self._leave_elsewhere(task, holder or Holder())
            return
        if status == job_spec.OUT_OF_MEMORY:
            others = [other.slot for other in self.running.values() if other.slot is not None]
            if (said := self.sharing.lower(task.slot, others)) and not self.stopping:
                task.attempts -= 1
                self.progress.say(f"{task.title}: {said}; it runs again")
                self.queue.append(task)
                return
        minutes = self.options.minutes_per_job
        reason = f"killed after minutes_per_job={minutes:g}" if task.overdue else reason_of(status)
        may_pass = status < 0 or status in (1, processes.SERVER_LOST)
        if may_pass and task.attempts <= self.options.retries and not self.stopping:
            attempts = self.options.retries + 1
            self.progress.again(str(task.folder.path), task.title, reason, task.attempts + 1, attempts)
            self.queue.append(task)
        else:
            self._fail(task, reason)

    def _patience(self) -> float | None:
        """How long to wait for a job to end before looking at something else."""
        if self.elsewhere:
            return POLL_SECONDS
        asks = hasattr(self.plan, "stop_early") or self.options.minutes_per_job is not None
        return ASK_SECONDS if asks else None

    def _end_overdue(self) -> None:
        """Kill jobs whose time is over; one that somebody has stopped (SIGSTOP) would hold its slot for ever."""
        if self.options.minutes_per_job is None:
            return
        latest = time.monotonic() - 60 * self.options.minutes_per_job
        for process, task in self.running.items():
            if task.since < latest and not task.overdue:
                task.overdue = True
                processes.signal_job(process, signal.SIGKILL)

    def _stop_early(self) -> None:
        """End running jobs that the plan does not want any more. A run that another job needs too goes on."""
        ask = getattr(self.plan, "stop_early", None)
        if ask is None:
            return
        for process, task in self.running.items():
            if task.pruned:
                if time.monotonic() > task.kill_at:
                    processes.signal_job(process, signal.SIGKILL)
            elif len(task.jobs) == 1 and (reason := ask(task.jobs[0].id, task.folder.path)):
                task.pruned, task.kill_at = reason, time.monotonic() + GRACE_SECONDS
                processes.signal_job(process, signal.SIGTERM)

    def _prune(self, task: QueuedRun) -> None:
        """Note a job that was stopped early; others that came to the same run meanwhile get a run again."""
        first, *others = task.jobs
        task.ended = True
        self.outcome.pruned[first.id] = task.pruned
        self.progress.prune(str(task.folder.path), first.title, task.pruned)
        del self.tasks[task.folder.path]
        for job in others:
            self._receive(job)

    def _leave_elsewhere(self, task: QueuedRun, holder: Holder) -> None:
        self.elsewhere.append(task)
        self.progress.wait(str(task.folder.path), task.title, str(holder))

    def _look_at(self, task: QueuedRun) -> None:
        """Has the other process ended, and how?"""
        if task.folder.held_by() is None:
            self.elsewhere.remove(task)
            self.queue.appendleft(task)  # starting it finds the record, if the other has finished it

    def _leave_to_others(self) -> None:
        """End although others are at work, and make nothing of what they have: the last to end finds all records.

        Whoever leaves has written its own records before it looks at those of the others.
        """
        left, self.elsewhere = self.elsewhere, []
        for task in left:
            if task.folder.held_by() is None or _recorded(task):
                self.queue.append(task)  # starting it finds the record
            else:
                self.outcome.elsewhere.update(job.id for job in task.jobs)

    def _succeed(self, task: QueuedRun, record: dict[str, Any]) -> None:
        task.ended = True
        if task.attempts and (said := self.sharing.learn(record)):
            self.progress.say(said)
        for job in task.jobs:
            take(self.outcome, job, task.folder, record, before=False)
            self._say_finished(job, task.folder.path)

    def _say_finished(self, job: Job, folder: Path) -> None:
        if (reason := self.outcome.diverged.get(job.id)) is not None:
            self.progress.diverge(str(folder), job.title, reason)
            return
        self.progress.finish(str(folder), job.title, self.outcome.records[job.id])

    def _fail(self, task: QueuedRun, reason: str) -> None:
        task.ended, task.failure = True, reason
        self.beside.note_failure(task, reason)
        for job in task.jobs:
            self._fail_job(job, reason, task.log, str(task.folder.path))

    def _fail_job(self, job: Job, reason: str, log: Path | None, key: str = "") -> None:
        log = log if log is not None and log.exists() else None
        reason = " ".join(reason.split())
        self.outcome.failures[job.id] = Failure(job, reason, log, tail_of(log))
        self.progress.fail(key, job.title, reason, log)
        self.stopping = self.stopping or self.options.on_error == "stop"

    def _leave_the_rest(self) -> None:
        first = next(iter(self.outcome.failures.values()))
        for task in [*self.queue, *self.elsewhere]:
            for job in task.jobs:
                reason = f"not run: on_error=stop, and '{first.job.title}' has failed"
                self.outcome.failures[job.id] = Failure(job, reason)
        self.queue.clear()
        self.elsewhere.clear()

    def _interrupted(self) -> None:
        """Ctrl-C, or another signal: end the jobs; what is finished stays, what was running resumes."""
        self._end_all(float(os.environ.get(GRACE, GRACE_SECONDS)))
        self.progress.close()
        done, total = len(self.outcome.records), self.plan.total()
        print(f"{_done_of(done, total)} finished. {GO_ON}", file=sys.stderr, flush=True)

    def _end_all(self, grace: float) -> None:
        """Ask the jobs to end, and end them after ``grace`` seconds, or at once if Ctrl-C is pressed once more."""
        pressed = self.interrupts.count
        for process in self.running:
            processes.signal_job(process, signal.SIGTERM if grace else signal.SIGKILL)
        until = time.monotonic() + grace
        while (alive := [process.sentinel for process in self.running if process.is_alive()]) and (
            (left := until - time.monotonic()) > 0 and self.interrupts.count == pressed
        ):
            self.interrupts.wait(alive, left)
        for process in self.running:
            processes.signal_job(process, signal.SIGKILL)
            process.join()


def _done_of(done: int, total: int) -> str:
    if total == 1:
        return f"the job is{'' if done else ' not'}"
    return f"{done} of {total} jobs are"


def _recorded(task: QueuedRun) -> bool:
    """Whether the run has ended; of a damaged record, starting it says what is wrong."""
    try:
        return task.record() is not None
    except PeftlabError:
        return True
