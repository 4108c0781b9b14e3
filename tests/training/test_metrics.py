"""Metrics against scikit-learn, in batches of unequal size."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score
from torch.nn import functional as F

from peftlab.objectives.base import objective
from peftlab.objectives.parts.confusion import from_confusion
from peftlab.objectives.parts.split import KeptOutputs, SplitMetrics, grown


@pytest.mark.parametrize("classes", [2, 5])
def test_they_equal_scikit_learns(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(101, classes, generator=generator)
    labels = torch.randint(classes, (101,), generator=generator)
    metrics = SplitMetrics(objective("classification"), [str(number) for number in range(classes)])
    for start, end in ((0, 1), (1, 64), (64, 101)):
        part = slice(start, end)
        metrics.update(logits[part], labels[part], F.cross_entropy(logits[part], labels[part]))
    values = metrics.compute()
    predictions = logits.argmax(-1)
    assert values["rows"] == 101
    assert values["accuracy"] == accuracy_score(labels, predictions)
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-15)
    assert values["per_class"]["f1"] == pytest.approx(f1_score(labels, predictions, average=None), abs=1e-15)
    assert values["per_class"]["accuracy"] == pytest.approx(recall_score(labels, predictions, average=None), abs=1e-15)
    assert values["matthews"] == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-14)
    assert values["loss"] == pytest.approx(float(F.cross_entropy(logits.double(), labels)), abs=1e-6)
    metrics.update(logits[:1], labels[:1], torch.tensor(0.5))
    assert metrics.compute()["rows"] == 1, "they start anew"


@pytest.mark.parametrize("counts", [[[3, 0], [5, 0]], [[4, 0], [0, 0]], [[0, 0], [0, 0]]])
def test_without_two_classes_nothing_correlates(counts: list[list[int]]) -> None:
    assert from_confusion(counts)["matthews"] == 0


def test_a_class_that_does_not_occur_is_left_out_of_macro_f1() -> None:
    assert from_confusion([[3, 1, 0], [0, 4, 0], [0, 0, 0]])["macro_f1"] == pytest.approx(
        f1_score([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1], average="macro")
    )


def test_rows_kept_over_batches_lie_in_one_block_of_memory() -> None:
    """A small block a batch, among the large ones that a forward pass frees, makes a process grow with every batch."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(number, 3, generator=generator) for number in (7, 0, 4096, 1, 5000, 64, 64)]
    held: list[torch.Tensor] = []
    moved = 0
    for number, batch in enumerate(batches):
        before = held[0].data_ptr() if held else None
        held = [grown(held, batch)]
        assert torch.equal(held[0], torch.cat(batches[: number + 1]))
        assert held[0].data_ptr() != batch.data_ptr()
        moved += before is not None and held[0].data_ptr() != before
    assert moved == 2  # where 4,103 rows came to more than 4,096, and 9,104 to more than twice as many as these


def test_kept_outputs_start_anew_after_a_reset() -> None:
    kept = KeptOutputs(2)
    for _ in range(2):
        kept.update([2, 0], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        kept.update([1], torch.tensor([[5.0, 6.0]]))
        assert [len(kept.rows), len(kept.outputs)] == [1, 1]
        assert kept.compute().tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]
        kept.reset()
