"""Classification: one of several named classes a row, by cross-entropy. Imports no torch.

    loss = - log softmax(z)[y]          z (C) the outputs, y the class

F1 and the correlation are told in :mod:`peftlab.objectives.parts.confusion`, labels in ``class_labels``, several
tasks in ``blocks``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftlab.errors import DataError, listed
from peftlab.objectives.base import Contradiction, Figure, Objective
from peftlab.objectives.parts.class_checks import contradictions
from peftlab.objectives.parts.class_labels import (
    LabelSet,
    canonical,
    differing_in_case,
    discover_labels,
    require_visible_differences,
    tell_differing_in_case,
)
from peftlab.objectives.parts.confusion import from_confusion

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.raw_rows import RawRows


class Classification(Objective, name="classification"):
    """A class a row."""

    about = "a classification, whose labels name classes"
    figures = (
        Figure("accuracy", "accuracy", "max", 0.0, 1.0, share_of_rows=True),
        Figure("macro_f1", "macro-F1", "max", 0.0, 1.0),
        Figure("matthews", "Matthews correlation", "max", -1.0, 1.0, each_epoch=False),
    )
    selects = "accuracy"
    details = ("per_class",)
    smooths_labels = True
    loss_title = "cross-entropy loss"
    columns = MappingProxyType(
        {
            "gold": "name of the class that the row is labelled with",
            "predicted": "name of the likeliest class, the first of several",
            "probabilities": "of each class, float32, in the order of the record's data.label_names",
        }
    )

    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> LabelSet:
        """The classes ``names``, or the distinct labels of ``train``, sorted."""
        found = discover_labels(train) if names is None else tuple(names)
        repeated = [name for name, count in Counter(map(canonical, found)).items() if count > 1]
        if repeated or None in map(canonical, found):
            raise DataError(f"data.labels={list(found)}: names must be distinct and not empty.")
        source = "data.labels" if names is not None else f"{train[0].name}, column {train[0].label_column}"
        require_visible_differences(found, source)
        if names is None:
            tell_differing_in_case(train, found)
        # A row without a label, which whoever reads the rows names, may be why there are so few.
        lacking = names is None and any(canonical(label) is None for table in train for label in table.labels)
        if len(found) < 2 and not (found and lacking and train[0].editable):
            raise DataError(f"{source}: only {len(found)} label ({listed(found)}); at least 2 are needed.")
        return LabelSet(found, aliases, declared=names is not None)

    def not_learned(self, labels: Sequence[int], names: Sequence[str]) -> list[str]:
        """Classes that no row has."""
        there = set(labels)
        return [name for index, name in enumerate(names) if index not in there]

    def same_but_for_case(self, lost: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """See :meth:`Objective.same_but_for_case`."""
        alike = {name: found for found in differing_in_case(names) for name in found}
        kept = {name: [other for other in alike.get(name, []) if other not in lost] for name in lost}
        return {name: others[0] for name, others in kept.items() if others}

    def strata(self, labels: Sequence[int]) -> Sequence[int]:
        """Each class keeps its share."""
        return labels

    def label_facts(self, splits: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
        """How many rows each class has."""
        counts = {split: Counter(labels) for split, labels in splits.items()}
        return {
            "rows_by_label": {
                split: {name: of[index] for index, name in enumerate(names)} for split, of in counts.items()
            }
        }

    def labels_in_words(self, labels: Sequence[int], names: Sequence[str]) -> str:
        """``negative 12,500, positive 12,500``; of more than two also how many they are."""
        counts = Counter(labels)
        rows = ", ".join(f"{name} {counts[index]:,}" for index, name in enumerate(names))
        return f"{len(names)} labels: {rows}" if len(names) > 2 else rows

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Indices of classes, (B,) int64."""
        import torch

        return torch.tensor([row["label"] for row in rows], dtype=torch.int64)

    def loss(self, outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy; ``label_smoothing`` is the share of the target that is spread over all classes."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)

    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        """Whole numbers, so that the figures are exact quotients, whatever the batches and processes."""
        from peftlab.objectives.parts.split import ConfusionMatrix

        return {"confusion": ConfusionMatrix(len(names))}

    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Tensor) -> None:
        """Count what was predicted of what."""
        states["confusion"].update(outputs.argmax(dim=-1), labels)  # type: ignore[operator]

    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :func:`~peftlab.objectives.computing.confusion.from_confusion`."""
        return from_confusion(states["confusion"].tolist())

    def named(self, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Recall and F1 of each class by its name."""
        by_name = {name: dict(zip(names, of, strict=True)) for name, of in values["per_class"].items()}
        return values | {"per_class": by_name}

    def detail_rows(self, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
        """A line a class: its recall and its F1."""
        for name, recall in values["per_class"]["accuracy"].items():
            yield name, {"recall": recall, "F1": values["per_class"]["f1"][name]}

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """``label`` and ``probabilities`` (label → probability)."""
        for probabilities in outputs.softmax(dim=-1).tolist():
            best = max(range(len(names)), key=probabilities.__getitem__)
            yield {"label": names[best], "probabilities": dict(zip(names, probabilities, strict=True))}

    def gold(self, label: int, names: Sequence[str]) -> str:
        """The name of the class."""
        return names[label]

    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        """The label and its probability."""
        return f"{predicted['label']}\t{predicted['probabilities'][predicted['label']]:.4f}"

    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        """The classes."""
        return "classes, in order", ", ".join(names)

    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Names, and that a row has one of them."""
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """Accuracy, macro-F1 and the figures of each class of one split, against each other."""
        return contradictions(figures, data, split)
