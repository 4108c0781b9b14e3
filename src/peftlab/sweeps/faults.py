"""What is wrong with the jobs of a sweep: everything at once, each distinct thing with the jobs that have it.

Six jobs that lack the same file have one fault, and a person who mends it wants to know of the other one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError, counted
from peftlab.records.folder import RunFolder
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import Job

ENOUGH = 50
"""Jobs with a fault after which no more are looked at: what Hydra cannot compose it takes long to refuse."""
NAMED = 6
"""Jobs that are named beside a fault; of more, how many there are."""


@dataclass
class Faults:
    """Faults by what is said of them, with the names of who has them."""

    what: str
    """What is looked at: ``job``, ``cell``."""
    total: int
    found: dict[str, list[str]] = field(default_factory=dict)
    kinds: set[type[PeftlabError]] = field(default_factory=set)

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note an error that is raised inside, and go on.

        Raises:
            PeftlabError: when there are so many that looking for more has no use.
        """
        try:
            yield
        except PeftlabError as error:
            self.note(name, str(error), type(error))
            if len(self.named()) >= ENOUGH:
                self.require_none()

    def note(self, name: str, said: str, kind: type[PeftlabError] = ConfigError) -> None:
        """Note that ``name`` has the fault ``said``."""
        # what is said of several is a message alone: a kind that is made of one fault's facts is said as its base
        plain = (base for base in kind.__mro__ if base.__init__ is PeftlabError.__init__)  # type: ignore[misc]
        self.kinds.add(next(plain))
        names = self.found.setdefault(said, [])
        if name not in names:
            names.append(name)

    def named(self) -> set[str]:
        """All that have a fault."""
        return {name for names in self.found.values() for name in names}

    def require_none(self) -> None:
        """Refuse all of it if there is a fault.

        Raises:
            PeftlabError: naming every fault, and who has it; of the faults' own kind, if that is one.
        """
        if not self.found:
            return
        kind = self.kinds.pop() if len(self.kinds) == 1 else ConfigError
        lines = [f"{self._who(names)}: {said}" for said, names in self.found.items()]
        bad = len(self.named())
        if bad == 1 and len(lines) == 1:
            raise kind(lines[0])
        least = "at least " if bad >= ENOUGH else ""
        head = f"{least}{bad} of {counted(self.total, self.what)} cannot run, so none is started:"
        raise kind("\n".join([head, *("  " + line.replace("\n", "\n    ") for line in lines)]))

    def _who(self, names: Sequence[str]) -> str:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{self.what}{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}"


def checked_jobs(
    cache: ConfigCache, jobs: Sequence[Job], also: Callable[[Job, RunConfig], object] | None = None
) -> list[RunConfig]:
    """The checked config of each job: a typo in job 30 must not show after a night.

    Args:
        cache: where configs come from.
        jobs: all of them, whose ids are their numbers.
        also: called with each, to refuse more.

    Raises:
        PeftlabError: naming every fault, and the jobs that have it.
    """
    faults, configs = Faults("job", len(jobs)), []
    for job in jobs:
        with faults.noting(job_name(job)):
            config = cache.config(job)
            RunFolder.of(config)  # its files are there
            if also is not None:
                also(job, config)
            configs.append(config)
    faults.require_none()
    return configs


def job_name(job: Job) -> str:
    """How a message names a job of ``-m``: its number, and what it has of its own."""
    return f"{job.id} ({job.title})"


def titles(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Of each job's overrides those that not all have; its number, where there are none."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(o for o in job if o not in common) or f"job {number}" for number, job in enumerate(jobs)]
