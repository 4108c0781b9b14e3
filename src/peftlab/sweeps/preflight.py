"""Composing and checking every job of a declared sweep before any of them runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.records.folder import RunFolder
from peftlab.sweeps.choice import value_of
from peftlab.sweeps.faults import Faults
from peftlab.sweeps.finished import take
from peftlab.sweeps.jobs import Job, Outcome
from peftlab.sweeps.plan import DeclaredPlan, Variant
from peftlab.sweeps.readable import require_readable
from peftlab.sweeps.record_paths import check_record_path
from peftlab.sweeps.soundness import Soundness


@dataclass(frozen=True)
class Checked:
    """One combination of a cell and values that composes and fits the schema."""

    variant: Variant
    config: RunConfig
    folder: RunFolder | None
    """None while the run that it starts from is not there: its content is part of the key."""

    @property
    def same_as(self) -> str:
        """Equal for what is the same run: the folder, or, without one, all that composes it."""
        return str(self.folder.path) if self.folder else str(self.config.plain())


def check_all(plan: DeclaredPlan) -> list[Checked]:
    """Compose and check every cell with the first seed, each candidate, and the ends of each search.

    Raises:
        PeftlabError: naming every cell that does not compose, and why.
    """
    known = plan.sweep.columns
    for path in dict.fromkeys(
        [*(column.value for column in known), *([plan.sweep.tune_by] if plan.sweep.tune_by else [])]
    ):
        check_record_path(path)
    if any(arm.search for arm in plan.sweep.cells):
        from peftlab.sweeps.search import require_optuna

        require_optuna(next(arm.id for arm in plan.sweep.cells if arm.search))
    found, faults = [], Faults("cell", len(plan.sweep.cells))
    for variant in plan.corners():
        with faults.noting(f"'{variant.arm.id}'"):
            config = plan.config(variant)
            folder = None if variant.arm.start else RunFolder.of(config)
            found.append(Checked(variant, config, folder))
    faults.require_none()
    plan.cache.save()
    return found


def require_sound(plan: DeclaredPlan, found: Sequence[Checked]) -> None:
    """Read the data of each cell that has no run yet, and try the cell on the shapes of its model.

    Raises:
        PeftlabError: naming every cell that cannot be built, or whose data cannot be used, and why.
    """
    Soundness().require(_without_run(plan, found), "cell")


def require_data(plan: DeclaredPlan, found: Sequence[Checked]) -> list[str]:
    """Read the data of each cell that has no run yet: a line for each different data.

    Raises:
        PeftlabError: naming every cell whose data cannot be used, and why.
    """
    return require_readable(_without_run(plan, found), "cell")


def _without_run(plan: DeclaredPlan, found: Sequence[Checked]) -> list[tuple[str, RunConfig]]:
    outcome = Outcome()
    for one in found:  # what starts from another run has a folder once that run is there
        job = Job(one.variant.id, one.variant.title, (), arm=one.variant.arm.id)
        with suppress(PeftlabError):
            folder = one.folder
            if folder is None and (key := plan.key(one.variant, outcome)) is not None:
                folder = RunFolder(plan.folder / key)
            if folder is not None:
                take(outcome, job, folder, folder.read_record(), before=True)
    return [(f"'{one.variant.arm.id}'", one.config) for one in found if one.variant.id not in outcome.skipped]


def check_records(plan: DeclaredPlan, outcome: Outcome) -> None:
    """Look up every column in the records that there are.

    Raises:
        ConfigError: for a column that records do not have.
    """
    for record in outcome.records.values():
        for column in plan.sweep.columns:
            value_of(record, column.value)


def duplicates(found: Sequence[Checked]) -> list[list[Variant]]:
    """Cells and candidates that are the same run."""
    alike: dict[str, list[Variant]] = {}
    for one in found:
        alike.setdefault(one.same_as, []).append(one.variant)
    return [variants for variants in alike.values() if len(variants) > 1]


@dataclass(frozen=True)
class Line:
    """One job, as a list shows it."""

    variant: Variant
    state: Literal["finished", "to run"]
    overrides: tuple[str, ...]
    start: str
    """What else is said of where it begins."""

    def text(self, shared: Collection[str] = ()) -> str:
        """Its title, and its overrides but for those that all jobs share."""
        own = " ".join(word for word in self.overrides if word not in shared)
        return f"{self.variant.title}{f': {own}' if own else ''}{self.start}"


def shared_overrides(jobs: Sequence[Line]) -> list[str]:
    """What all of several jobs have, in its order."""
    if len(jobs) < 2:
        return []
    return [word for word in jobs[0].overrides if all(word in job.overrides for job in jobs)]


def lines(plan: DeclaredPlan, outcome: Outcome) -> list[Line]:
    """Every job, those of seeds that wait for a choice included."""
    found = []
    first = plan.sweep.seeds[0]
    for arm in plan.sweep.cells:
        choice = plan.choice(arm, outcome)
        variants = [Variant(arm, first, tuple(one.parameters.items())) for one in choice.tried] if choice else []
        seeds = [seed for seed in plan.sweep.seeds if choice is None or seed != first]
        variants += [plan.variant(arm, seed, outcome) or Variant(arm, seed) for seed in seeds]
        for variant in variants:
            later = "  with what is chosen" if choice and not variant.parameters else ""
            start = f"  from the run of {arm.start}" if arm.start else ""
            ended = variant.id in outcome.records or variant.id in outcome.diverged
            overrides = tuple(plan.overrides(variant, None))
            found.append(Line(variant, "finished" if ended else "to run", overrides, f"{later}{start}"))
    return found
