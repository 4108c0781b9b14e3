"""A search with Optuna behind a cell of a declared sweep. Imports no torch.

The study lies in ``<output_dir>/<name>/.optuna/`` as a journal: one line of JSON a change, so that a killed search is
whole up to its last line. A trial is a run with a key of its own. A trial whose launcher died is still open in the
journal; the next launcher hands out the same values, and the run resumes or is found finished. So does a trial whose
run has failed: the same command tries it again, like any job.

Each trial's sampler is seeded by (seed, number of the trial) and by nothing that was drawn before: a search that was
killed draws what an undisturbed one draws.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, RunError, first_line, nearest
from peftlab.files import open_lock, take_lock
from peftlab.metric_names import TRAIN_LOSS, MetricName
from peftlab.reading import read_bytes
from peftlab.records import identity_tags
from peftlab.records.identity import run_key
from peftlab.seeding import derive_seed
from peftlab.sweeps.choice import Tried
from peftlab.sweeps.declaration import Range, Search, lower_is_better, override_value
from peftlab.sweeps.jobs import Outcome
from peftlab.training.places import ends_epoch

if TYPE_CHECKING:
    import optuna

Look = Callable[[Mapping[str, Any], Outcome], Tried]

REDUCTION = 2
"""Successive halving: of those that reach epoch 1, 2, 4, 8, … the better half goes on. Runs here have few epochs."""


class OptunaSearch:
    """The trials of one cell.

    Args:
        arm_id: the cell.
        search: what was declared.
        config: the cell's run with the first seed and the lowest values: what the study is about.
        folder: where the journal lies.
        look: what became of a combination of values.
        slots: trials that are open at a time.
        reading: ask for no new trial, write nothing.

    Raises:
        ConfigError: if Optuna is not installed.
        RunError: if another launcher holds the study, or its journal is damaged.
    """

    def __init__(
        self,
        arm_id: str,
        search: Search,
        config: RunConfig,
        folder: Path,
        *,
        look: Look,
        slots: int,
        reading: bool,
    ) -> None:
        objective = config.data.what_is_learned()
        self.metric = search.metric or MetricName("validation", objective.selects).in_history
        """What its trials are compared by."""
        known = MetricName.from_history(self.metric)
        if (name := known.figure if known else self.metric) not in objective.every_epoch():
            raise ConfigError(
                f"cell '{arm_id}': metric '{self.metric}' is none of {objective.about}. It has: "
                f"{', '.join(objective.every_epoch())}.{nearest(name, objective.every_epoch())}"
            )
        search = replace(search, metric=self.metric)
        self._search, self._look, self._slots, self._reading = search, look, slots, reading
        self._max_epochs = config.trainer.max_epochs
        self._optuna = require_optuna(arm_id)
        self._choices = {
            key: {override_value(value): value for value in limits.choices} for key, limits in search.space.items()
        }
        self._lock: IO[str] | None = None
        self._study: optuna.Study | None = None
        self.journal = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', arm_id)}-{_identity(search, config)}.journal"
        if reading and not self.journal.exists():
            return
        if not reading:
            self._hold()
        try:
            self._study = self._open()
        except RunError:
            self.close()
            raise

    def candidates(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Values to run, those that ran before included; asks for new ones while there is room."""
        if self._study is None:
            return []
        if not self._reading:
            self._tell(outcome)
            while len(self._running(outcome)) < self._slots and len(self._trials()) < self._search.trials:
                self._ask()
                self._tell(outcome)  # values that were drawn before have their result already
        dropped = (self._optuna.trial.TrialState.PRUNED, self._optuna.trial.TrialState.FAIL)
        return [self._parameters(trial) for trial in self._trials() if trial.state not in dropped]

    def tried(self, outcome: Outcome) -> list[Tried]:
        """What was drawn, in the order of the trials; open ones without values stand for trials to come."""
        states = self._optuna.trial.TrialState
        found: dict[str, Tried] = {}
        for trial in self._trials():
            parameters = self._parameters(trial)
            one = self._look(parameters, outcome)
            reason = str(trial.user_attrs.get("reason", ""))
            if trial.state == states.PRUNED:
                one = Tried(parameters, "pruned", reason=reason or one.reason)
            elif trial.state == states.FAIL:
                one = Tried(parameters, "diverged", one.record, reason=reason)
            found.setdefault(one.name, one)
        missing = self._search.trials - len(self._trials())
        return [*found.values(), *(Tried({}) for _ in range(max(0, missing)))]

    def stop_early(self, parameters: Mapping[str, Any], folder: Path) -> str | None:
        """Report the epochs that the run in ``folder`` has written; why it should end now, or None.

        Trials may validate at other steps, but all do at their epochs' ends: these are compared. The last epoch is
        never a reason: all of it has been paid for.
        """
        if self._search.pruner == "none" or self._reading:
            return None
        last = int(parameters.get("trainer.max_epochs", self._max_epochs))
        found = _rows(folder / "metrics.csv")
        rows = [row for row in found if ends_epoch(row) and int(row["epoch"]) + 1 < last]
        for trial in self._trials():
            if trial.state == self._optuna.trial.TrialState.RUNNING and self._parameters(trial) == dict(parameters):
                return self._prune(trial, rows)
        return None

    def close(self) -> None:
        """Let go of the study."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- the study ------------------------------------------------------------------------------------

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return [] if self._study is None else self._study.get_trials(deepcopy=False)

    def _running(self, outcome: Outcome) -> list[optuna.trial.FrozenTrial]:
        """Trials without a result, those whose run has failed this time left out."""
        running = self._optuna.trial.TrialState.RUNNING
        return [
            trial
            for trial in self._trials()
            if trial.state == running and self._look(self._parameters(trial), outcome).state == "open"
        ]

    def _ask(self) -> None:
        """Draw the next trial's values."""
        assert self._study is not None
        number = len(self._trials())
        seed = derive_seed(self._search.seed, "trial", number) % 2**32
        samplers = self._optuna.samplers
        random = self._search.sampler == "random"
        self._study.sampler = samplers.RandomSampler(seed) if random else samplers.TPESampler(seed=seed)
        self._study.ask({key: self._distribution(key, limits) for key, limits in self._search.space.items()})

    def _tell(self, outcome: Outcome) -> None:
        """Tell the study of trials that have ended.

        A finished run is judged by its epochs as if it had been watched: what is pruned does not depend on the moment
        at which somebody looked.
        """
        assert self._study is not None
        for trial in self._trials():
            if trial.state != self._optuna.trial.TrialState.RUNNING:
                continue
            one = self._look(self._parameters(trial), outcome)
            if one.state == "diverged":
                self._end(trial, self._optuna.trial.TrialState.FAIL, one.reason)
            elif one.state == "pruned":
                self._end(trial, self._optuna.trial.TrialState.PRUNED, one.reason)
            elif one.value is not None and one.record is not None:
                watched = self._search.pruner != "none"
                ends = [row for row in one.record["history"] if ends_epoch(row)]
                if not watched or self._prune(trial, ends[:-1]) is None:
                    self._study.tell(trial.number, one.value)

    def _prune(self, trial: optuna.trial.FrozenTrial, rows: Iterable[Mapping[str, Any]]) -> str | None:
        """Report ``rows`` that are new, in their order; end the trial at the first that the pruner will not have."""
        assert self._study is not None
        live = self._optuna.trial.Trial(self._study, trial._trial_id)
        for row in rows:
            epoch, given = int(row["epoch"]) + 1, row[self.metric]
            if epoch in trial.intermediate_values or given in (None, ""):  # undefined there
                continue
            value = float(given)
            if not (isfinite(value) and isfinite(float(row[TRAIN_LOSS.in_history] or "nan"))):
                reason = f"diverged in epoch {epoch}"
            else:
                live.report(value, epoch)
                if not live.should_prune():
                    continue
                reason = f"stopped after epoch {epoch}: {self.metric} {value:.4f}"
            self._end(trial, self._optuna.trial.TrialState.PRUNED, reason)
            return reason
        return None

    def _end(self, trial: optuna.trial.FrozenTrial, state: optuna.trial.TrialState, reason: str) -> None:
        assert self._study is not None
        self._optuna.trial.Trial(self._study, trial._trial_id).set_user_attr("reason", reason)
        self._study.tell(trial.number, state=state)

    def _parameters(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """Values in the order of the declaration."""
        return {
            key: self._choices[key].get(trial.params[key], trial.params[key]) if limits.choices else trial.params[key]
            for key, limits in self._search.space.items()
            if key in trial.params
        }

    def _distribution(self, key: str, limits: Range) -> optuna.distributions.BaseDistribution:
        from optuna import distributions as kinds

        if limits.choices:
            return kinds.CategoricalDistribution(list(self._choices[key]))
        low, high = limits.low or 0.0, limits.high or 0.0
        if limits.whole:
            return kinds.IntDistribution(int(low), int(high), log=limits.log, step=int(limits.step or 1))
        return kinds.FloatDistribution(low, high, log=limits.log, step=limits.step)

    # -- its file -------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Take the study for this process; the operating system lets go of it when the process dies."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open_lock(self.journal.with_suffix(".lock"))
        if not take_lock(self._lock):
            self.close()
            raise RunError(f"{self.journal} is in use by another search. Wait for it, or stop it.")
        if self.journal.exists():  # killed while it wrote: the last line ends nowhere
            content = self.journal.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with self.journal.open("r+b") as file:
                    file.truncate(len(whole))

    def _open(self) -> optuna.Study:
        import optuna
        from optuna.storages import journal

        direction: Literal["minimize", "maximize"] = "minimize" if lower_is_better(self.metric) else "maximize"
        pruner = self._pruner()
        try:
            storage = optuna.storages.JournalStorage(
                journal.JournalFileBackend(str(self.journal), lock_obj=cast(Any, _Held()))
            )
            if self._reading:
                return optuna.load_study(study_name=self.journal.stem, storage=storage, pruner=pruner)
            return optuna.create_study(
                study_name=self.journal.stem, storage=storage, pruner=pruner, direction=direction, load_if_exists=True
            )
        except (ValueError, KeyError) as error:
            raise RunError(
                f"{self.journal} is damaged ({first_line(error)}). Delete it to begin the search anew; "
                "runs that are finished are found again."
            ) from error

    def _pruner(self) -> optuna.pruners.BasePruner:
        from optuna import pruners

        if self._search.pruner == "successive_halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
        return pruners.MedianPruner() if self._search.pruner == "median" else pruners.NopPruner()


class _Held:
    """Optuna's own lock of the journal would outlive a killed process; ours is held already."""

    def acquire(self) -> bool:
        """At once."""
        return True

    def release(self) -> None:
        """Nothing to let go of."""


def require_optuna(arm_id: str) -> Any:
    """The module ``optuna``.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise ConfigError(f"cell '{arm_id}': a search needs Optuna: pip install 'peftlab[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _identity(search: Search, config: RunConfig) -> str:
    """Names the study: another space, sampler, run or way to compute is another study; more trials are more of it."""
    declared = {key: value for key, value in asdict(search).items() if key != "trials"}
    # a change of numbers may concern some values of the space only, and so not this config
    changes = [tag.name for tag in identity_tags.TAGS]
    text = json.dumps([declared, run_key(config), *([changes] if changes else [])], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rows(path: Path) -> Sequence[Mapping[str, str]]:
    """Rows of metrics.csv; none while there is no such file."""
    try:
        return list(csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8"), newline="")))
    except FileNotFoundError:
        return []
