"""Runs on several tasks: the loss, the heads, the figures, and everything a run leaves and does afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch.nn import functional as F

from peftlab.objectives.base import objective
from peftlab.objectives.parts.blocks import MultitaskMetrics, TaskBlocks
from peftlab.objectives.parts.task import Task
from peftlab.peft.base import attach
from peftlab.peft.full import FullFineTuning
from peftlab.training.config import ScheduleConfig
from peftlab.training.module import TrainingModule
from peftlab.training.optim import SGD
from tests.backbones.tiny_backbones import shake, tiny
from tests.conftest import Peftlab
from tests.data.two_tasks import CLASSES, SIZES, entries, overrides, write_topics
from tests.forked import Forked, peftlab_forked

TASKS = (Task("a", 0, 2), Task("b", 2, 6), Task("c", 6, 9))
TASK_OF_CLASS = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2])


def scores(rows: int = 40, classes: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and labels of all tasks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, requires_grad=True)
    return logits, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_each_tasks_own_cross_entropy(smoothing: float) -> None:
    logits, labels = scores()
    task_ids = TASK_OF_CLASS[labels]
    blocks = TaskBlocks(TASKS)
    losses = blocks.losses(blocks.masked(logits, task_ids), labels, task_ids, smoothing)
    for number, task in enumerate(TASKS):
        rows = task_ids == number
        own = logits[rows][:, task.first : task.stop]
        alone = F.cross_entropy(own, labels[rows] - task.first, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(losses[rows], alone)
    losses.mean().backward()
    assert logits.grad is not None
    foreign = ~blocks.own[task_ids]
    assert (logits.grad[foreign] == 0).all(), "to the bit"
    assert (logits.grad[~foreign] != 0).all()


def module_on(kind: str) -> TrainingModule:
    backbone = tiny(kind, num_labels=9)
    shake(backbone)
    adapter = attach(backbone, FullFineTuning(), seed=0)
    schedule: Any = ScheduleConfig
    return TrainingModule(
        adapter,
        SGD(lr=0.1),
        schedule,
        objective=objective("classification"),
        label_names=[str(n) for n in range(9)],
        seed=0,
        tasks=TASKS,
    ).eval()


@pytest.mark.parametrize(
    ("kind", "head"), [("bert", "classifier"), ("gpt2", "score"), ("roberta", "classifier.out_proj")]
)
def test_a_tasks_block_of_the_head_learns_from_its_own_rows_alone(kind: str, head: str) -> None:
    module = module_on(kind)
    layer = module.backbone.model.get_submodule(head)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (6, 9), generator=generator)
    labels = torch.tensor([0, 3, 1, 2, 1, 4])  # of the tasks a and b
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "task_ids": TASK_OF_CLASS[labels],
    }  # fmt: skip
    module.computed(batch)["loss"].backward()
    together = layer.weight.grad.clone()
    assert (together[6:] == 0).all(), "no row of task c, no gradient, to the bit"
    rows = TASK_OF_CLASS[labels] == 1
    layer.weight.grad = None
    module.computed({name: part[rows] for name, part in batch.items()})["loss"].backward()
    torch.testing.assert_close(together[2:6], layer.weight.grad[2:6] * rows.sum() / len(rows))
    assert (layer.weight.grad[:2] == 0).all()


def test_figures_against_scikit_learn() -> None:
    metrics, blocks = MultitaskMetrics(TASKS), TaskBlocks(TASKS)
    logits, labels = scores(101, seed=3)
    labels[:20] = labels[:20] % 2  # the first batch has rows of one task only
    task_ids = TASK_OF_CLASS[labels]
    masked = blocks.masked(logits.detach(), task_ids)
    for part in (slice(0, 20), slice(20, 27), slice(27, 101)):
        losses = blocks.losses(masked[part], labels[part], task_ids[part])
        metrics.update(masked[part], labels[part], losses)
    found = metrics.compute()
    expected: dict[str, list[float]] = {"accuracy": [], "macro_f1": [], "loss": []}
    for number, task in enumerate(TASKS):
        rows = task_ids == number
        true = (labels[rows] - task.first).tolist()
        own = logits.detach()[rows][:, task.first : task.stop]
        predicted, own_classes = own.argmax(dim=1).tolist(), list(range(len(task.classes)))
        figures = {
            "accuracy": accuracy_score(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro", labels=own_classes),
            "loss": log_loss(true, own.double().softmax(dim=1).numpy(), labels=own_classes),
        }
        assert found["tasks"][task.name]["rows"] == int(rows.sum())
        for name, value in figures.items():
            assert found["tasks"][task.name][name] == pytest.approx(value, rel=1e-6), (task.name, name)
            expected[name].append(value)
    for name, values in expected.items():
        assert found[name] == pytest.approx(sum(values) / 3, rel=1e-6)
    assert found["rows"] == 101
    metrics.update(masked[:20], labels[:20], torch.ones(20))
    assert metrics.compute()["rows"] == 20, "it has started anew"


def test_a_mean_is_over_the_tasks_that_have_rows() -> None:
    metrics = MultitaskMetrics(TASKS)
    labels = torch.tensor([2, 3, 6, 6])
    masked = TaskBlocks(TASKS).masked(F.one_hot(torch.tensor([2, 2, 6, 6]), 9).float(), TASK_OF_CLASS[labels])
    metrics.update(masked, labels, torch.tensor([1.0, 3.0, 5.0, 7.0]))
    found = metrics.compute()
    assert found["accuracy"] == (0.5 + 1.0) / 2
    assert found["loss"] == (2.0 + 6.0) / 2
    assert found["tasks"]["a"] == {"loss": 0.0, "accuracy": 0.0, "macro_f1": 0.0, "rows": 0}


# -- whole runs --------------------------------------------------------------------------------------


@pytest.fixture
def common(scratch: Path, reviews: Path) -> list[str]:
    """Overrides of a tiny run on two tasks."""
    return overrides(reviews, write_topics(scratch))


def only(name: str) -> Path:
    (record,) = Path("outputs").glob(f"{name}/*/record.json")
    return record.parent


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_what_a_run_leaves(peftlab: Peftlab, common: list[str]) -> None:
    result = peftlab("train", *common, "peft=multitask_prompt", "peft.length=4", "trainer.max_epochs=2", "name=t")
    assert result.status == 0, result.err
    folder = only("t")
    record = record_of(folder)
    assert record["config"]["peft"]["num_tasks"] == 2
    assert record["data"]["label_names"] == CLASSES
    for split, index in (("validation", 1), ("test", 2)):
        figures = record["metrics"][split]
        assert {name: task["rows"] for name, task in figures["tasks"].items()} == {n: SIZES[n][index] for n in SIZES}
        for name in ("accuracy", "macro_f1", "loss"):
            assert figures[name] == sum(task[name] for task in figures["tasks"].values()) / 2
        assert list(figures["per_class"]["f1"]) == CLASSES
    assert record["metrics"]["test"]["rows"] == 36
    assert sum(row["train_rows"] for row in record["history"]) == 2 * 129
    chosen = record["history"][record["selection"]["epoch"]]
    assert chosen["validation/accuracy"] == max(row["validation/accuracy"] for row in record["history"])
    for task in SIZES:
        assert chosen[f"validation/{task}/accuracy"] == record["metrics"]["validation"]["tasks"][task]["accuracy"]
        assert chosen[f"train/{task}/rows"] == SIZES[task][0]
    assert (folder / "metrics.csv").read_text().splitlines()[0].endswith("validation/topics/rows")
    printed = " ".join(result.out.split())
    for task, kind in (("reviews", "reviews.jsonl"), ("topics", "topics.jsonl")):
        figures = record["metrics"]["test"]["tasks"][task]
        assert f"{task}: hold-out of {kind} {figures['rows']} {figures['accuracy']:.4f}" in printed
    assert f"test, mean of the tasks 36 {record['metrics']['test']['accuracy']:.4f}" in printed
    # Tested again from the folder alone it is the same, and the record is found consistent.
    again = json.loads(peftlab("evaluate", folder, "--json").out)
    assert again["metrics"] == record["metrics"]["test"]
    shown = " ".join(peftlab("evaluate", folder).out.split())
    assert f"topics 12 {record['metrics']['test']['tasks']['topics']['accuracy']:.4f}" in shown
    fewer = json.loads(peftlab("evaluate", folder, "--json", "data.limit_test=6").out)
    assert {name: task["rows"] for name, task in fewer["metrics"]["tasks"].items()} == {"reviews": 6, "topics": 6}


def test_predicting(peftlab: Peftlab, common: list[str], reviews: Path) -> None:
    assert (
        peftlab("train", *common, "peft=multitask_prompt", "peft.length=4", "name=t", "trainer.max_epochs=1").status
        == 0
    )
    folder = only("t")
    rows = [json.loads(line) for line in (reviews.parent / "topics.jsonl").read_text().splitlines()]
    texts = [part for row in rows for part in ("--text", row["text"])]
    said = peftlab("predict", folder, "--task", "topics", "--json", *texts)
    assert said.status == 0, said.err
    for line, row in zip(said.out.splitlines(), rows, strict=True):
        found = json.loads(line)
        assert found["text"] == row["text"]
        assert list(found["probabilities"]) == CLASSES[2:]
        assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert found["label"] == max(found["probabilities"], key=found["probabilities"].__getitem__)
    other = peftlab("predict", folder, "--task", "reviews", "--text", "a dull film")
    assert other.out.startswith(("a dull film\treviews/bad\t", "a dull film\treviews/good\t"))


def test_the_task_must_be_said_where_there_are_several(peftlab: Peftlab, common: list[str], reviews: Path) -> None:
    assert peftlab("train", *common, "peft=bitfit", "name=many", "trainer.max_epochs=1").status == 0
    one = ["data=text_files", f"data.path={reviews}", "backbone=tiny", "logger=none", "data.max_length=48"]
    assert peftlab("train", *one, "name=one", "trainer.max_epochs=1").status == 0
    for verb in (["predict", "--text", "x"], ["export", "--to", "there"]):
        call = [verb[0], *verb[1:]]
        for run, task, parts in (
            ("many", [], ["several tasks", "--task NAME", "reviews, topics"]),
            ("many", ["--task", "topic"], ["--task topic", "Did you mean 'topics'?"]),
            ("one", ["--task", "topics"], ["--task topics", "one task", "Leave --task out"]),
        ):
            told = peftlab(call[0], only(run), *call[1:], *task)
            assert told.status == 2
            for part in parts:
                assert part in told.err
    assert not Path("there").exists()


def test_a_killed_run_resumes_to_the_same_bits(peftlab: Peftlab, common: list[str]) -> None:
    more = [
        "peft=multitask_prompt", "peft.length=4", "trainer.max_epochs=6", "data.mixing=square_root",
        "data.epoch_rows=64", "backbone.dropout=0.1",
    ]  # fmt: skip
    assert peftlab("train", *common, *more, "output_dir=outputs/undisturbed", "name=t").status == 0
    undisturbed = only("undisturbed/t")
    Forked("train", *common, *more, "name=killed").killed_at("epoch 2/6")
    killed = Path("outputs/killed") / undisturbed.name
    assert not (killed / "record.json").exists()
    again = peftlab("train", *common, *more, "name=killed")
    assert again.status == 0, again.err
    assert "resuming from" in again.out
    assert (killed / "adapter.safetensors").read_bytes() == (undisturbed / "adapter.safetensors").read_bytes()
    one, two = record_of(killed), record_of(undisturbed)
    assert one["metrics"] == two["metrics"]
    for row, other in zip(one["history"], two["history"], strict=True):
        assert {**row, "train_seconds": 0} == {**other, "train_seconds": 0}


def test_two_processes(peftlab: Peftlab, common: list[str]) -> None:
    more = [
        "peft=multitask_prompt",
        "peft.length=4",
        "trainer.max_epochs=1",
        "data.mixing=uniform",
        "data.epoch_rows=128",
    ]
    peftlab_forked(
        "train", *common, *more, "name=ddp", "data.batch_size=4", "trainer.devices=2", "trainer.strategy=ddp",
        "trainer.accelerator=cpu", "data.eval_batch_size=3",
    )  # fmt: skip
    assert peftlab("train", *common, *more, "name=one").status == 0
    two, one = record_of(only("ddp")), record_of(only("one"))
    for split, index in (("validation", 1), ("test", 2)):
        rows = {name: task["rows"] for name, task in two["metrics"][split]["tasks"].items()}
        assert rows == {name: SIZES[name][index] for name in SIZES}
    # The two processes together have the rows that one process has.
    for name in ("train/reviews/rows", "train/topics/rows", "step"):
        assert two["history"][0][name] == one["history"][0][name]
    assert abs(two["history"][0]["train/loss"] - one["history"][0]["train/loss"]) < 0.02
    again = json.loads(peftlab("evaluate", only("ddp"), "--json").out)["metrics"]
    assert again["accuracy"] == two["metrics"]["test"]["accuracy"]
    assert abs(again["loss"] - two["metrics"]["test"]["loss"]) < 1e-6


@pytest.mark.parametrize(
    "method",
    [
        ["peft=lora"],
        ["peft=full"],
        ["peft=head"],
        ["peft=prefix_tuning"],
        ["peft=prompt_tuning", "peft.length=4"],
        ["peft=compose", "peft.methods=[{name: multitask_prompt, length: 4},bitfit]"],
        ["peft=full", "backbone=text_classifier"],
        ["peft=lora", "trainer.label_smoothing=0.1", "trainer.precision=bf16-mixed"],
    ],
    ids=" ".join,
)
def test_other_methods_train_on_several_tasks(peftlab: Peftlab, common: list[str], method: list[str]) -> None:
    result = peftlab("train", *common, *method, "name=t", "trainer.max_epochs=1")
    assert result.status == 0, result.err
    record = record_of(only("t"))
    assert list(record["metrics"]["test"]["tasks"]) == ["reviews", "topics"]
    assert record["metrics"]["test"]["loss"] < 5
    again = json.loads(peftlab("evaluate", only("t"), "--json").out)
    assert again["metrics"] == record["metrics"]["test"]


def test_the_tasks_are_learnt(peftlab: Peftlab, common: list[str]) -> None:
    result = peftlab(
        "train", *common, "backbone=text_classifier", "backbone.freeze=false", "peft=full", "optim.lr=0.01", "name=t",
        "trainer.max_epochs=5",
    )  # fmt: skip
    assert result.status == 0, result.err
    tasks = record_of(only("t"))["metrics"]["test"]["tasks"]
    assert tasks["reviews"]["accuracy"] > 0.9
    assert tasks["topics"]["accuracy"] > 0.9


def test_starting_from_a_run_on_several_tasks(peftlab: Peftlab, common: list[str], reviews: Path) -> None:
    assert peftlab("train", *common, "peft=lora", "name=first", "trainer.max_epochs=1").status == 0
    first = only("first")
    start = [f"backbone.from_run={first}", "trainer.max_epochs=1"]
    assert peftlab("train", *common, *start, "peft=lora", "name=same").status == 0
    assert record_of(only("same"))["backbone"]["from_run"]["head"] == "taken over"
    one_task = [*common[2:], "data=text_files", f"data.path={reviews}"]
    more = ["peft=bitfit", "measure_forgetting=true", "name=other"]
    result = peftlab("train", *one_task, *start, *more)
    assert result.status == 0, result.err
    record = record_of(only("other"))
    assert record["backbone"]["from_run"]["head"] == "new"
    assert record["forgetting"]["before"] == record_of(first)["metrics"]["test"]["accuracy"]
    prompts = ["peft=multitask_prompt", "peft.length=4", "measure_forgetting=true", "name=refused"]
    refused = peftlab("train", *common, *start, *prompts)
    assert refused.status == 2
    assert "measure_forgetting" in refused.err
    prompted = peftlab("train", *common, "peft=multitask_prompt", "peft.length=4", "name=mpt", "trainer.max_epochs=1")
    assert prompted.status == 0
    unmergeable = peftlab("train", *common, f"backbone.from_run={only('mpt')}", "peft=lora", "name=refused")
    assert unmergeable.status == 2
    assert "cannot be merged" in unmergeable.err


def test_other_tasks_are_refused_in_an_evaluation(peftlab: Peftlab, common: list[str], reviews: Path) -> None:
    assert peftlab("train", *common, "peft=head", "name=t", "trainer.max_epochs=1").status == 0
    topics = reviews.parent / "topics.jsonl"
    swapped = peftlab("evaluate", only("t"), entries(topics, reviews))
    assert swapped.status == 2
    assert "reviews/bad" in swapped.err
    alone = peftlab("evaluate", only("t"), "data=text_files", f"data.path={reviews}")
    assert alone.status == 2
