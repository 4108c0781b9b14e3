"""The tasks of GLUE (Wang et al. 2018, arXiv:1804.07461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftlab.data.hub import Layout
from peftlab.data.published import Official, PublishedDataSet


def _task(
    title: str,
    columns: tuple[str, ...],
    label_names: tuple[str, ...],
    train_rows: int,
    test_rows: int,
    *splits: str,
    objective: str = "classification",
) -> Official:
    return Official(
        title=f"GLUE {title}",
        label_names=label_names,
        hub_label_names=label_names,
        train_rows=train_rows,
        test_rows=test_rows,
        packaged="imdb_packaged",
        objective=objective,
        layout=Layout(
            configuration=title.lower().replace("-", ""),
            text_column=columns[0],
            second_column=columns[1] if len(columns) > 1 else None,
            test_splits=splits or ("validation",),
        ),
    )


_TWO_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "sst2": _task("SST-2", ("sentence",), ("negative", "positive"), 67_349, 872),
    "cola": _task("CoLA", ("sentence",), ("unacceptable", "acceptable"), 8_551, 1_043),
    "mrpc": _task("MRPC", _TWO_SENTENCES, ("not_equivalent", "equivalent"), 3_668, 408),
    "qqp": _task("QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), 363_846, 40_430),
    "mnli": _task(
        "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), 392_702, 19_647,
        "validation_matched", "validation_mismatched",
    ),
    "qnli": _task("QNLI", ("question", "sentence"), _ENTAILMENT, 104_743, 5_463),
    "rte": _task("RTE", _TWO_SENTENCES, _ENTAILMENT, 2_490, 277),
    "stsb": _task("STS-B", _TWO_SENTENCES, (), 5_749, 1_500, objective="regression"),
    "wnli": _task("WNLI", _TWO_SENTENCES, ("not_entailment", "entailment"), 635, 71),
}  # fmt: skip


@dataclass(kw_only=True)
class GLUE(PublishedDataSet):
    """One task of GLUE.

    The labels of GLUE's own test splits are not public: the official validation split is the test here, as in the
    tables of papers, and validation is held out of train.
    """

    hub_id: str = "nyu-mll/glue"
    task: Literal["sst2", "cola", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "stsb"] = "sst2"
    """sst2: sentiment of phrases from film reviews. cola: whether a sentence is acceptable English. mrpc, qqp: whether
    two sentences or questions mean the same. mnli (both validation splits, matched and mismatched), rte, wnli: whether
    the second sentence follows from the first. qnli: whether the sentence answers the question. stsb: how alike two
    sentences are in meaning, from 0 to 5: a regression."""

    def __post_init__(self) -> None:
        """The task brings its objective; another one that was typed is refused."""
        if self.objective == "classification":
            self.objective = self.official().objective
        super().__post_init__()

    def has_pairs(self, task: str | None = None) -> bool:
        """See :meth:`DataSet.has_pairs`."""
        return self.official().layout.second_column is not None

    def official(self) -> Official:
        """Classes and sizes of the task."""
        return TASKS[self.task]
