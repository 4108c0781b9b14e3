"""A regression from its file to its record, its report and its export, against scipy."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError
from peftlab.objectives.base import objective
from peftlab.objectives.parts.split import SplitMetrics
from tests.conftest import REPOSITORY, TINY, Peftlab
from tests.objectives.scores import REGRESSION, write_scores
from tests.runs.small_runs import edit, found, record_of, set_at

ONE = objective("regression")


@pytest.fixture
def run(peftlab: Peftlab, scratch: Path) -> Path:
    return trained(peftlab, write_scores(scratch))


def trained(peftlab: Peftlab, scores: Path, *more: str, name: str = "r") -> Path:
    before = set(Path("outputs").glob(f"{name}/*"))
    result = peftlab("train", *REGRESSION, f"data.path={scores}", f"name={name}", *more)
    assert result.status == 0, result.err
    (folder,) = set(Path("outputs").glob(f"{name}/*")) - before
    return folder


def in_batches(predictions: torch.Tensor, labels: torch.Tensor, cuts: tuple[int, ...]) -> dict[str, Any]:
    metrics = SplitMetrics(ONE, ["value"])
    for start, end in zip((0, *cuts), (*cuts, len(labels)), strict=True):
        outputs, some = predictions[start:end].unsqueeze(1), labels[start:end]
        metrics.update(outputs, some, ONE.loss(outputs, some))
    return metrics.compute()


def test_figures_equal_scipys_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (101,), generator=generator).float()  # with ties
    predictions = labels + torch.randn(101, generator=generator)
    values = in_batches(predictions, labels, (1, 64))
    x, y = predictions.double().numpy(), labels.double().numpy()
    assert values["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert values["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert values["mse"] == pytest.approx(float(np.mean((x - y) ** 2)), abs=1e-12)
    assert values["loss"] == pytest.approx(values["mse"], rel=1e-5)
    assert values["rows"] == 101
    order = torch.randperm(101, generator=generator)
    again = in_batches(predictions[order], labels[order], (50,))
    assert {k: v for k, v in again.items() if k != "loss"} == {k: v for k, v in values.items() if k != "loss"}


@pytest.mark.parametrize(
    ("predictions", "labels", "why"),
    [
        ([2.5, 2.5, 2.5], [1.0, 2.0, 3.0], "undefined: all 3 predictions are equal (2.5)"),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], "undefined: all 3 labels are equal (4)"),
        ([1.0], [4.0], "undefined: a correlation needs at least 2 rows, and there is 1"),
        ([1.0, math.inf], [4.0, 5.0], "undefined: some predictions are not finite"),
    ],
)
def test_an_undefined_correlation_says_why(predictions: list[float], labels: list[float], why: str) -> None:
    values = in_batches(torch.tensor(predictions), torch.tensor(labels), ())
    assert (values["pearson"], values["spearman"]) == (None, None)
    assert values["undefined"] == {"pearson": why, "spearman": why}


def test_the_record_equals_scipy_on_the_runs_own_predictions(peftlab: Peftlab, scratch: Path) -> None:
    test = scratch / "test.csv"
    with write_scores(scratch, 40).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    test.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows), encoding="utf-8")
    scores = write_scores(scratch, 120)
    result = peftlab("train", *REGRESSION, f"data.train={scores}", f"data.test={test}", "name=r")
    assert result.status == 0, result.err
    (run,) = Path("outputs/r").iterdir()
    Path("texts.txt").write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    said = peftlab("predict", run, "--file", "texts.txt", "--json")
    values = [json.loads(line)["value"] for line in said.out.splitlines()]
    labels = [float(row["label"]) for row in rows]
    figures = record_of(run)["metrics"]["test"]
    assert figures["pearson"] == pytest.approx(stats.pearsonr(values, labels).statistic, abs=1e-6)
    assert figures["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic, abs=1e-6)
    assert figures["mse"] == pytest.approx(np.mean((np.array(values) - np.array(labels)) ** 2), abs=1e-6)
    assert figures["pearson"] > 0.9, "it can be learned"
    for text, value in zip(peftlab("predict", run, "--file", "texts.txt").out.splitlines(), values, strict=True):
        assert float(text.split("\t")[-1]) == pytest.approx(value, abs=1e-4)


def test_what_a_run_says_and_keeps(run: Path, peftlab: Peftlab) -> None:
    record = record_of(run)
    assert record["config"]["data"]["objective"] == "regression"
    assert record["config"]["trainer"]["monitor"] == "pearson"
    assert record["selection"]["rule"] == "highest validation/pearson"
    better = {"loss": "min", "pearson": "max", "spearman": "max", "mse": "min"}
    assert record["objective"] == {"name": "regression", "selects": "pearson", "metrics": better}
    assert list(record["data"]["labels"]["train"]) == ["min", "max", "mean", "variance"]
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "validation/pearson" in header
    assert found(peftlab, run, "--rerun-eval") == {}
    shown = peftlab("evaluate", run)
    assert "Pearson" in shown.out
    assert "the same" in shown.out
    best = max(record["history"], key=lambda row: row["validation/pearson"])
    assert record["selection"]["epoch"] == best["epoch"]


@pytest.mark.parametrize(
    ("path", "value", "about"),
    [
        ("metrics.test.pearson", 1.5, "metrics.test.pearson"),
        ("metrics.test.pearson", 0.0, "metrics.test.pearson"),
        ("metrics.test.mse", 0.5, "metrics.test.mse"),
        ("metrics.test.pearson", None, "metrics.test.pearson"),
        ("objective.metrics.mse", "max", "objective.metrics.mse"),
    ],
)
def test_an_edited_figure_contradicts_the_rest(
    run: Path, peftlab: Peftlab, path: str, value: object, about: str
) -> None:
    edit(run, set_at(path, value))
    assert about in found(peftlab, run)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ('"3,5"', "has a decimal comma. Write 3.5"),
        ("good", "'good' (column 'label') is no number"),
        ("inf", "is infinite"),
        ("1e400", "is infinite, or too large for float32"),
        ("", "is missing"),
    ],
)
def test_a_wrong_label_is_named_with_file_and_row(scratch: Path, cell: str, said: str) -> None:
    file = scratch / "scores.csv"
    file.write_text(f"text,label\na,1.5\nb,2\nc,{cell}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        TextFiles(path=str(file), objective="regression").load()
    assert "scores.csv, row 3 (line 4): the label" in str(caught.value)
    assert said in str(caught.value)


def test_mistakes_of_a_config(peftlab: Peftlab, scratch: Path) -> None:
    scores = write_scores(scratch)
    for more, words in (
        (["data.objective=regresion"], ["data.objective='regresion' is not allowed", "Did you mean 'regression'?"]),
        (["trainer.monitor=accuracy"], ["trainer.monitor='accuracy' is not allowed", "pearson, spearman, mse"]),
        (["trainer.label_smoothing=0.1"], ["trainer.label_smoothing=0.1 has no meaning for a regression"]),
        (["data.labels=[a,b]"], ["data.labels=['a', 'b'] names classes"]),
        (["data.objective=classification"], ["data.objective=regression"]),
    ):
        result = peftlab("train", *REGRESSION, f"data.path={scores}", *more)
        assert result.status == 2
        for word in words:
            assert word in result.err, result.err
    mixed = peftlab("train", "data=multitask", "data.objective=regression")
    assert mixed.status == 2
    assert "data.tasks[0].objective=regression is not what these labels are for" in mixed.err
    assert not list(Path("outputs").glob("*/*")), "nothing half-written"


def test_data_of_the_other_objective_is_refused(run: Path, peftlab: Peftlab, reviews: Path) -> None:
    result = peftlab("evaluate", run, "data=text_files", f"data.path={reviews}")
    assert result.status != 0
    assert "the run learned a regression" in result.err


def test_equal_labels_train_and_the_correlation_is_null(peftlab: Peftlab, scratch: Path) -> None:
    file = scratch / "flat.csv"
    file.write_text("text,label\n" + "".join(f"some words {i},3.5\n" for i in range(40)), encoding="utf-8")
    run = trained(peftlab, file, "trainer.max_epochs=2", "trainer.early_stopping_patience=1")
    text = (run / "record.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    record = json.loads(text)
    assert record["metrics"]["test"]["pearson"] is None
    assert record["metrics"]["test"]["undefined"]["pearson"].startswith("undefined: all ")
    assert record["selection"]["epoch"] == 0, "of epochs that are all undefined the first"
    again = peftlab("evaluate", run)
    assert "undefined: all 8 labels are equal (3.5)" in again.out
    assert found(peftlab, run) == {}


def test_a_report_knows_what_is_better(run: Path, peftlab: Peftlab, scratch: Path) -> None:
    trained(peftlab, scratch / "scores.csv", "optim.lr=0.0001")
    shown = peftlab("report", "outputs/r")
    assert shown.status == 0, shown.err
    assert "test pearson" in shown.out
    content = json.loads(Path("outputs/r/report/report.json").read_text(encoding="utf-8"))
    assert content["best"] == "highest"
    shown = peftlab("report", "outputs/r", "--metric", "metrics.test.mse", "--to", "by_error")
    content = json.loads(Path("by_error/report.json").read_text(encoding="utf-8"))
    assert content["best"] == "lowest"


@pytest.mark.parametrize("by", [None, "metrics.validation.mse"])
def test_a_sweep_chooses_in_the_figures_direction(peftlab: Peftlab, scratch: Path, by: str | None) -> None:
    scores = write_scores(scratch)
    overrides = [*REGRESSION, f"data.path={scores}", "trainer.max_epochs=1"]
    sweep: dict[str, Any] = {
        "name": "s", "title": "t", "source": "here", "command": "c", "cost": "c", "selection": "s", "seeds": [0],
        "metric": "metrics.test.pearson", "overrides": [o for o in overrides if "optim.lr" not in o],
        "cells": [{"id": "a", "overrides": [], "tune": {"optim.lr": [0.0001, 0.1]}}],
        "columns": [{"title": "Pearson", "value": "metrics.test.pearson"}],
    } | ({"tune_by": by} if by else {})  # fmt: skip
    Path("s.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    result = peftlab("sweep", "s.yaml")
    assert result.status == 0, result.err
    content = json.loads(Path("outputs/s/sweep.json").read_text(encoding="utf-8"))
    by_rate = {one["parameters"]["optim.lr"]: one for one in content["cells"][0]["tried"]}
    assert by_rate[0.1]["by"] == (by or "metrics.validation.pearson")
    assert by_rate[0.1]["state"] == "chosen", by_rate


def test_an_export_computes_the_same_and_says_what_it_is(peftlab: Peftlab, scratch: Path) -> None:
    scores = write_scores(scratch)
    overrides = [*TINY, f"data.path={scores}", "data.objective=regression", "peft=lora", "trainer.max_epochs=1"]
    assert peftlab("train", *overrides, "name=e").status == 0
    (run,) = Path("outputs/e").iterdir()
    exported = peftlab("export", run, "--to", "plain", "--merged")
    assert exported.status == 0, exported.err
    config = json.loads(Path("plain/config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    card = Path("plain/README.md").read_text(encoding="utf-8")
    assert "one number, in the unit of the labels" in card
    assert "| test Pearson |" in card
    from transformers import AutoModelForSequenceClassification

    from peftlab.backbones.tokenizers import ByteTokenizer

    model = AutoModelForSequenceClassification.from_pretrained("plain").eval()
    assert model.config.num_labels == 1
    text = "good bad good"
    [ids] = ByteTokenizer().encode([text], 48)
    with torch.inference_mode():
        given = model(torch.tensor([ids]), labels=torch.tensor([1.0]))
    said = json.loads(peftlab("predict", run, "--text", text, "--json").out)
    assert said["value"] == pytest.approx(float(given.logits[0, 0]), abs=1e-5)
    assert float(given.loss) == pytest.approx(float(F.mse_loss(given.logits[0, 0], torch.tensor(1.0)))), "its own loss"


def test_forgetting_of_a_regression_is_lost_correlation(peftlab: Peftlab, scratch: Path, reviews: Path) -> None:
    scores = write_scores(scratch)
    earlier = [*TINY, f"data.path={scores}", "data.objective=regression", "peft=full", "optim.lr=1e-3"]
    assert peftlab("train", *earlier, "trainer.max_epochs=1", "name=one").status == 0
    (run,) = Path("outputs/one").iterdir()
    after = [*TINY, f"data.path={reviews}", "peft=full", f"backbone.from_run={run}", "measure_forgetting=true"]
    result = peftlab("train", *after, "trainer.max_epochs=1", "name=two")
    assert result.status == 0, result.err
    (second,) = Path("outputs/two").iterdir()
    lost = record_of(second)["forgetting"]
    assert lost["before"] == record_of(run)["metrics"]["test"]["pearson"]
    assert lost["forgetting"] == lost["before"] - lost["after"]
    assert "not its head" in result.out


def test_sts_b_is_read_with_its_scores() -> None:
    folder = Path(os.environ.get("PEFTLAB_DATA", REPOSITORY.parent / "shared/data")) / "stsb"
    if not folder.is_dir():
        pytest.skip(f"no STS-B in {folder}")
    from peftlab.data.glue import GLUE

    splits = GLUE(task="stsb", source="local", path=str(folder)).load()
    assert len(splits.test) == 1_500
    assert splits.train_kind == "official train"
    assert splits.label_names == ("value",)
    assert (min(splits.train.labels), max(splits.train.labels)) == (0.0, 5.0)
