"""The jobs of a declared sweep: cells that start from others, values that are chosen first, seeds. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.metric_names import MetricName
from peftlab.records.folder import RunFolder
from peftlab.report.columns import Column, column_of
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.choice import Choice, State, Tried, best, ended, value_of, value_of_kept
from peftlab.sweeps.declaration import Arm, Sweep, assignments
from peftlab.sweeps.jobs import Failure, Job, Outcome

Parameters = Mapping[str, Any]
USUAL = ("parameters.trainable", "timing.train_seconds")
"""Columns beside the metric, where a file declares none."""


@dataclass(frozen=True)
class Variant:
    """A cell with the values that a job of it has beside its overrides."""

    arm: Arm
    seed: int
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """Names the job; trials that draw the same values are one job."""
        return ", ".join([self.arm.id, f"seed {self.seed}", *assignments(dict(self.parameters))])

    @property
    def title(self) -> str:
        """What people call it."""
        return ", ".join([self.arm.title, f"seed {self.seed}", *assignments(dict(self.parameters))])


class DeclaredPlan:
    """Decides which jobs of a declared sweep can start.

    Args:
        sweep: what was declared.
        chosen: setting → option; of the other settings the first option is taken.
        more: overrides for all jobs, from the command line.
        slots: trials of a search that are open at a time; with 1 a search is the same each time.
        reading: nothing will run: a search asks for no new trial, and choices are made among what is finished.
        config_dir: a further folder of configs, absolute.

    Raises:
        ConfigError: for an unknown setting or option, or a ``$word`` that no setting explains.
    """

    def __init__(
        self,
        sweep: Sweep,
        chosen: Mapping[str, str] | None = None,
        more: Sequence[str] = (),
        *,
        slots: int = 1,
        reading: bool = False,
        config_dir: str | None = None,
    ) -> None:
        self.sweep = sweep
        self._config_dir = config_dir
        self.settings = dict(chosen or {})
        self.reading = reading
        self.cache = ConfigCache()
        self._slots = slots
        self._overrides = _overrides_of_cells(sweep, self.settings, more)
        _check_chosen_keys(sweep, more)
        self._searches: dict[str, Any] = {}
        self._selecting: dict[str, str] = {}
        self._variants: dict[str, Variant] = {}
        self._handed_out: set[str] = set()
        self._all_handed_out: set[str] = set()  # cells: with 1,000 jobs, looking at each after each takes seconds
        if not sweep.columns:
            self.sweep = replace(sweep, columns=self._usual_columns())

    # -- Plan -----------------------------------------------------------------------------------------

    def total(self) -> int:
        """Jobs in all, if every trial of a search is a run of its own."""
        seeds = len(self.sweep.seeds)
        return sum(max(1, self._count(arm)) + seeds - 1 for arm in self.sweep.cells)

    def ready(self, outcome: Outcome) -> Sequence[Job]:
        """Jobs whose start is finished and whose values are known, and which were not handed out before."""
        jobs = []
        for arm in self.sweep.cells:
            if arm.id in self._all_handed_out:
                continue
            for variant in self._known(arm, outcome):
                if variant.id not in self._handed_out and (start := self._start(variant, outcome)) is not None:
                    self._handed_out.add(variant.id)
                    self._variants[variant.id] = variant
                    jobs.append(self._job(variant, start, arm.id))
            shown = [self.variant(arm, seed, outcome) for seed in self.sweep.seeds]
            if all(variant is not None and variant.id in self._handed_out for variant in shown):
                self._all_handed_out.add(arm.id)
        return jobs

    def blocked(self, outcome: Outcome) -> Sequence[Failure]:
        """Jobs of the declared seeds that could not start: what they start from, or every candidate, has failed."""
        failures = []
        for arm in self.sweep.cells:
            for seed in self.sweep.seeds:
                variant = self.variant(arm, seed, outcome)
                if variant is not None and variant.id in self._handed_out:
                    continue
                if variant is None and seed == self.sweep.seeds[0] and self._any_handed_out(arm):
                    continue  # its candidates were the runs of this seed
                variant = variant or Variant(arm, seed)
                job = self._job(variant, None)
                failures.append(Failure(job, f"not run: {self._why_blocked(arm, seed, outcome)}"))
        return failures

    def close(self) -> None:
        """Let go of the searches, so that another launcher can go on with them."""
        for search in self._searches.values():
            search.close()

    def stop_early(self, job_id: str, folder: Path) -> str | None:
        """Why the running job should end now; None if it should go on. Reads the epochs that it has written."""
        variant = self._variants.get(job_id)
        search = None if variant is None else self._searches.get(variant.arm.id)
        if variant is None or search is None or variant.seed != self.sweep.seeds[0]:
            return None
        reason: str | None = search.stop_early(dict(variant.parameters), folder)
        return reason

    # -- cells ----------------------------------------------------------------------------------------

    def overrides(self, variant: Variant, start: Path | str | None) -> tuple[str, ...]:
        """All overrides of a job.

        Args:
            variant: which job.
            start: the folder that it starts from, if its cell has one.
        """
        more = [] if start is None or start == "" else [f"backbone.from_run={start}"]
        parameters = assignments(dict(variant.parameters))
        return (*self._overrides[variant.arm.id], *parameters, f"seed={variant.seed}", *more)

    def _job(self, variant: Variant, start: Path | str | None, arm: str = "") -> Job:
        return Job(variant.id, variant.title, self.overrides(variant, start), self._config_dir, arm=arm)

    def variant(self, arm: Arm, seed: int, outcome: Outcome) -> Variant | None:
        """The job of ``arm`` and ``seed`` that the table shows; None while its values are not chosen."""
        choice = self.choice(arm, outcome)
        if choice is None:
            return Variant(arm, seed)
        return None if choice.chosen is None else Variant(arm, seed, tuple(choice.chosen.parameters.items()))

    def choice(self, arm: Arm, outcome: Outcome) -> Choice | None:
        """What was tried for ``arm``; None if nothing is to be chosen."""
        if arm.optuna() is not None:
            opened = self._searches.get(arm.id)
            tried = opened.tried(outcome) if opened else [Tried({})]
            by = self._metric(arm)
        elif arm.tune:
            by = self._tuned_by(arm)
            tried = [self._tried(arm, parameters, outcome) for parameters in arm.candidates()]
        else:
            return None
        settled = self.reading or all(one.state != "open" for one in tried)
        return Choice(by, tried, best(tried, by) if settled else None)

    def records(self, outcome: Outcome) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Cell and seed → record, of the runs that the table shows."""
        found: dict[tuple[str, int], Mapping[str, Any]] = {}
        for arm in self.sweep.cells:
            for seed in self.sweep.seeds:
                variant = self.variant(arm, seed, outcome)
                if variant is not None and variant.id in outcome.records:
                    found[arm.id, seed] = outcome.records[variant.id]
        return found

    def diverged(self, outcome: Outcome) -> dict[tuple[str, int], str]:
        """Cell and seed → where the training diverged, of the runs that the table would show."""
        every = {
            (cell.id, seed): self.variant(cell, seed, outcome) for cell in self.sweep.cells for seed in self.sweep.seeds
        }
        return {
            at: outcome.diverged[one.id] for at, one in every.items() if one is not None and one.id in outcome.diverged
        }

    def choices(self, outcome: Outcome) -> dict[str, Choice]:
        """Cell → what was tried for it, of the cells whose values are chosen."""
        every = {arm.id: self.choice(arm, outcome) for arm in self.sweep.cells}
        return {arm_id: choice for arm_id, choice in every.items() if choice is not None}

    def corners(self) -> list[Variant]:
        """What is checked before anything runs: each cell with each candidate, or with the ends of its search."""
        found = []
        for arm in self.sweep.cells:
            search = arm.optuna()
            candidates = [tuple(parameters.items()) for parameters in arm.candidates()] or [()]
            if search is not None:
                lowest = {key: limits.corners()[0] for key, limits in search.space.items()}
                varied = [lowest | {key: v} for key, limits in search.space.items() for v in limits.corners()]
                highest = {key: limits.corners()[-1] for key, limits in search.space.items()}
                every = {tuple(assignments(one)): tuple(one.items()) for one in [lowest, *varied, highest]}
                candidates = list(every.values())
            found += [Variant(arm, self.sweep.seeds[0], parameters) for parameters in candidates]
        return found

    @cached_property
    def folder(self) -> Path:
        """``<output_dir>/<name>``, where the runs and the table lie."""
        config = self.composed(self.corners()[0])
        return Path(config.output_dir) / config.name

    def composed(self, variant: Variant, start: Path | None = None) -> RunConfig:
        """The checked config of a job; the folder to start from need not be there yet.

        Raises:
            PeftlabError: naming the cell.
        """
        try:
            return self.config(variant, start)
        except PeftlabError as error:
            raise type(error)(f"cell '{variant.arm.id}': {error}") from error

    def config(self, variant: Variant, start: Path | None = None) -> RunConfig:
        """As :meth:`composed`, with errors that do not name the cell."""
        given = variant.arm.start if start is None else start
        return self.cache.config(self._job(variant, given))

    def key(self, variant: Variant, outcome: Outcome) -> str | None:
        """Key of a job's run; None while it starts from a run that is not there, or if it does not compose."""
        start = self._start(variant, outcome)
        if start is None:
            return None
        try:
            return RunFolder.of(self.composed(variant, Path(start) if start else None)).key
        except PeftlabError:
            return None

    # -- in between -----------------------------------------------------------------------------------

    def _known(self, arm: Arm, outcome: Outcome) -> list[Variant]:
        """The jobs of ``arm`` whose values are known."""
        first, *others = self.sweep.seeds
        candidates: list[Parameters]
        if (search := arm.optuna()) is not None:
            if (start := self._start(Variant(arm, first), outcome)) is None:
                return []
            if arm.id not in self._searches:
                from peftlab.sweeps.search import OptunaSearch  # only where a search is declared

                lowest = {key: limits.corners()[0] for key, limits in search.space.items()}
                config = self.composed(Variant(arm, first, tuple(lowest.items())), Path(start) if start else None)
                self._searches[arm.id] = OptunaSearch(
                    arm.id, search, config, self.folder / ".optuna",
                    look=lambda parameters, now: self._tried(arm, parameters, now),
                    slots=self._slots, reading=self.reading,
                )  # fmt: skip
            candidates = self._searches[arm.id].candidates(outcome)
        elif arm.tune:
            candidates = list(arm.candidates())
        else:
            return [Variant(arm, seed) for seed in self.sweep.seeds]
        known = [Variant(arm, first, tuple(parameters.items())) for parameters in candidates]
        choice = self.choice(arm, outcome)
        if choice is not None and choice.chosen is not None:
            parameters = tuple(choice.chosen.parameters.items())
            known += [Variant(arm, seed, parameters) for seed in others]
        return known

    def _start(self, variant: Variant, outcome: Outcome) -> Path | str | None:
        """The folder to start from; an empty text without one; None while it is not there."""
        if variant.arm.start is None:
            return ""
        earlier = self.variant(self.sweep.arm(variant.arm.start), variant.seed, outcome)
        return None if earlier is None else outcome.folders.get(earlier.id)

    def _tried(self, arm: Arm, parameters: Parameters, outcome: Outcome) -> Tried:
        """What became of ``parameters`` with the first seed."""
        job_id = Variant(arm, self.sweep.seeds[0], tuple(parameters.items())).id
        if (record := outcome.records.get(job_id)) is not None:
            search = arm.optuna()
            value = value_of_kept(record, self._metric(arm)) if search else value_of(record, self._tuned_by(arm))
            return ended(parameters, record, value)
        state: State
        if (reason := getattr(outcome, "pruned", {}).get(job_id)) is not None:
            state = "pruned"
        elif (reason := outcome.diverged.get(job_id)) is not None:
            state = "diverged"
        elif (failure := outcome.failures.get(job_id)) is not None:
            state, reason = "failed", failure.reason
        else:
            state, reason = "open", ""
        return Tried(parameters, state, reason=reason)

    def _metric(self, arm: Arm) -> str:
        """The column of the history that the trials of a search are compared by."""
        search = arm.optuna()
        assert search is not None
        return search.metric or MetricName("validation", self._selects(arm)).in_history

    def _tuned_by(self, arm: Arm) -> str:
        """Where the value stands in a record that the candidates of a cell are compared by."""
        return self.sweep.tune_by or MetricName("validation", self._selects(arm)).in_record

    def _selects(self, arm: Arm) -> str:
        """The figure that selects for the objective of the cell's runs."""
        if arm.id not in self._selecting:
            search, first = arm.optuna(), next(iter(arm.candidates()), {})
            values = {key: limits.corners()[0] for key, limits in search.space.items()} if search else first
            config = self.composed(Variant(arm, self.sweep.seeds[0], tuple(values.items())))
            self._selecting[arm.id] = config.data.what_is_learned().selects
        return self._selecting[arm.id]

    def _usual_columns(self) -> list[Column]:
        """Of a sweep that declares none: the metric, or what selects for its runs; what they train, and how long."""
        metric = self.sweep.metric
        if not metric:
            arms = [arm for arm in self.sweep.cells if arm.row] or self.sweep.cells
            with suppress(PeftlabError):  # said of the cell, with all other mistakes, before anything runs
                metric = MetricName("test", self._selects(arms[0])).in_record
        wanted = dict.fromkeys([metric or MetricName("test", "loss").in_record, *USUAL])
        return [column_of(path) for path in wanted]

    def _count(self, arm: Arm) -> int:
        search = arm.optuna()
        return search.trials if search is not None else len(arm.candidates())

    def _any_handed_out(self, arm: Arm) -> bool:
        return any(variant.arm.id == arm.id for variant in self._variants.values())

    def _why_blocked(self, arm: Arm, seed: int, outcome: Outcome) -> str:
        if arm.start is not None:
            start = self.sweep.arm(arm.start)
            earlier = self.variant(start, seed, outcome)
            if earlier is not None and earlier.id in outcome.diverged:
                return f"'{arm.start}' has diverged"
            if earlier is None or earlier.id not in outcome.folders:
                return f"'{arm.start}' has failed"
        choice = self.choice(arm, outcome)
        if choice is not None and choice.settled:
            return "every value that was tried has failed or diverged"
        return "stopped before"


def _check_chosen_keys(sweep: Sweep, more: Sequence[str]) -> None:
    """Raise ConfigError if the command line fixes what is to be chosen, or forces runs that a search remembers."""
    given = {entry.partition("=")[0].lstrip("+~"): entry for entry in more}
    for arm in sweep.cells:
        search = arm.optuna()
        for key in [*(arm.tune or {}), *(search.space if search else {})]:
            if key in given:
                raise ConfigError(f"{given[key]}: cell '{arm.id}' chooses {key} on validation; it cannot be set too.")
        if search and given.get("force") == "force=true":
            raise ConfigError(f"force=true: cell '{arm.id}' is a search, which remembers its trials.")


def _overrides_of_cells(sweep: Sweep, settings: Mapping[str, str], more: Sequence[str]) -> dict[str, tuple[str, ...]]:
    words: dict[str, list[str]] = {}
    for unknown in (setting for setting in settings if setting not in sweep.settings):
        raise ConfigError(f"there is no setting '{unknown}'. The settings are: {listed(sweep.settings)}.")
    for setting, options in sweep.settings.items():
        option = settings.get(setting, next(iter(options)))
        if option not in options:
            raise ConfigError(
                f"{setting}={option}: unknown option.{nearest(option, options)} The options are: {listed(options)}."
            )
        words |= options[option]
    found: dict[str, tuple[str, ...]] = {}
    for arm in sweep.cells:
        overrides: list[str] = []
        for entry in [*sweep.overrides, *arm.overrides]:
            if not entry.startswith("$"):
                overrides.append(entry)
            elif entry[1:] in words:
                overrides += words[entry[1:]]
            else:
                raise ConfigError(f"cell '{arm.id}': nothing says what '{entry}' stands for. Known: {listed(words)}.")
        found[arm.id] = (*overrides, f"name={sweep.name}", *more)
    return found
