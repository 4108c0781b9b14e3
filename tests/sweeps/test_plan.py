"""Plans of declared sweeps: what starts when, and how values are chosen, on made-up records."""

from __future__ import annotations

import csv
import io
import json
import random
from math import nan
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import ConfigError
from peftlab.report.render.terminal import PlainConsole
from peftlab.sweeps.jobs import Job, Outcome
from peftlab.sweeps.manifest import manifest, write_manifest
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.table import render_csv, render_markdown, render_terminal
from tests.sweeps.made_up import declare, declared, play, record, value

LORA: dict[str, Any] = {"id": "lora", "label": "LoRA", "overrides": ["peft=lora"]}
TUNED = {**LORA, "tune": {"optim.lr": [1e-4, 1e-3, 1e-2]}}


def lr_of(job: Job) -> float:
    return float(value(job, "optim.lr"))


def seed_of(job: Job) -> int:
    return int(value(job, "seed"))


def by_rate(values: dict[float, float]) -> Any:
    """Validation by learning rate; the test's ranking is the reverse, and must not matter."""
    return lambda job: record(job, [values[lr_of(job)]], test=1 - values[lr_of(job)])


def test_the_best_on_validation_runs_with_the_other_seeds() -> None:
    ran: list[Job] = []
    plan = DeclaredPlan(declared(cells=[TUNED]))
    outcome = play(plan, by_rate({1e-4: 0.6, 1e-3: 0.8, 1e-2: 0.7}), ran=ran)
    assert [(lr_of(job), seed_of(job)) for job in ran] == [(1e-4, 0), (1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-3, 2)]
    assert plan.total() == 5
    assert not outcome.failures
    shown = plan.records(outcome)
    assert sorted(shown) == [("lora", 0), ("lora", 1), ("lora", 2)]
    assert {found["metrics"]["test"]["accuracy"] for found in shown.values()} == {1 - 0.8}
    choice = plan.choices(outcome)["lora"]
    assert choice.chosen is not None
    assert dict(choice.chosen.parameters) == {"optim.lr": 1e-3}


@pytest.mark.parametrize(
    ("validation", "loss", "chosen"),
    [
        ({1e-4: 0.8, 1e-3: 0.8, 1e-2: 0.8}, {}, 1e-4),  # a tie: the first
        ({1e-4: nan, 1e-3: 0.1, 1e-2: nan}, {}, 1e-3),  # no number never wins
        ({1e-4: nan, 1e-3: 0.1, 1e-2: 0.2}, {}, 1e-2),
        ({1e-4: 0.9, 1e-3: 0.1, 1e-2: 0.2}, {1e-4: nan}, 1e-2),  # the best value, but its loss went wrong
        ({1e-4: 0.9, 1e-3: 0.1, 1e-2: 0.2}, {1e-4: float("inf"), 1e-2: nan}, 1e-3),
    ],
)
def test_ties_and_divergence(validation: dict[float, float], loss: dict[float, float], chosen: float) -> None:
    plan = DeclaredPlan(declared(cells=[TUNED]))
    outcome = play(plan, lambda job: record(job, [validation[lr_of(job)]], loss=loss.get(lr_of(job), 1.0)))
    assert manifest(plan, outcome, Path("s.yaml"))["cells"][0]["chosen"] == {"optim.lr": chosen}


def test_a_loss_is_better_when_lower() -> None:
    plan = DeclaredPlan(declared(cells=[TUNED], tune_by="metrics.validation.loss"))
    outcome = play(plan, by_rate({1e-4: 0.6, 1e-3: 0.8, 1e-2: 0.7}))  # the made-up loss is 1 - accuracy
    assert manifest(plan, outcome, Path("s.yaml"))["cells"][0]["chosen"] == {"optim.lr": 1e-3}


def test_a_failed_candidate_never_wins() -> None:
    plan = DeclaredPlan(declared(cells=[TUNED]))
    outcome = play(plan, lambda job: "exit status 1" if lr_of(job) == 1e-3 else record(job, [lr_of(job)]))
    (cell,) = manifest(plan, outcome, Path("s.yaml"))["cells"]
    assert cell["chosen"] == {"optim.lr": 1e-2}
    assert [one["state"] for one in cell["tried"]] == ["finished", "failed", "chosen"]
    assert list(outcome.failures) == ["lora, seed 0, optim.lr=0.001"]
    assert "optim.lr=0.001 (failed)" in render_markdown(plan.sweep, plan.records(outcome), plan.choices(outcome))


def test_when_all_failed_the_row_says_so() -> None:
    plan = DeclaredPlan(declared(cells=[TUNED, {"id": "after", "from": "lora", "overrides": ["peft=head"]}]))
    outcome = play(plan, lambda job: "exit status 1")
    assert not outcome.records
    reasons = {failure.job.id: failure.reason for failure in outcome.failures.values()}
    assert reasons["lora, seed 1"] == "not run: every value that was tried has failed or diverged"
    assert reasons["after, seed 0"] == "not run: 'lora' has failed"
    assert len(reasons) == 3 + 2 + 3
    table = render_markdown(plan.sweep, plan.records(outcome), plan.choices(outcome))
    assert "| LoRA | – | all failed | all failed |" in table
    lora, after = manifest(plan, outcome, Path("s.yaml"))["cells"]
    assert set(lora["failed"]) == {"0", "1", "2"}
    assert after["failed"]["2"] == "not run: 'lora' has failed"


def test_a_cell_starts_from_what_was_chosen() -> None:
    """Both tuned: each candidate of the second starts from the first's chosen run of the same seed."""
    cells = [
        {"id": "before", "overrides": ["peft=full"], "tune": {"optim.lr": [1e-4, 1e-3]}, "row": False},
        {**TUNED, "from": "before"},
    ]
    plan = DeclaredPlan(declared(cells=cells))
    ran: list[Job] = []
    outcome = play(plan, lambda job: record(job, [lr_of(job)]), ran=ran)
    assert len(ran) == (2 + 2) + (3 + 2) == plan.total()
    folders = {seed: outcome.folders[f"before, seed {seed}, optim.lr=0.001"] for seed in range(3)}
    for job in ran:
        if job.id.startswith("lora"):
            assert value(job, "backbone.from_run") == str(folders[seed_of(job)])
        else:
            assert not any(entry.startswith("backbone.from_run") for entry in job.overrides)


def test_the_order_in_which_jobs_end_does_not_matter() -> None:
    cells = [
        {"id": "before", "overrides": ["peft=full"], "tune": {"optim.lr": [1e-4, 1e-3]}},
        {**TUNED, "from": "before", "grid": {"peft.rank": [1, 2]}},
        {"id": "other", "overrides": ["peft=head"], "tune": {}},
    ]
    sweep = declared(cells=cells, tune={"optim.lr": [5]})

    def run(job: Job) -> dict[str, Any] | str:
        draw = random.Random(job.id)
        return "exit status 1" if draw.random() < 0.1 else record(job, [draw.random()])

    seen = set()
    for shuffle in range(8):
        generator = random.Random(shuffle)
        plan = DeclaredPlan(sweep)
        outcome = play(plan, run, slots=1 + shuffle % 4, order=lambda running, of=generator: of.randrange(len(running)))
        seen.add(json.dumps(manifest(plan, outcome, Path("s.yaml")), sort_keys=True))
    assert len(seen) == 1


def test_what_stands_above_the_cells_is_for_all_that_have_none() -> None:
    cells = [
        {"id": "a", "overrides": []},
        {"id": "b", "overrides": [], "tune": {}},
        {"id": "c", "overrides": [], "grid": {}, "tune": {"peft.dropout": [0.1]}},
    ]
    sweep = declared(cells=cells, grid={"peft.rank": [1, 2]}, tune={"optim.lr": ["5e-4", 1e-3]})
    assert [cell.id for cell in sweep.cells] == ["a_1", "a_2", "b_1", "b_2", "c"]
    assert [cell.candidates() for cell in sweep.cells] == [
        [{"optim.lr": 5e-4}, {"optim.lr": 1e-3}],
        [{"optim.lr": 5e-4}, {"optim.lr": 1e-3}],
        [],
        [],
        [{"peft.dropout": 0.1}],
    ]


def test_reading_chooses_among_what_is_finished() -> None:
    """A report during a sweep: one candidate failed for good, another has not run yet."""
    plan = DeclaredPlan(declared(cells=[TUNED]), reading=True)
    outcome = Outcome()
    for job in plan.ready(outcome):
        if lr_of(job) != 1e-2:
            outcome.records[job.id], outcome.folders[job.id] = record(job, [lr_of(job)]), Path(job.id)
    assert [(lr_of(job), seed_of(job)) for job in plan.ready(outcome)] == [(1e-3, 1), (1e-3, 2)]
    table = render_markdown(plan.sweep, plan.records(outcome), plan.choices(outcome))
    assert "(1/3 seeds)" in table
    assert "; 1 not tried yet" in table


def test_a_share_in_percent_is_compared_with_what_others_gave_as_a_share() -> None:
    column = {"title": "accuracy", "value": "metrics.test.accuracy", "format": "percent", "digits": 1}
    given = {"cell": "head", "column": "metrics.test.accuracy", "value": 0.9, "source": "a paper"}
    sweep = declared(
        cells=[{"id": "head", "overrides": ["peft=head"]}],
        columns=[column],
        published=[given | {"provenance": "memory"}],
    )
    plan = DeclaredPlan(sweep)
    outcome = play(plan, lambda job: record(job, [0.5], test=0.25 + seed_of(job) / 4))
    table = render_markdown(sweep, plan.records(outcome)).splitlines()
    assert table[:3] == ["|  | accuracy (%) |", "| --- | ---: |", "| head | 50.0 ± 25.0 |"]
    assert "- head: a paper gives 0.9 (from memory); measured 0.5000 ± 0.2500." in table


def test_the_table_shows_the_choice_and_hides_the_tests_of_the_others() -> None:
    cells = [
        {**TUNED, "group": "low rank"},
        {"id": "head", "overrides": ["peft=head"], "group": "reference"},
        {"id": "full", "overrides": ["peft=full"], "group": "reference"},
    ]
    published = {"cell": "lora", "column": "metrics.test.accuracy", "value": 0.9, "source": "a paper"}
    sweep = declared(
        cells=cells,
        published=[published | {"provenance": "memory"}],
    )
    plan = DeclaredPlan(sweep)
    outcome = play(
        plan,
        lambda job: record(job, [lr_of(job)] if "peft=lora" in job.overrides else [0.5], test=0.25 + seed_of(job) / 4),
    )
    records, choices = plan.records(outcome), plan.choices(outcome)
    table = render_markdown(sweep, records, choices).splitlines()
    assert table[:7] == [
        "|  | chosen | test accuracy | trainable |",
        "| --- | --- | ---: | ---: |",
        "| **low rank** |  |  |  |",
        "| LoRA | optim.lr=0.01 | 0.5000 ± 0.2500 | 100 |",
        "| **reference** |  |  |  |",
        "| head | – | 0.5000 ± 0.2500 | 100 |",
        "| full | – | 0.5000 ± 0.2500 | 100 |",
    ]
    assert "- LoRA: a paper gives 0.9 (from memory); measured 0.5000 ± 0.2500." in table
    assert "- LoRA: optim.lr=0.0001 (0.0001), optim.lr=0.001 (0.0010), optim.lr=0.01 (0.0100, chosen)." in table
    edge = "At the edge of what was tried, so that a better value may lie beyond: 1 of 1 (LoRA)."
    assert edge in table, "the highest of three"
    rows = list(csv.DictReader(io.StringIO(render_csv(sweep, records, choices))))
    assert [(row["cell"], row["seed"], row["run"], row["values"], row["value"]) for row in rows] == [
        ("lora", "0", "row", "optim.lr=0.01", "0.01"),
        ("lora", "1", "row", "optim.lr=0.01", ""),
        ("lora", "2", "row", "optim.lr=0.01", ""),
        ("lora", "0", "tried: finished", "optim.lr=0.0001", "0.0001"),
        ("lora", "0", "tried: finished", "optim.lr=0.001", "0.001"),
        *((cell, str(seed), "row", "", "") for cell in ("head", "full") for seed in range(3)),
    ]
    assert [row["metrics.test.accuracy"] for row in rows[:5]] == ["0.25", "0.5", "0.75", "", ""]
    assert [row["parameters.trainable"] for row in rows[:5]] == ["100"] * 5


def test_a_choice_within_what_was_tried_is_at_no_edge() -> None:
    plan = DeclaredPlan(declared(cells=[TUNED]))
    best_in_the_middle = {1e-4: 0.1, 1e-3: 0.9, 1e-2: 0.2}
    outcome = play(plan, lambda job: record(job, [best_in_the_middle[lr_of(job)]]))
    table = render_markdown(plan.sweep, plan.records(outcome), plan.choices(outcome))
    assert "optim.lr=0.001 (0.9000, chosen)" in table
    assert "edge" not in table


def test_the_table_says_what_its_test_rows_alone_make() -> None:
    """Means of 0.5 on 400 rows: sqrt(0.5 · 0.5 / 400) = 0.025; what is no share of rows has no such error."""
    columns = [{"title": name, "value": name} for name in ("metrics.test.accuracy", "parameters.trainable")]

    def ran(job: Job) -> dict[str, Any]:
        made = record(job, [0.5], test=0.25 + seed_of(job) / 4)
        return made | {"data": made["data"] | {"rows": {"test": 400}}}

    cells = [{"id": "head", "overrides": ["peft=head"]}]
    for shown, said in ((columns, True), (columns[1:], False)):
        plan = DeclaredPlan(declared(cells=cells, columns=shown, metric=shown[0]["value"]))
        table = render_markdown(plan.sweep, plan.records(play(plan, ran)))
        assert ("a standard error of 0.0250 (binomial), however many seeds" in table) == said


def test_the_table_has_one_form_a_column() -> None:
    """Memory with the same digits in every row, and errors in percentage points where the table is in percent."""
    columns = [
        {"title": "accuracy", "value": "metrics.test.accuracy", "format": "percent"},
        {"title": "memory", "value": "memory.peak_mib", "format": "number"},
    ]
    memory = {"head": 820.9, "lora": 819.0}

    def ran(job: Job) -> dict[str, Any]:
        made = record(job, [0.5], test=0.5)
        of_method = memory["head" if "peft=head" in job.overrides else "lora"]
        return made | {"data": made["data"] | {"rows": {"test": 400}}, "memory": {"peak_mib": of_method}}

    cells = [{"id": name, "overrides": [f"peft={name}"]} for name in memory]
    plan = DeclaredPlan(declared(cells=cells, columns=columns))
    table = render_markdown(plan.sweep, plan.records(play(plan, ran)))
    assert "| head | 50.00 ± 0.00 | 820.9 ± 0.0 |" in table
    assert "| lora | 50.00 ± 0.00 | 819.0 ± 0.0 |" in table
    assert "a standard error of 2.50 percentage points (binomial)" in table


def test_contents_of_the_folder() -> None:
    path = declare(cells=[TUNED], baseline="lora")
    plan = DeclaredPlan(declared(cells=[TUNED], baseline="lora"), more=["output_dir=elsewhere"])
    outcome = play(plan, lambda job: "killed by signal 9" if seed_of(job) == 2 else record(job, [lr_of(job)]))
    write_manifest(plan, outcome, path)
    found = json.loads(Path("elsewhere/made_up/sweep.json").read_text())
    assert {key: found[key] for key in ("format", "file", "settings", "metric", "baseline", "seeds")} == {
        "format": 1, "file": "sweep.yaml", "settings": {}, "metric": "metrics.test.accuracy", "baseline": "lora",
        "seeds": [0, 1, 2],
    }  # fmt: skip
    assert found["columns"][1] == {"title": "trainable", "value": "parameters.trainable", "format": "count"}
    (cell,) = found["cells"]
    keys = {seed: outcome.records[f"lora, seed {seed}, optim.lr=0.01"]["key"] for seed in (0, 1)}
    assert cell["runs"] == {"0": keys[0], "1": keys[1]}
    assert cell["failed"] == {"2": "killed by signal 9"}
    assert [one["run"] for one in cell["tried"]][2] == keys[0]


def test_what_is_chosen_cannot_be_set_too() -> None:
    with pytest.raises(ConfigError, match=r"optim.lr=3: cell 'lora' chooses optim.lr on validation"):
        DeclaredPlan(declared(cells=[TUNED]), more=["optim.lr=3"])


def test_nothing_is_handed_out_twice() -> None:
    plan = DeclaredPlan(declared(cells=[LORA, TUNED | {"id": "tuned"}]))
    outcome = Outcome()
    first = plan.ready(outcome)
    assert len({job.id for job in first}) == len(first) == 3 + 3
    assert plan.ready(outcome) == []


def test_a_terminal_gets_the_table_drawn_and_the_same_words_below() -> None:
    plan = DeclaredPlan(declared(cells=[TUNED], notes="A note."))
    outcome = play(plan, by_rate({1e-4: 0.6, 1e-3: 0.8, 1e-2: 0.7}))
    given = (plan.sweep, plan.records(outcome), plan.choices(outcome))
    out = io.StringIO()
    render_terminal(PlainConsole(file=out, width=60, force_terminal=True, color_system=None), *given)
    drawn, markdown = out.getvalue(), render_markdown(*given)
    assert "| LoRA |" in markdown
    assert "| LoRA |" not in drawn
    assert any(line.split()[:1] == ["LoRA"] for line in drawn.splitlines())
    assert "A note." in drawn
    below = [part for part in markdown.split("\n\n")[1:] if not part.startswith("|")]
    words = " ".join(drawn.split())
    assert [part for part in below if " ".join(part.split()) not in words] == []
