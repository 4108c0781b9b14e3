"""What a language model chooses, against one call a token and lm-evaluation-harness's rule written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.data.batching import WEIGHT, collate
from peftlab.data.module import TextDataModule
from peftlab.data.multiple_choice import MultipleChoice
from peftlab.objectives.base import objective
from peftlab.objectives.parts.split import SplitMetrics
from peftlab.runs.predictions import predictions_table
from tests.backbones.tiny_backbones import shake, tiny_config
from tests.language.tiny import slowly_scored

WORDS = ["one", "twelve", "three", "a small boat", "yes", "no"]


@pytest.fixture(scope="module")
def backbone() -> Any:
    made = tiny_config("llama").build(0, seed=0, head="own").eval()
    shake(made)
    return made


@pytest.fixture
def data(tmp_path: Path, backbone: Any) -> TextDataModule:
    rows = []
    for number in range(11):
        options = [WORDS[(number + place) % 6] for place in range(2 + number % 3)]
        rows.append({"question": f"Which is {number}?", "options": options, "answer": (number * 5) % len(options)})
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = MultipleChoice(path=str(tmp_path), max_length=60)
    return TextDataModule(config, config.load(), backbone.tokenizer, 0)


def scored(data: TextDataModule, split: Any, backbone: Any, batch_size: int) -> tuple[dict[str, Any], torch.Tensor]:
    """The figures of a split in batches of rows that are out of order, and what is kept of each row's option."""
    learned: Any = objective("multiple_choice")
    rows, metrics = data.tokenized(split), SplitMetrics(learned, "ABCD")
    kept = torch.zeros(len(data.splits.test), 4, dtype=torch.float64)
    batches = collate(backbone.tokenizer.pad_id, learned)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(batch_size)).tolist()
    for start in range(0, len(rows), batch_size):
        numbers = order[start : start + batch_size]
        batch = batches([rows[number] for number in numbers])
        assert batch[WEIGHT] == sum(int(rows[number]["loss"].sum()) for number in numbers)
        with torch.no_grad():
            outputs = backbone(batch["input_ids"], batch["attention_mask"], **learned.asks(batch))
            loss = learned.loss(outputs, batch["labels"])
        metrics.update(outputs, batch["labels"], loss, batch[WEIGHT])
        for number, own in zip(numbers, learned.of_rows(outputs, batch["labels"]), strict=True):
            kept[rows[number]["text"]] += own
    return metrics.compute(), kept.float()


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_the_likeliest_option_by_sum_and_by_length(
    data: TextDataModule, tmp_path: Path, backbone: Any, batch_size: int
) -> None:
    by_sum = by_length = nats = tokens = 0.0
    sums, chosen = [], []
    raw = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for row in raw:
        ids = {text: backbone.tokenizer.plain([text])[0] for text in (row["question"], *row["options"], " ")}
        context = [*backbone.tokenizer.begin, *ids[row["question"]]]
        each = [slowly_scored(backbone.model, context, ids[" "] + ids[option]) for option in row["options"]]
        own = [math.fsum(one) for one in each]
        scaled = [one / len(option) for one, option in zip(own, row["options"], strict=True)]
        by_sum += own.index(max(own)) == row["answer"]
        by_length += scaled.index(max(scaled)) == row["answer"]
        nats, tokens = nats - own[row["answer"]], tokens + len(each[row["answer"]])
        sums.append(own)
        chosen.append(("ABCD"[own.index(max(own))], "ABCD"[scaled.index(max(scaled))]))
    values, kept = scored(data, "test", backbone, batch_size)
    assert (values["accuracy"], values["accuracy_by_length"]) == (by_sum / 11, by_length / 11)
    assert len({by_sum, by_length}) == 2, "the two are told apart"
    assert (values["rows"], values["tokens"]) == (11, tokens)
    assert values["loss"] == pytest.approx(nats / tokens, abs=1e-5)
    learned: Any = objective("multiple_choice")
    table = predictions_table(learned, data.splits, data.splits.test, kept).to_pydict()
    assert list(zip(table["predicted"], table["predicted_by_length"], strict=True)) == chosen
    assert [len(row) for row in table["log_likelihoods"]] == [len(row) for row in sums]
    assert [value for row in table["log_likelihoods"] for value in row] == pytest.approx(
        [value for row in sums for value in row], abs=1e-4
    )


def test_of_training_rows_the_right_option_alone_is_read(data: TextDataModule, backbone: Any) -> None:
    assert len(data.tokenized("train")) == 11
    train, _ = scored(data, "train", backbone, 4)
    test, _ = scored(data, "test", backbone, 4)
    assert train["accuracy"] is None
    assert "right option alone" in train["undefined"]["accuracy"]
    assert train["loss"] == pytest.approx(test["loss"], abs=1e-6)


def test_a_share_that_no_rows_give_is_a_contradiction() -> None:
    learned: Any = objective("multiple_choice")
    figures = {"accuracy": 0.5, "accuracy_by_length": 0.51, "loss": 1.0}
    assert [key for key, _ in learned.contradictions(figures, {"rows": {"test": 10}}, "test")] == ["accuracy_by_length"]
