"""Validations inside an epoch: rows of the history, the best weights, early stopping, and what reads them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file

from peftlab.audit.consistency import inconsistencies
from peftlab.cli import main
from peftlab.metric_names import MetricName
from peftlab.objectives.base import Figure, objective
from peftlab.report.figures.numbers import band
from peftlab.training.config import TrainerConfig
from peftlab.training.module import TrainingModule
from peftlab.training.places import ends_epoch, epochs_done, place_in_words
from peftlab.training.selection import training_is_over
from tests.conftest import TINY, Peftlab, write_reviews

WORDS = (
    "train", *TINY, "data.path=reviews.jsonl", "backbone.dropout=0.1", "peft=lora", "peft.dropout=0.2",
    "schedule=constant", "optim.lr=3e-1", "trainer.max_epochs=2", "trainer.threads=1", "trainer.progress_bar=false",
    "trainer.monitor=loss",
)  # fmt: skip
STEPS = 11
"""Optimizer steps of an epoch."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that differ in ``validate_every_n_steps``: ``null``, an epoch's steps, and 4."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_reviews(folder, rows=120)
        for every in ("null", str(STEPS), "4"):
            assert main([*WORDS, f"name=every{every}", f"trainer.validate_every_n_steps={every}"]) == 0
    return folder


@pytest.fixture
def at(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in their folder."""
    monkeypatch.chdir(runs)


def run_of(runs: Path, name: str) -> Path:
    (found,) = runs.glob(f"outputs/{name}/*")
    return found


def record_of(runs: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_of(runs, name) / "record.json").read_text())
    return found


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "train_seconds"} for row in history]


def test_of_an_epoch_s_steps_it_is_the_run_without(runs: Path) -> None:
    without, own = record_of(runs, "everynull"), record_of(runs, f"every{STEPS}")
    assert timeless(own["history"]) == timeless(without["history"])
    assert own["metrics"] == without["metrics"]
    assert own["key"] != without["key"]
    files = [run_of(runs, name) / "adapter.safetensors" for name in ("everynull", f"every{STEPS}")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_row_after_every_so_many_steps_and_at_each_epoch_s_end(runs: Path) -> None:
    history = record_of(runs, "every4")["history"]
    places = [(row["epoch"], row["step"], row.get("of_epoch")) for row in history]
    assert places == [
        (0, 4, 4 / 11), (0, 8, 8 / 11), (0, 11, None),
        (1, 12, 1 / 11), (1, 16, 5 / 11), (1, 20, 9 / 11), (1, 22, None),
    ]  # fmt: skip
    rows = list(csv.DictReader((run_of(runs, "every4") / "metrics.csv").read_text().splitlines()))
    assert [row["of_epoch"] for row in rows][:3] == [str(4 / 11), str(8 / 11), ""]
    assert list(map(ends_epoch, rows)) == list(map(ends_epoch, history))
    assert list(map(epochs_done, rows)) == list(map(epochs_done, history))


def test_figures_on_train_are_those_since_the_row_before_and_training_is_the_same(runs: Path) -> None:
    """Validating changes nothing of what is trained: an epoch's rows together are the row of the run without."""
    history, whole = (record_of(runs, name)["history"] for name in ("every4", "everynull"))
    for epoch, expected in enumerate(whole):
        rows = [row for row in history if row["epoch"] == epoch]
        assert sum(row["train_rows"] for row in rows) == expected["train_rows"]
        for figure in ("train/loss", "train/accuracy"):
            mean = sum(row[figure] * row["train_rows"] for row in rows) / expected["train_rows"]
            assert mean == pytest.approx(expected[figure], rel=1e-5)
        ends = {key: value for key, value in rows[-1].items() if key.startswith("validation/") or key == "lr"}
        assert ends == {key: expected[key] for key in ends}


def test_the_best_weights_are_those_of_their_step(peftlab: Peftlab, runs: Path, at: None) -> None:
    chosen, history = (record_of(runs, "every4")[name] for name in ("selection", "history"))
    best = min(history, key=lambda row: row["validation/loss"])
    assert "of_epoch" in best, "else it proves nothing: choose another learning rate"
    assert (chosen["epoch"], chosen["step"]) == (best["epoch"], best["step"])
    result = peftlab(*WORDS, "name=cut", f"trainer.max_steps={best['step']}", "trainer.select=last")
    assert result.status == 0, result.err
    kept, cut = (load_file(run_of(runs, name) / "adapter.safetensors") for name in ("every4", "cut"))
    assert all(torch.equal(kept[name], cut[name]) for name in {*kept, *cut})


def test_what_reads_such_a_run(peftlab: Peftlab, runs: Path, at: None) -> None:
    run, chosen = run_of(runs, "every4"), record_of(runs, "every4")["selection"]
    verified = peftlab("verify", run, "--rerun-eval")
    assert verified.status == 0, verified.out
    again = peftlab("train", *WORDS[1:], "name=every4", "trainer.validate_every_n_steps=4")
    assert f"weights of step {chosen['step']} (epoch {chosen['epoch'] + 1})" in again.out
    status = json.loads(peftlab("status", "outputs/every4", "--json").out)
    assert status["runs"][0]["epochs"] == 2
    assert peftlab("report", run.parent, "--to", "page").status == 0
    (file,) = Path("page").rglob("curves.csv")
    points = [row for row in csv.DictReader(file.read_text().splitlines()) if row["quantity"] == "train/loss"]
    expected = [4 / 11, 8 / 11, 1, 12 / 11, 16 / 11, 20 / 11, 2]
    assert [float(row["epoch"]) for row in points] == pytest.approx(expected)


def test_early_stopping_inside_an_epoch_and_resumed_from_its_end(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience counts validations; a run that dies after its last checkpoint ends there, and not a row later."""
    validated: list[int] = []
    ends = TrainingModule.on_validation_epoch_end

    def end(self: TrainingModule) -> None:
        validated.append(self.global_step)
        ends(self)

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", end)
    command = (
        *WORDS, "optim=sgd", "optim.lr=1e-30", "trainer.early_stopping_patience=2", "trainer.validate_every_n_steps=3",
        "backbone.dropout=0.0", "peft.dropout=0.0", "name=stops",
    )  # fmt: skip

    class Killed(BaseException):
        pass

    def die(self: TrainingModule) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_test_epoch_end", die)
        with pytest.raises(Killed):
            peftlab(*command)
    assert validated == [3, 6, 9]
    result = peftlab(*command)
    assert result.status == 0, result.err
    assert "last.ckpt" in result.out
    assert validated == [3, 6, 9]
    (run,) = Path("outputs/stops").glob("*")
    history = json.loads((run / "record.json").read_text())["history"]
    assert [(row["step"], row.get("of_epoch")) for row in history] == [(3, 3 / 11), (6, 6 / 11), (9, None)]
    assert peftlab("verify", run).status == 0


LOSS, ACCURACY = Figure("loss", "loss", "min"), Figure("accuracy", "accuracy", "max", 0.0, 1.0)


@pytest.mark.parametrize("figure", [LOSS, ACCURACY])
@pytest.mark.parametrize("patience", [1, 3])
def test_it_stops_where_lightning_would(figure: Figure, patience: int) -> None:
    torch.manual_seed(patience)
    for _ in range(60):
        values = (torch.randint(0, 5, (12,)) / 4 + torch.randint(0, 2, (12,)) * 1e-9).tolist()
        if figure is LOSS and torch.rand(()) < 0.3:
            values[int(torch.randint(0, 12, ()))] = float("nan")
        theirs = EarlyStopping("f", mode=figure.better, patience=patience)
        config = TrainerConfig(early_stopping_patience=patience)
        column = MetricName("validation", figure.name).in_history
        history = [{"epoch": n, "step": n + 1, column: value} for n, value in enumerate(values)]
        for done in range(1, 13):
            stops = theirs._evaluate_stopping_criteria(torch.tensor(values[done - 1]))[0]
            assert training_is_over(history[:done], config, figure) == stops
            if stops:
                break


def test_training_is_over_at_max_steps() -> None:
    history = [{"epoch": 0, "step": 7, "validation/loss": 1.0}]
    assert [training_is_over(history, TrainerConfig(max_steps=most), LOSS) for most in (7, 8)] == [True, False]
    assert not training_is_over([], TrainerConfig(max_steps=1), LOSS)


EDITS: list[tuple[str, Any]] = [
    ("a row less", lambda history: history.pop(1)),
    ("in another epoch", lambda history: history[3].update(epoch=0)),
    ("beyond its epoch", lambda history: history[3].update(of_epoch=1.5)),
    ("an end less", lambda history: history.pop(2)),
    ("at another step", lambda history: history[0].update(step=5)),
    ("no end", lambda history: history.pop()),
]


@pytest.mark.parametrize(("what", "edit"), EDITS, ids=[what for what, _ in EDITS])
def test_rows_that_cannot_be(runs: Path, what: str, edit: Any) -> None:
    record, trainer = record_of(runs, "every4"), TrainerConfig(validate_every_n_steps=4, monitor="loss", max_epochs=2)
    known = objective("classification")
    assert not list(inconsistencies(record, trainer, known))
    edit(record["history"])
    assert any(found.about == "history" for found in inconsistencies(record, trainer, known)), what


@pytest.mark.parametrize(("name", "value"), [("step", 8), ("step", 99), ("epoch", 1)])
def test_a_selection_that_cannot_be(runs: Path, name: str, value: int) -> None:
    record, trainer = record_of(runs, "every4"), TrainerConfig(validate_every_n_steps=4, monitor="loss", max_epochs=2)
    if record["selection"][name] == value:
        value += 4
    record["selection"][name] = value
    abouts = {found.about for found in inconsistencies(record, trainer, objective("classification"))}
    assert abouts & {"selection.epoch", "selection.step"}
    del record["selection"]["step"]
    assert any("selection" in found.about for found in inconsistencies(record, trainer, objective("classification")))


def test_places_in_words() -> None:
    assert place_in_words({"epoch": 1, "step": 300}) == "epoch 2"
    assert place_in_words({"epoch": 1, "step": 300, "of_epoch": 0.5}, 3) == "step 300 (epoch 2/3)"


def test_a_band_is_where_all_curves_are() -> None:
    """A seed whose figure is undefined in its first epoch is not compared with the first epochs of others."""
    curves = [[(0.5, 1.0), (1, 2.0), (2, 4.0)], [(1, 4.0), (2, 6.0)], []]
    assert band(curves) == ([1, 2], [3.0, 5.0], [pytest.approx(2**0.5)] * 2, [2, 2])
    assert band([[], []]) == ([], [], [], [])
