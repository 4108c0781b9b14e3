"""Tasks of different objectives in one model: losses and figures, and everything a run leaves and does afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification

import peftlab as library
from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.composition import composed
from peftlab.config import RunConfig, check
from peftlab.data.base import Splits
from peftlab.errors import ConfigError
from peftlab.objectives.base import objective
from peftlab.objectives.parts.mixed import MixedTasks, MixtureMetrics, targets_of
from peftlab.objectives.parts.mixture import Mixture
from peftlab.objectives.parts.task import Task, TaskLabel
from peftlab.records.identity import run_key
from tests.conftest import Peftlab
from tests.data.two_tasks import TOPICS, write_topics
from tests.forked import Forked, peftlab_forked
from tests.objectives.scores import write_scores

Floats = npt.NDArray[np.float64]
CLASSES = sorted(TOPICS)
NAMES = [*(f"topics/{name}" for name in CLASSES), "scores/value"]


def entries(more: str = "") -> str:
    return (
        "data.tasks=[{task: topics, name: text_files, path: topics.jsonl},"
        f"{{task: scores, name: text_files, path: scores.csv, objective: regression{more}}}]"
    )


TINY = ["data=multitask", "backbone=tiny", "logger=none", "data.max_length=48", "data.batch_size=8",
        "trainer.progress_bar=false", "trainer.threads=1"]  # fmt: skip


LEARNS = ["backbone=text_classifier", "backbone.freeze=false", "peft=full", "optim=sgd", "optim.lr=0.1"]
"""A model that does, in a second."""


@pytest.fixture
def files(scratch: Path) -> list[str]:
    """Overrides of a tiny run on a classification and a regression."""
    write_topics(scratch)
    write_scores(scratch)
    return [*TINY, entries()]


def only(name: str) -> Path:
    (found,) = Path("outputs", name).iterdir()
    return found


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return found


def verified(peftlab: Peftlab, run: Path) -> None:
    done = peftlab("verify", run, "--data", "--rerun-eval")
    assert done.status == 0, done.out + done.err


# -- loss and figures, against numpy, scipy and scikit-learn -----------------------------------------------


def row_losses(outputs: Floats, labels: list[TaskLabel], smoothing: float = 0.0) -> Floats:
    """Of each row by itself: cross-entropy over three classes, or the squared error of the fourth output."""
    found = []
    for own, (task, label) in zip(outputs, labels, strict=True):
        if task == 1:
            found.append((own[3] - label) ** 2)
        else:
            log_p = own[:3] - np.log(np.exp(own[:3]).sum())
            found.append(-(1 - smoothing) * log_p[label] - smoothing * log_p.mean())
    return np.array(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_over_rows_of_each_rows_own(smoothing: float) -> None:
    mixture = Mixture({"topics": objective("classification"), "scores": objective("regression")})
    mixed = MixedTasks(mixture, (Task("topics", 0, 3), Task("scores", 3, 4, "regression")))
    outputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = [TaskLabel(1, 2.5), TaskLabel(0, 2), TaskLabel(1, -1.0), TaskLabel(0, 0), TaskLabel(0, 1),
              TaskLabel(1, 0.5), TaskLabel(0, 2)]  # fmt: skip
    targets = targets_of(mixture, [{"label": label, "input_ids": [1]} for label in labels])
    loss = mixed.mean(mixed.losses(outputs, targets, smoothing), targets)
    expected = row_losses(outputs.detach().double().numpy(), labels, smoothing).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert outputs.grad is not None
    of_scores = torch.tensor([label.task == 1 for label in labels])
    assert (outputs.grad[of_scores, :3] == 0).all(), "to the bit: no gradient in another task's block"
    assert (outputs.grad[~of_scores, 3] == 0).all()
    assert (outputs.grad[of_scores, 3] != 0).all()


def test_a_task_without_rows_is_not_in_the_mean() -> None:
    mixture = Mixture({"topics": objective("classification"), "scores": objective("regression")})
    mixed = MixedTasks(mixture, (Task("topics", 0, 3), Task("scores", 3, 4, "regression")))
    metrics = MixtureMetrics(mixed, NAMES)
    outputs = torch.tensor([[1.0, 0, 0, 9], [0, 1, 0, 9]])
    targets = targets_of(mixture, [{"label": TaskLabel(0, 0)}, {"label": TaskLabel(0, 2)}])
    metrics.update(outputs, targets, mixed.losses(outputs, targets))
    found = metrics.compute()
    assert found["task_mean"] == 0.5
    assert found["rows"] == 2
    assert found["loss"] == found["tasks"]["topics"]["loss"]
    assert found["tasks"]["scores"]["pearson"] is None
    assert found["undefined"] == {
        f"scores/{name}": "undefined: a correlation needs at least 2 rows, and there are none"
        for name in ("pearson", "spearman")
    }


def outputs_of(run: Path) -> tuple[Floats, Splits]:
    """What the trained model says of each test row, a row at a time, and the rows."""
    loaded = library.load_run(run)
    splits, model = loaded.config.data.load(), loaded.model()
    found = []
    with torch.no_grad():
        for text in splits.test.texts:
            ids = torch.tensor(model.tokenizer.encode([text], 48))
            found.append(model(ids, torch.ones_like(ids))[0])
    return torch.stack(found).double().numpy(), splits


def test_a_run_from_start_to_report(peftlab: Peftlab, files: list[str]) -> None:
    done = peftlab("train", *files, *LEARNS, "trainer.max_epochs=3", "name=m")
    assert done.status == 0, done.err
    run = only("m")
    text, record = (run / "record.json").read_text(encoding="utf-8"), record_of(run)
    assert "NaN" not in text
    assert record["data"]["label_names"] == NAMES
    # figures of the test, from the model's outputs alone
    outputs, splits = outputs_of(run)
    test, losses = record["metrics"]["test"], row_losses(outputs, splits.test.labels)
    task = np.array([label.task for label in splits.test.labels])
    true = np.array([label.label for label in splits.test.labels])
    topics, scores = test["tasks"]["topics"], test["tasks"]["scores"]
    predicted = outputs[task == 0, :3].argmax(axis=1)
    assert topics["accuracy"] == accuracy_score(true[task == 0], predicted)
    assert topics["macro_f1"] == pytest.approx(f1_score(true[task == 0], predicted, average="macro"), rel=1e-12)
    assert list(topics["per_class"]["f1"]) == CLASSES
    values = outputs[task == 1, 3]
    assert scores["pearson"] == pytest.approx(stats.pearsonr(values, true[task == 1]).statistic, abs=1e-6)
    # Equal texts in batches of other lengths differ in their last bits, or not: their ranks are tied, or none are.
    dice = np.random.default_rng(0)
    asked = [values.round(4), *(values + 1e-6 * dice.standard_normal(len(values)) for _ in range(50))]
    ranks = [stats.spearmanr(outputs, true[task == 1]).statistic for outputs in asked]
    assert min(ranks) - 1e-6 <= scores["spearman"] <= max(ranks) + 1e-6
    assert scores["mse"] == pytest.approx(((values - true[task == 1]) ** 2).mean(), rel=1e-4)
    for number, figures in enumerate((topics, scores)):
        assert figures["loss"] == pytest.approx(losses[task == number].mean(), rel=1e-4)
        assert figures["rows"] == (task == number).sum()
    assert test["loss"] == (topics["loss"] + scores["loss"]) / 2
    assert test["task_mean"] == (topics["accuracy"] + scores["pearson"]) / 2
    # what selects
    assert record["objective"]["selects"] == "task_mean"
    assert record["objective"]["tasks"]["scores"]["metrics"]["mse"] == "min"
    assert record["selection"]["rule"] == "highest validation/task_mean"
    best = max(record["history"], key=lambda row: row["validation/task_mean"])
    assert record["selection"]["epoch"] == best["epoch"]
    # what is done with it
    verified(peftlab, run)
    shown = " ".join(peftlab("evaluate", run).out.split())
    assert "the same" in shown
    assert f"scores 24 {scores['pearson']:.4f}" in shown
    for task_name, number, keys in (("topics", 0, ["label", "probabilities"]), ("scores", 1, ["value"])):
        mine = splits.of_task(splits.test, splits.tasks[number]).texts
        said = peftlab("predict", run, "--task", task_name, "--json", *(p for t in mine for p in ("--text", t)))
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert [list(row) for row in rows] == [["text", "task", *keys]] * len(mine)
        assert {row["task"] for row in rows} == {task_name}
        if number:
            assert [row["value"] for row in rows] == pytest.approx(values.tolist(), abs=1e-5)
        else:
            assert [row["label"] for row in rows] == [NAMES[index] for index in predicted]
    assert peftlab("predict", run, "--task", "scores", "--text", "good").out.startswith("scores\t")
    assert peftlab("report", "outputs/m", "--to", "table").status == 0
    table = json.loads(Path("table/report.json").read_text(encoding="utf-8"))
    assert table["best"] == "highest"
    assert f"{test['task_mean']:.4f}" in Path("table/report.md").read_text(encoding="utf-8")


def test_a_figure_that_was_changed_is_found(peftlab: Peftlab, files: list[str]) -> None:
    from peftlab.audit.consistency import inconsistencies

    assert peftlab("train", *files, "peft=head", "name=m", "trainer.max_epochs=1").status == 0
    config = library.load_run(only("m")).config
    learned, trainer = config.data.what_is_learned(), config.trainer
    assert not list(inconsistencies(record_of(only("m")), trainer, learned))
    for split, place, value, about in (
        ("test", ("task_mean",), 0.123, "metrics.test.task_mean"),
        ("test", ("tasks", "topics", "accuracy"), 0.123, "metrics.test.tasks.topics.accuracy"),
        ("test", ("tasks", "scores", "mse"), 1e9, "metrics.test.tasks.scores.mse"),
        ("test", ("tasks", "scores", "pearson"), None, "metrics.test.tasks.scores.pearson"),
        ("validation", ("tasks", "scores", "spearman"), 0.123, "metrics.validation.tasks.scores.spearman"),
        ("validation", ("tasks", "topics", "per_class", "f1", "space"), 0.123, "metrics.validation.tasks.topics"),
    ):
        record = record_of(only("m"))
        inner = record["metrics"][split]
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        found = [finding.about for finding in inconsistencies(record, trainer, learned)]
        assert any(name.startswith(about) for name in found), (place, found)


# -- methods, resuming, processes ------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["topics", "scores"])
def test_prompts_of_each_task_and_a_task_alone_for_hf_peft(peftlab: Peftlab, files: list[str], task: str) -> None:
    more = ["peft=multitask_prompt", "peft.length=4", "peft.position=before", "optim.lr=0.05", "trainer.max_epochs=1"]
    assert peftlab("train", *files, *more, "name=m").status == 0
    run, text = only("m"), "the team won a good match"
    verified(peftlab, run)
    written = peftlab("export", run, "--task", task, "--to", "there", "--base", "base")
    assert written.status == 0, written.err
    base: Any = AutoModelForSequenceClassification.from_pretrained("base")
    model: Any = peft.PeftModel.from_pretrained(base, "there").eval()
    ids = torch.tensor(ByteTokenizer().encode([text], 48))
    with torch.no_grad():
        named = {"task_ids": torch.zeros(1, dtype=torch.long)}
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **named).logits[0]
    found = json.loads(peftlab("predict", run, "--task", task, "--text", text, "--json").out)
    card = Path("there/README.md").read_text(encoding="utf-8")
    if task == "scores":
        assert outputs.tolist() == pytest.approx([found["value"]], abs=1e-5)
        assert base.config.problem_type == "regression"
        figures = record_of(run)["metrics"]["test"]["tasks"]["scores"]
        assert f"| test Pearson | {figures['pearson']:.4f} (24 texts) |" in card
    else:
        assert outputs.softmax(dim=0).tolist() == pytest.approx(list(found["probabilities"].values()), abs=1e-5)
        assert base.config.problem_type == "single_label_classification"
        assert "| test accuracy |" in card


def test_a_killed_run_resumes_to_the_same_bits(peftlab: Peftlab, files: list[str]) -> None:
    more = ["peft=lora", "trainer.max_epochs=5", "data.mixing=uniform", "data.epoch_rows=64", "backbone.dropout=0.1"]
    assert peftlab("train", *files, *more, "output_dir=outputs/undisturbed", "name=t").status == 0
    undisturbed = only("undisturbed/t")
    Forked("train", *files, *more, "name=killed").killed_at("epoch 2/5")
    killed = Path("outputs/killed") / undisturbed.name
    again = peftlab("train", *files, *more, "name=killed")
    assert again.status == 0, again.err
    assert "resuming from" in again.out
    assert (killed / "adapter.safetensors").read_bytes() == (undisturbed / "adapter.safetensors").read_bytes()
    assert record_of(killed)["metrics"] == record_of(undisturbed)["metrics"]


def test_two_processes_one_of_which_may_have_no_row_of_a_task(peftlab: Peftlab, files: list[str]) -> None:
    more = ["peft=full", "trainer.max_epochs=1", "data.batch_size=4", "data.eval_batch_size=3", "data.limit_val=1"]
    ranks = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    peftlab_forked("train", *files, *more, "name=two", *ranks)
    two = record_of(only("two"))
    assert {name: own["rows"] for name, own in two["metrics"]["validation"]["tasks"].items()} == {
        "topics": 1, "scores": 1,
    }  # fmt: skip
    assert two["metrics"]["validation"]["task_mean"] is None
    assert two["metrics"]["validation"]["undefined"]["task_mean"] == "undefined: so is scores/pearson"
    again = json.loads(peftlab("evaluate", only("two"), "--json").out)["metrics"]
    assert again["tasks"]["scores"]["pearson"] == pytest.approx(two["metrics"]["test"]["tasks"]["scores"]["pearson"])
    assert again["tasks"]["topics"]["accuracy"] == two["metrics"]["test"]["tasks"]["topics"]["accuracy"]


# -- configs ---------------------------------------------------------------------------------------------


def config(*overrides: str) -> RunConfig:
    return check(composed([*TINY, *overrides]))


def test_a_mixture_has_one_key_however_it_is_said(files: list[str]) -> None:
    plain = config(entries())
    assert plain.trainer.monitor == "task_mean"
    said_otherwise = (
        "data.tasks=[{task: topics, name: text_files, path: topics.jsonl, objective: classification},"
        "{task: scores, name: text_files, path: scores.csv}]"
    )
    assert run_key(config(said_otherwise, "data.objective=regression")) == run_key(plain)
    two = "data.tasks=[{task: a, name: text_files, path: scores.csv},{task: b, name: text_files, path: scores.csv}]"
    each = two.replace("scores.csv}", "scores.csv, objective: regression}")
    assert run_key(config(two, "data.objective=regression")) == run_key(config(each))
    assert run_key(config(each)) != run_key(plain)


def test_what_cannot_be_asked_of_a_mixture(files: list[str]) -> None:
    assert config(entries(), "trainer.monitor=scores/mse").trainer.monitor == "scores/mse"
    with pytest.raises(ConfigError, match="Did you mean 'scores/pearson'"):
        config(entries(), "trainer.monitor=scores/person")
    assert config(entries(), "trainer.label_smoothing=0.1").trainer.label_smoothing == 0.1
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 has no meaning for several tasks"):
        config("data.tasks=[{task: a, name: text_files, path: scores.csv}]", "data.objective=regression",
               "trainer.label_smoothing=0.1")  # fmt: skip


def test_one_tasks_own_figure_can_select(peftlab: Peftlab, files: list[str]) -> None:
    done = peftlab("train", *files, "peft=bitfit", "name=m", "trainer.max_epochs=2", "trainer.monitor=scores/mse")
    assert done.status == 0, done.err
    record = record_of(only("m"))
    assert record["selection"]["rule"] == "lowest validation/scores/mse"
    best = min(record["history"], key=lambda row: row["validation/scores/mse"])
    assert record["selection"]["epoch"] == best["epoch"]
    verified(peftlab, only("m"))


def test_other_objectives_are_refused_in_an_evaluation(peftlab: Peftlab, files: list[str]) -> None:
    assert peftlab("train", *files, "peft=head", "name=m", "trainer.max_epochs=1").status == 0
    alone = peftlab("evaluate", only("m"), "data=text_files", "data.path=topics.jsonl")
    assert alone.status == 2
    assert "several tasks" not in alone.err
    assert "the run learned a classification, whose labels name classes; a regression" in alone.err
