"""Searches: real Optuna studies on made-up records; killed, resumed, pruned."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from peftlab.errors import ConfigError, RunError
from peftlab.records import identity_tags
from peftlab.seeding import derive_seed
from peftlab.sweeps.declaration import Sweep
from peftlab.sweeps.jobs import Job, Outcome
from peftlab.sweeps.manifest import manifest
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.preflight import check_all
from peftlab.sweeps.table import render_markdown
from tests.sweeps.made_up import Killed, declared, play, record, value, write_epochs

EPOCHS = 6
SPACE = {"optim.lr": {"low": "1e-5", "high": 0.1, "log": True}, "peft.rank": {"choices": [2, 4, 8]}}


@pytest.fixture(autouse=True)
def data(reviews: Path) -> None:
    """The key of a run, which names a study, needs its files."""


def searching(*, trials: int = 14, seeds: int = 2, **changes: Any) -> Sweep:
    search = {"trials": trials, "space": SPACE, **changes}
    cell = {"id": "lora", "overrides": ["peft=lora", f"trainer.max_epochs={EPOCHS}"], "search": {"optuna": search}}
    return declared(cells=[cell], seeds=list(range(seeds)))


def curve(lr: float, rank: int) -> list[float]:
    """Validation accuracy an epoch: best near lr = 1e-3, and a little better with a higher rank."""
    height = 0.9 - 0.1 * abs(math.log10(lr) + 3) + 0.01 * rank
    return [height * (1 - 0.5 ** (epoch + 1)) for epoch in range(EPOCHS)]


def run(job: Job) -> dict[str, Any]:
    return record(job, curve(float(value(job, "optim.lr")), int(value(job, "peft.rank"))))


def trials_of(plan: DeclaredPlan) -> list[tuple[Any, ...]]:
    (search,) = plan._searches.values()
    return [(t.number, t.params, t.state.name, t.value, t.intermediate_values) for t in search._trials()]


def searched(sweep: Sweep, *, slots: int = 1) -> tuple[list[tuple[Any, ...]], Outcome, list[Job]]:
    plan, ran = DeclaredPlan(sweep, slots=slots), []
    outcome = play(plan, run, slots=slots, ran=ran)
    found = trials_of(plan)
    plan.close()
    return found, outcome, ran


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", ["successive_halving", "median", "none"])
def test_a_search_is_what_optuna_itself_would_do(sampler: str, pruner: str) -> None:
    """The reference is ``study.optimize`` in memory: one call, no plan, no files, no jobs."""
    kinds = {"tpe": lambda seed: optuna.samplers.TPESampler(seed=seed), "random": optuna.samplers.RandomSampler}
    pruners = {
        "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "median": optuna.pruners.MedianPruner,
        "none": optuna.pruners.NopPruner,
    }

    def objective(trial: optuna.Trial) -> float:
        values = curve(trial.suggest_float("lr", 1e-5, 0.1, log=True), int(trial.suggest_categorical("rank", "248")))
        for epoch, accuracy in enumerate(values[:-1] if pruner != "none" else [], start=1):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return max(values)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=pruners[pruner]())
    for number in range(14):
        study.sampler = kinds[sampler](derive_seed(0, "trial", number) % 2**32)
        study.optimize(objective, n_trials=1)
    found, _, ran = searched(searching(sampler=sampler, pruner=pruner))
    expected = [(t.number, *t.params.values(), t.state.name, t.intermediate_values) for t in study.trials]
    assert [(n, *params.values(), state, between) for n, params, state, _, between in found] == expected
    states = Counter(state for _, _, state, _, _ in found)
    assert states["PRUNED"] > 0 or pruner == "none"
    best = study.best_trial.params
    last = ran[-1]
    assert (float(value(last, "optim.lr")), value(last, "peft.rank"), value(last, "seed")) == (*best.values(), "1")
    assert len(ran) == len({job.id for job in ran})


@pytest.mark.parametrize("pruner", ["successive_halving", "none"])
def test_killed_and_resumed_it_is_the_same_search(pruner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = searching(pruner=pruner)
    monkeypatch.chdir(Path.cwd())
    expected, _, ran = searched(sweep)
    journals = list(Path("outputs/made_up/.optuna").glob("*.journal"))
    for path in journals:
        path.unlink()
    finished: dict[str, dict[str, Any]] = {}
    starts: Counter[str] = Counter()
    for deaths in (3, 1, 5, 100):  # the launcher dies while its 3rd job, then its 1st, then its 5th runs
        plan, done = DeclaredPlan(sweep), 0

        def run_until(job: Job, deaths: int = deaths) -> dict[str, Any]:
            nonlocal done
            if job.id in finished:  # the pool finds the record
                return finished[job.id]
            starts[job.id] += 1
            done += 1
            if done == deaths:
                raise Killed
            return finished.setdefault(job.id, run(job))

        try:
            play(plan, run_until, slots=1)
        except Killed:
            plan.close()
            with journals[0].open("ab") as file:  # and while it wrote a line
                file.write(b'{"op_code": 5, "trial_')
    assert trials_of(plan) == expected
    assert set(finished) == {job.id for job in ran}
    assert sum(starts.values()) == len(ran) + 3, "each death repeats the one job that it interrupted"
    plan.close()


def test_a_failed_trial_is_tried_again_by_the_next_launcher() -> None:
    sweep = searching(trials=4)
    plan, ran = DeclaredPlan(sweep), []
    outcome = play(plan, lambda job: "killed by signal 9" if len(ran) == 2 else run(job), slots=1, ran=ran)
    plan.close()
    assert len(outcome.failures) == 1
    (failed,) = outcome.failures
    again = DeclaredPlan(sweep)
    assert failed in {job.id for job in again.ready(Outcome())}
    again.close()
    _, whole, _ = searched(sweep)
    assert not whole.failures
    assert failed in whole.records


def test_a_trial_that_diverges_never_wins() -> None:
    plan = DeclaredPlan(searching(trials=5))
    best = 0.0

    def diverging(job: Job) -> dict[str, Any]:
        nonlocal best
        lr = float(value(job, "optim.lr"))
        if lr > 1e-3:
            return record(job, [0.99] * EPOCHS, loss=math.nan)
        best = max(best, lr)
        return record(job, [lr] * EPOCHS)

    outcome = play(plan, diverging, slots=1)
    (cell,) = manifest(plan, outcome, Path("s.yaml"))["cells"]
    assert cell["chosen"]["optim.lr"] == best > 0
    assert "diverged" in {one["state"] for one in cell["tried"]}
    plan.close()


def test_a_running_trial_is_stopped_by_the_epochs_it_has_written() -> None:
    """Watched at each epoch, or judged at its end: the same trials are pruned after the same epoch."""
    sweep = searching(pruner="successive_halving")
    expected, _, _ = searched(sweep)
    for path in Path("outputs/made_up/.optuna").glob("*.journal"):
        path.unlink()
    plan = DeclaredPlan(sweep)
    outcome, reasons = Outcome(), []
    while jobs := plan.ready(outcome):
        (job,) = jobs
        whole = run(job)
        folder = Path("outputs", whole["key"])
        reason = plan.stop_early(job.id, folder)
        assert reason is None, "nothing is written yet"
        for epochs in range(1, EPOCHS + 1):
            write_epochs(folder, whole["history"][:epochs])
            if reason := plan.stop_early(job.id, folder):
                outcome.pruned[job.id] = reason
                reasons.append(reason)
                break
        else:
            outcome.records[job.id], outcome.folders[job.id] = whole, folder
    assert trials_of(plan) == expected
    assert reasons
    assert all(reason.startswith("stopped after epoch ") for reason in reasons)
    table = render_markdown(plan.sweep, plan.records(outcome), plan.choices(outcome))
    assert table.count("(pruned)") == len(reasons)
    plan.close()


def test_nobody_stops_the_seeds_after_the_choice() -> None:
    plan = DeclaredPlan(searching(pruner="successive_halving", trials=6))
    outcome = play(plan, run, slots=1)
    last = next(job_id for job_id in outcome.records if "seed 1" in job_id)
    write_epochs(Path("poor"), record(Job(last, "", ()), [0.0] * 5)["history"])
    assert plan.stop_early(last, Path("poor")) is None
    plan.close()


def test_more_trials_go_on_and_another_space_begins_anew() -> None:
    first, _, _ = searched(searching(trials=4))
    more, _, _ = searched(searching(trials=7))
    assert more[:4] == first
    assert len(more) == 7
    assert len(list(Path("outputs/made_up/.optuna").glob("*.journal"))) == 1
    other = {**SPACE, "peft.rank": {"choices": [2, 4]}}
    searched(searching(trials=4, space=other))
    assert len(list(Path("outputs/made_up/.optuna").glob("*.journal"))) == 2


def test_trials_that_draw_the_same_values_are_one_run() -> None:
    space = {"peft.rank": {"choices": [2, 4]}, "peft.dropout": {"choices": [0.0, 0.1]}}
    plan, ran = DeclaredPlan(searching(trials=20, space=space), slots=3), []
    outcome = play(plan, lambda job: record(job, [int(value(job, "peft.rank")) / 10]), slots=3, ran=ran)
    assert len(trials_of(plan)) == 20
    tried = [job for job in ran if value(job, "seed") == "0"]
    assert 2 <= len(tried) == len({job.id for job in tried}) <= 4
    assert manifest(plan, outcome, Path("s.yaml"))["cells"][0]["chosen"]["peft.rank"] == 4
    plan.close()


def test_values_of_every_kind() -> None:
    space = {
        "peft.targets": {"choices": [["query"], ["query", "value"]]},
        "peft.rank_stabilized": {"choices": [True, False]},
        "peft.rank": {"low": 1, "high": 9, "whole": True, "step": 4},
        "peft.dropout": {"low": 0, "high": 0.5, "step": 0.25},
    }
    sweep = searching(trials=12, space=space)
    check_all(DeclaredPlan(sweep))
    plan, ran = DeclaredPlan(sweep), []
    play(plan, lambda job: record(job, [0.5]), slots=1, ran=ran)
    assert {value(job, "peft.targets") for job in ran} == {"[query]", "[query,value]"}
    assert {value(job, "peft.rank_stabilized") for job in ran} == {"true", "false"}
    assert {value(job, "peft.rank") for job in ran} <= {"1", "5", "9"}
    assert {value(job, "peft.dropout") for job in ran} <= {"0.0", "0.25", "0.5"}
    plan.close()


def test_reading_writes_nothing_and_asks_for_nothing() -> None:
    sweep = searching(trials=5)
    assert not list(DeclaredPlan(sweep, reading=True).ready(Outcome()))
    assert not Path("outputs").exists()
    live = DeclaredPlan(sweep)
    outcome = Outcome()
    (job,) = live.ready(outcome)
    outcome.records[job.id] = run(job)
    assert len(live.ready(outcome)) == 1
    (journal,) = Path("outputs/made_up/.optuna").glob("*.journal")
    before = journal.read_bytes()
    reader = DeclaredPlan(sweep, reading=True)
    assert len(reader.ready(Outcome())) == 2
    choice = reader.choices(Outcome())["lora"]
    assert sum(one.state == "open" for one in choice.tried) == 5
    assert journal.read_bytes() == before
    live.close()


def test_two_launchers_do_not_share_a_study() -> None:
    sweep = searching()
    first = DeclaredPlan(sweep)
    first.ready(Outcome())
    with pytest.raises(RunError, match="in use by another search"):
        DeclaredPlan(sweep).ready(Outcome())
    first.close()
    second = DeclaredPlan(sweep)
    assert second.ready(Outcome())
    second.close()


def test_after_a_change_of_numbers_it_is_another_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of trials that were stopped early only the study knows, so it must not be taken for one of today's numbers."""
    searched(searching(trials=2))
    monkeypatch.setattr(identity_tags, "TAGS", (identity_tags.Tag("rank-8-1", rank_8, "ranks of 8 are other"),))
    searched(searching(trials=2))
    assert len(list(Path("outputs/made_up/.optuna").glob("*.journal"))) == 2


def rank_8(config: Mapping[str, Any]) -> bool:
    return bool(config["peft"]["rank"] == 8)


def test_a_damaged_journal_is_named() -> None:
    searched(searching(trials=2))
    (journal,) = Path("outputs/made_up/.optuna").glob("*.journal")
    journal.write_bytes(b"not a journal\n" + journal.read_bytes())
    with pytest.raises(RunError, match=r"journal is damaged .*Delete it to begin the search anew"):
        DeclaredPlan(searching(trials=2)).ready(Outcome())


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"cell 'lora': a search needs Optuna: pip install 'peftlab\[search\]'"):
        check_all(DeclaredPlan(searching()))


def test_a_search_imports_nothing_heavier_than_torch() -> None:
    searching(trials=2)
    code = (
        "import sys; from pathlib import Path;"
        "from peftlab.sweeps.reading import read_sweep; from peftlab.sweeps.plan import DeclaredPlan;"
        "from peftlab.sweeps.jobs import Outcome; from peftlab.sweeps.preflight import check_all;"
        "plan = DeclaredPlan(read_sweep(Path('sweep.yaml'))); check_all(plan); jobs = plan.ready(Outcome());"
        "print(len(jobs), sorted({'lightning', 'transformers', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"
