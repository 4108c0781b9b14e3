"""Regression: a number a row, by the squared error. Imports no torch.

    loss = (z - y)²        z the one output, y the label, in float32

Labels are taken as they are, so that errors and predictions are in the labels' own unit: the head's bias learns their
mean in a few steps. Correlations and the error are computed in float64 from every prediction of a split (scipy), sorted
first, so that they depend neither on batches nor on processes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftlab.errors import DataError
from peftlab.objectives.base import Contradiction, Figure, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.raw_rows import RawRows

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_LARGEST = 3.4e38
"""What float32 holds."""


class Regression(Objective, name="regression"):
    """A number a row."""

    about = "a regression, whose labels are numbers"
    figures = (
        Figure("pearson", "Pearson", "max", -1.0, 1.0),
        Figure("spearman", "Spearman", "max", -1.0, 1.0),
        Figure("mse", "MSE", "min", 0.0),
    )
    selects = "pearson"
    loss_title = "mean squared error"
    columns = MappingProxyType({"gold": "the row's number", "value": "the predicted number, float32"})

    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> Numbers:
        """Cells are numbers; there is nothing to declare."""
        if names is not None:
            raise DataError(
                f"data.labels={list(names)} names classes, but data.objective=regression reads numbers. Leave "
                "data.labels=null, or choose data.objective=classification."
            )
        return Numbers()

    def label_facts(self, splits: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
        """Range, mean and variance of each split's labels."""
        return {"labels": {split: _spread(labels) for split, labels in splits.items()}}

    def labels_in_words(self, labels: Sequence[float], names: Sequence[str]) -> str:
        """``labels 0 to 5, mean 2.7``."""
        return f"labels {min(labels):g} to {max(labels):g}, mean {math.fsum(labels) / len(labels):.4g}"

    def target(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Numbers, (B,) float32."""
        import torch

        return torch.tensor([row["label"] for row in rows], dtype=torch.float32)

    def loss(self, outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean squared error of ``outputs`` (B, 1)."""
        from torch.nn import functional as F

        return F.mse_loss(outputs.squeeze(-1), labels)

    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        """Every prediction, and the label beside it."""
        from peftlab.objectives.parts.split import Collected

        return {"rows": Collected(2)}

    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Tensor) -> None:
        """Keep the batch."""
        states["rows"].update(outputs.squeeze(-1), labels)  # type: ignore[operator]

    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """Pearson's and Spearman's correlation, the mean squared error, and the number of rows."""
        from scipy import stats  # type: ignore[import-untyped]

        rows = states["rows"]  # (N, 2)
        predictions, labels = rows[:, 0].numpy(), rows[:, 1].numpy()
        found: dict[str, Any] = {"mse": float(((predictions - labels) ** 2).mean()) if len(rows) else None}
        if why := _why_undefined(predictions.tolist(), labels.tolist()):
            found |= {"pearson": None, "spearman": None, "undefined": {"pearson": why, "spearman": why}}
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", stats.NearConstantInputWarning)  # a model that has hardly begun
                correlations = {
                    "pearson": stats.pearsonr(predictions, labels).statistic,
                    "spearman": stats.spearmanr(predictions, labels).statistic,
                }
            # rounding may carry a perfect correlation a bit beyond 1
            found |= {name: max(-1.0, min(1.0, float(value))) for name, value in correlations.items()}
        return {"pearson": found.pop("pearson"), "spearman": found.pop("spearman"), **found, "rows": len(rows)}

    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """``value``: the number."""
        for value in outputs.squeeze(-1).tolist():
            yield {"value": value}

    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        """The number."""
        return f"{predicted['value']:.4f}"

    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        """One number."""
        return "output", "one number, in the unit of the labels"

    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        """One output, which is a value."""
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)},
                "problem_type": "regression"}  # fmt: skip

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """The error against the loss, which is the same in float32, and against the correlation and the labels.

        No prediction that correlates with the labels by r has a mean squared error below (1 - r²) of their variance.
        """
        error, pearson = figures["mse"], figures["pearson"]
        if error is not None and not math.isclose(error, figures["loss"], rel_tol=1e-3, abs_tol=1e-6):
            yield "mse", f"{error}, but the loss, which is the same in float32, is {figures['loss']}"
        variance = data.get("labels", {}).get(split, {}).get("variance")
        if error is not None and pearson is not None and variance is not None:
            least = (1 - pearson**2) * variance
            if error < least * (1 - 1e-6) - 1e-9:
                yield (
                    "pearson",
                    f"{pearson}, but then the mean squared error of labels with the variance {variance:.6g} is at "
                    f"least {least:.6g}, and it is {error}",
                )


class Numbers:
    """Reads cells that are numbers."""

    names = ("value",)

    def read(self, table: RawRows, row: int) -> float:
        """The number in the cell of ``row``."""
        value = table.labels[row]
        about = f"{table.place(row)}: the label"
        column = f"(column '{table.label_column}')"
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{about} {column} is missing. Remove the row or fill in its label.")
        if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
            raise DataError(f"{about} {value!r} {column} has a decimal comma. Write {value.strip().replace(',', '.')}.")
        if isinstance(value, bool) or not _is_number(value):
            raise DataError(
                f"{about} {value!r} {column} is no number, and data.objective=regression needs numbers such as 3.5. "
                "For names of classes choose data.objective=classification."
            )
        number = float(value)  # type: ignore[arg-type]
        if not abs(number) <= _LARGEST:
            raise DataError(f"{about} {value!r} {column} is infinite, or too large for float32. Give a finite number.")
        return number


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return _NUMBER.fullmatch(text) is not None or text.lower().lstrip("+-") in ("inf", "infinity")
    return isinstance(value, int | float | Decimal)


def _spread(labels: Sequence[float]) -> dict[str, float]:
    """Smallest, largest, mean and (population) variance."""
    mean = math.fsum(labels) / len(labels)
    variance = math.fsum((label - mean) ** 2 for label in labels) / len(labels)
    return {"min": min(labels), "max": max(labels), "mean": mean, "variance": variance}


def _why_undefined(predictions: Sequence[float], labels: Sequence[float]) -> str | None:
    """Why nothing correlates, in words; None where something does."""
    if len(labels) < 2:
        return f"undefined: a correlation needs at least 2 rows, and there {'is 1' if labels else 'are none'}"
    if not all(map(math.isfinite, predictions)):
        return "undefined: some predictions are not finite"
    for what, values in (("labels", labels), ("predictions", predictions)):
        if min(values) == max(values):
            return f"undefined: all {len(values):,} {what} are equal ({values[0]:.6g})"
    return None
