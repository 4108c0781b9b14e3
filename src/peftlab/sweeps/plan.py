"""The jobs of a declared sweep: cells that start from others, values that are chosen first, seeds. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.records.folder import RunFolder
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.choice import Choice, State, Tried, best, ended, value_at_chosen_epoch, value_of
from peftlab.sweeps.declaration import Cell, Sweep, assignments
from peftlab.sweeps.jobs import Failure, Job, Outcome

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """A cell with the values that a job of it has beside its overrides."""

    cell: Cell
    seed: int
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """Names the job; trials that draw the same values are one job."""
        return ", ".join([self.cell.id, f"seed {self.seed}", *assignments(dict(self.parameters))])

    @property
    def title(self) -> str:
        """What people call it."""
        return ", ".join([self.cell.title, f"seed {self.seed}", *assignments(dict(self.parameters))])


class DeclaredPlan:
    """Decides which jobs of a declared sweep can start.

    Args:
        sweep: what was declared.
        chosen: setting → option; of the other settings the first option is taken.
        more: overrides for all jobs, from the command line.
        slots: trials of a search that are open at a time; with 1 a search is the same each time.
        reading: nothing will run: a search asks for no new trial, and choices are made among what is finished.

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
    ) -> None:
        self.sweep = sweep
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

    # -- Plan -----------------------------------------------------------------------------------------

    def total(self) -> int:
        """Jobs in all, if every trial of a search is a run of its own."""
        seeds = len(self.sweep.seeds)
        return sum(max(1, self._count(cell)) + seeds - 1 for cell in self.sweep.cells)

    def ready(self, outcome: Outcome) -> Sequence[Job]:
        """Jobs whose start is finished and whose values are known, and which were not handed out before."""
        jobs = []
        for cell in self.sweep.cells:
            if cell.id in self._all_handed_out:
                continue
            for variant in self._known(cell, outcome):
                if variant.id not in self._handed_out and (start := self._start(variant, outcome)) is not None:
                    self._handed_out.add(variant.id)
                    self._variants[variant.id] = variant
                    jobs.append(Job(variant.id, variant.title, self.overrides(variant, start), cell=cell.id))
            shown = [self.variant(cell, seed, outcome) for seed in self.sweep.seeds]
            if all(variant is not None and variant.id in self._handed_out for variant in shown):
                self._all_handed_out.add(cell.id)
        return jobs

    def blocked(self, outcome: Outcome) -> Sequence[Failure]:
        """Jobs of the declared seeds that could not start: what they start from, or every candidate, has failed."""
        failures = []
        for cell in self.sweep.cells:
            for seed in self.sweep.seeds:
                variant = self.variant(cell, seed, outcome)
                if variant is not None and variant.id in self._handed_out:
                    continue
                if variant is None and seed == self.sweep.seeds[0] and self._any_handed_out(cell):
                    continue  # its candidates were the runs of this seed
                variant = variant or Variant(cell, seed)
                job = Job(variant.id, variant.title, self.overrides(variant, None))
                failures.append(Failure(job, f"not run: {self._why_blocked(cell, seed, outcome)}"))
        return failures

    def close(self) -> None:
        """Let go of the searches, so that another launcher can go on with them."""
        for search in self._searches.values():
            search.close()

    def stop_early(self, job_id: str, folder: Path) -> str | None:
        """Why the running job should end now; None if it should go on. Reads the epochs that it has written."""
        variant = self._variants.get(job_id)
        search = None if variant is None else self._searches.get(variant.cell.id)
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
        return (*self._overrides[variant.cell.id], *parameters, f"seed={variant.seed}", *more)

    def variant(self, cell: Cell, seed: int, outcome: Outcome) -> Variant | None:
        """The job of ``cell`` and ``seed`` that the table shows; None while its values are not chosen."""
        choice = self.choice(cell, outcome)
        if choice is None:
            return Variant(cell, seed)
        return None if choice.chosen is None else Variant(cell, seed, tuple(choice.chosen.parameters.items()))

    def choice(self, cell: Cell, outcome: Outcome) -> Choice | None:
        """What was tried for ``cell``; None if nothing is to be chosen."""
        if cell.optuna() is not None:
            opened = self._searches.get(cell.id)
            tried = opened.tried(outcome) if opened else [Tried({})]
            by = self._metric(cell)
        elif cell.tune:
            by = self._tuned_by(cell)
            tried = [self._tried(cell, parameters, outcome) for parameters in cell.candidates()]
        else:
            return None
        settled = self.reading or all(one.state != "open" for one in tried)
        return Choice(by, tried, best(tried, by) if settled else None)

    def records(self, outcome: Outcome) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Cell and seed → record, of the runs that the table shows."""
        found: dict[tuple[str, int], Mapping[str, Any]] = {}
        for cell in self.sweep.cells:
            for seed in self.sweep.seeds:
                variant = self.variant(cell, seed, outcome)
                if variant is not None and variant.id in outcome.records:
                    found[cell.id, seed] = outcome.records[variant.id]
        return found

    def choices(self, outcome: Outcome) -> dict[str, Choice]:
        """Cell → what was tried for it, of the cells whose values are chosen."""
        every = {cell.id: self.choice(cell, outcome) for cell in self.sweep.cells}
        return {cell_id: choice for cell_id, choice in every.items() if choice is not None}

    def corners(self) -> list[Variant]:
        """What is checked before anything runs: each cell with each candidate, or with the ends of its search."""
        found = []
        for cell in self.sweep.cells:
            search = cell.optuna()
            candidates = [tuple(parameters.items()) for parameters in cell.candidates()] or [()]
            if search is not None:
                lowest = {key: limits.corners()[0] for key, limits in search.space.items()}
                varied = [lowest | {key: v} for key, limits in search.space.items() for v in limits.corners()]
                highest = {key: limits.corners()[-1] for key, limits in search.space.items()}
                every = {tuple(assignments(one)): tuple(one.items()) for one in [lowest, *varied, highest]}
                candidates = list(every.values())
            found += [Variant(cell, self.sweep.seeds[0], parameters) for parameters in candidates]
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
        given = variant.cell.start if start is None else start
        try:
            return self.cache.config(Job(variant.id, variant.title, self.overrides(variant, given)))
        except PeftlabError as error:
            raise type(error)(f"cell '{variant.cell.id}': {error}") from error

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

    def _known(self, cell: Cell, outcome: Outcome) -> list[Variant]:
        """The jobs of ``cell`` whose values are known."""
        first, *others = self.sweep.seeds
        candidates: list[Parameters]
        if (search := cell.optuna()) is not None:
            if (start := self._start(Variant(cell, first), outcome)) is None:
                return []
            if cell.id not in self._searches:
                from peftlab.sweeps.search import OptunaSearch  # only where a search is declared

                lowest = {key: limits.corners()[0] for key, limits in search.space.items()}
                config = self.composed(Variant(cell, first, tuple(lowest.items())), Path(start) if start else None)
                self._searches[cell.id] = OptunaSearch(
                    cell.id, search, config, self.folder / ".optuna",
                    look=lambda parameters, now: self._tried(cell, parameters, now),
                    slots=self._slots, reading=self.reading,
                )  # fmt: skip
            candidates = self._searches[cell.id].candidates(outcome)
        elif cell.tune:
            candidates = list(cell.candidates())
        else:
            return [Variant(cell, seed) for seed in self.sweep.seeds]
        known = [Variant(cell, first, tuple(parameters.items())) for parameters in candidates]
        choice = self.choice(cell, outcome)
        if choice is not None and choice.chosen is not None:
            parameters = tuple(choice.chosen.parameters.items())
            known += [Variant(cell, seed, parameters) for seed in others]
        return known

    def _start(self, variant: Variant, outcome: Outcome) -> Path | str | None:
        """The folder to start from; an empty text without one; None while it is not there."""
        if variant.cell.start is None:
            return ""
        earlier = self.variant(self.sweep.cell(variant.cell.start), variant.seed, outcome)
        return None if earlier is None else outcome.folders.get(earlier.id)

    def _tried(self, cell: Cell, parameters: Parameters, outcome: Outcome) -> Tried:
        """What became of ``parameters`` with the first seed."""
        job_id = Variant(cell, self.sweep.seeds[0], tuple(parameters.items())).id
        if (record := outcome.records.get(job_id)) is not None:
            search = cell.optuna()
            value = (
                value_at_chosen_epoch(record, self._metric(cell)) if search else value_of(record, self._tuned_by(cell))
            )
            return ended(parameters, record, value)
        state: State
        if (reason := getattr(outcome, "pruned", {}).get(job_id)) is not None:
            state = "pruned"
        elif (failure := outcome.failures.get(job_id)) is not None:
            state, reason = "failed", failure.reason
        else:
            state, reason = "open", ""
        return Tried(parameters, state, reason=reason)

    def _metric(self, cell: Cell) -> str:
        """The column of the history that the trials of a search are compared by."""
        search = cell.optuna()
        assert search is not None
        return search.metric or f"validation/{self._selects(cell)}"

    def _tuned_by(self, cell: Cell) -> str:
        """Where the value stands in a record that the candidates of a cell are compared by."""
        return self.sweep.tune_by or f"metrics.validation.{self._selects(cell)}"

    def _selects(self, cell: Cell) -> str:
        """The figure that selects for the objective of the cell's runs."""
        if cell.id not in self._selecting:
            search, first = cell.optuna(), next(iter(cell.candidates()), {})
            values = {key: limits.corners()[0] for key, limits in search.space.items()} if search else first
            config = self.composed(Variant(cell, self.sweep.seeds[0], tuple(values.items())))
            self._selecting[cell.id] = config.data.what_is_learned().selects
        return self._selecting[cell.id]

    def _count(self, cell: Cell) -> int:
        search = cell.optuna()
        return search.trials if search is not None else len(cell.candidates())

    def _any_handed_out(self, cell: Cell) -> bool:
        return any(variant.cell.id == cell.id for variant in self._variants.values())

    def _why_blocked(self, cell: Cell, seed: int, outcome: Outcome) -> str:
        if cell.start is not None:
            start = self.sweep.cell(cell.start)
            earlier = self.variant(start, seed, outcome)
            if earlier is None or earlier.id not in outcome.folders:
                return f"'{cell.start}' has failed"
        choice = self.choice(cell, outcome)
        if choice is not None and choice.settled:
            return "every value that was tried has failed or diverged"
        return "stopped before"


def _check_chosen_keys(sweep: Sweep, more: Sequence[str]) -> None:
    """Raise ConfigError if the command line fixes what is to be chosen, or forces runs that a search remembers."""
    given = {entry.partition("=")[0].lstrip("+~"): entry for entry in more}
    for cell in sweep.cells:
        search = cell.optuna()
        for key in [*(cell.tune or {}), *(search.space if search else {})]:
            if key in given:
                raise ConfigError(f"{given[key]}: cell '{cell.id}' chooses {key} on validation; it cannot be set too.")
        if search and given.get("force") == "force=true":
            raise ConfigError(f"force=true: cell '{cell.id}' is a search, which remembers its trials.")


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
    for cell in sweep.cells:
        overrides: list[str] = []
        for entry in [*sweep.overrides, *cell.overrides]:
            if not entry.startswith("$"):
                overrides.append(entry)
            elif entry[1:] in words:
                overrides += words[entry[1:]]
            else:
                raise ConfigError(f"cell '{cell.id}': nothing says what '{entry}' stands for. Known: {listed(words)}.")
        found[cell.id] = (*overrides, f"name={sweep.name}", *more)
    return found
