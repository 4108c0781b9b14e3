"""The single-sentence tasks of GLUE (Wang et al. 2018, arXiv:1804.07461): SST-2 and CoLA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftlab.data.hub import Layout
from peftlab.data.published import Official, PublishedDataSet

SST2 = Official(
    title="GLUE SST-2",
    label_names=("negative", "positive"),
    hub_label_names=("negative", "positive"),
    train_rows=67_349,
    test_rows=872,
    packaged="imdb_packaged",
    layout=Layout(configuration="sst2", text_column="sentence", test_split="validation"),
)
COLA = Official(
    title="GLUE CoLA",
    label_names=("unacceptable", "acceptable"),
    hub_label_names=("unacceptable", "acceptable"),
    train_rows=8_551,
    test_rows=1_043,
    packaged="imdb_packaged",
    layout=Layout(configuration="cola", text_column="sentence", test_split="validation"),
)


@dataclass(kw_only=True)
class GLUE(PublishedDataSet):
    """One task of GLUE.

    The labels of GLUE's own test splits are not public: the official validation split is the test here, as in the
    tables of papers, and validation is held out of train.
    """

    hub_id: str = "nyu-mll/glue"
    task: Literal["sst2", "cola", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "stsb"] = "sst2"
    """sst2: sentiment of phrases from film reviews. cola: whether a sentence is acceptable English. The other tasks
    are refused: they have two sentences a row."""

    def __post_init__(self) -> None:
        """Raise ValueError for a task of sentence pairs."""
        if self.task not in ("sst2", "cola"):
            more = " and scores instead of classes" if self.task == "stsb" else ""
            raise ValueError(
                f"task={self.task} has two sentences a row{more}, and a row here is one text without segment ids: "
                "joining the sentences would be another task than the published one. The tasks are: sst2, cola."
            )

    def official(self) -> Official:
        """Classes and sizes of the task."""
        return {"sst2": SST2, "cola": COLA}[self.task]
