"""What every data set offers: labelled splits, with their provenance.

A data set is a dataclass whose fields are its config (``conf/data/<name>.yaml``); :meth:`DataSet.load`
turns it into :class:`Splits`. Tokenising and batching are the same for all of them
(:mod:`peftlab.data.tokens`, :mod:`peftlab.data.module`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.fields import Fraction, NonNegativeInt, PositiveInt, added, bookkeeping
from peftlab.objectives.base import Label, Learned, Objective, ObjectiveName, objective
from peftlab.objectives.parts.task import Task, TaskLabel

if TYPE_CHECKING:
    from peftlab.backbones.base import Tokenizer
    from peftlab.data.generation import Generation
    from peftlab.data.target_rows import RowEncoder


TooLong = Literal["cut", "leave_out", "refuse"]


@dataclass(frozen=True)
class Texts:
    """One split: ``texts[i]``, perhaps a pair (:mod:`peftlab.pairs`) or a dialogue (:mod:`peftlab.dialogues`), carries
    the label ``labels[i]``: the index of a class, or whatever else the objective has made of its cell."""

    texts: list[str]
    labels: list[Label]
    places: list[str] | None = None
    """File and row of each, where only a tokenizer can tell whether a row is of use; else None."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.labels)
        assert self.places is None or len(self.places) == len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Texts:
        """The split made of ``rows``, in that order."""
        places = None if self.places is None else [self.places[i] for i in rows]
        return Texts([self.texts[i] for i in rows], [self.labels[i] for i in rows], places)

    def place(self, row: int, split: str) -> str:
        """Where the zero-based ``row`` stands: in its file, or in ``split``."""
        return f"Row {row + 1} of the {split} split" if self.places is None else self.places[row]

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The rows of all ``parts``, one behind the other."""
        named = [part.places for part in parts]
        places = None if None in named else [place for part in named for place in part or ()]
        texts, labels = [text for part in parts for text in part.texts], [i for part in parts for i in part.labels]
        return cls(texts, labels, places)


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set.

    ``test_kind`` says what the test rows are, for example ``"official test"`` or
    ``"hold-out of the official train split"``; reports print it beside every test figure.
    ``train_kind`` says the same of the training rows, for example ``"official train"`` or
    ``"subset of train (train_subset.parquet, 18,615 rows)"``.
    ``provenance`` goes into the run's record as it is (plain containers only); its keys ``source``
    and ``rows`` (rows of each split as used) are always there.
    ``label_names`` are what the outputs of the head stand for: classes, or one ``value``.
    ``tasks`` are the tasks of a multitask data set, in the order of their outputs. A row's label says its task too: a
    class belongs to one task, and where tasks have different objectives labels are :class:`TaskLabel`.
    """

    train: Texts
    validation: Texts
    test: Texts
    label_names: tuple[str, ...]
    test_kind: str
    provenance: dict[str, Any] = field(default_factory=dict)
    train_kind: str = "train"
    tasks: tuple[Task, ...] = ()
    hash_as_loaded: str = ""
    """Of all rows, where some were left out since (:mod:`peftlab.data.too_long`)."""

    def of_task(self, texts: Texts, task: Task) -> Texts:
        """The rows of ``texts`` that are of ``task``, with the labels that they have where it is the only one."""

        def own(label: Label) -> bool:
            return self.tasks[label.task] == task if isinstance(label, TaskLabel) else label in task.classes

        rows = texts.take([row for row, label in enumerate(texts.labels) if own(label)])
        labels = [label.label if isinstance(label, TaskLabel) else label - task.first for label in rows.labels]
        return Texts(rows.texts, labels)


def require_objective(data: DataSet, name: str) -> None:
    """Raise ValueError unless ``data`` is used for the objective that its labels are made for."""
    if data.objective != name:
        raise ValueError(
            f"data.objective={data.objective} is not what these labels are for: they are those of "
            f"{objective(name).about}. Leave data.objective={name}; your own files go by data=text_files."
        )


@dataclass(kw_only=True)
class DataSet(ABC):
    """Config shared by all data sets; a subclass adds where its texts come from."""

    max_length: PositiveInt = 256
    """Tokens kept of each text, special tokens included; the rest is cut out."""
    truncation: Literal["head", "head_and_tail"] = "head"
    """What is kept of a longer text: its start, or a quarter from its start and the rest from its end."""
    batch_size: PositiveInt = 32
    """Texts in a training batch (micro-batch) of each process: an optimizer step has one, or as many as
    ``trainer.accumulate_grad_batches`` says. With ``global_batch_size``, the most that a process computes at once."""
    global_batch_size: PositiveInt | None = added(None)
    """Texts an optimizer step, whatever the number of processes: each has a share of them, in as few batches of at most
    ``batch_size`` as will do; null: ``batch_size`` times processes times ``trainer.accumulate_grad_batches``."""
    eval_batch_size: PositiveInt = 64
    """Texts in a batch of each process, in validation and test."""
    limit_train: PositiveInt | None = None
    """Use only this many training rows, drawn stratified by ``split_seed``."""
    limit_val: PositiveInt | None = None
    """Use only this many validation rows."""
    limit_test: PositiveInt | None = None
    """Use only this many test rows (the record then says so)."""
    val_fraction: Fraction = 0.1
    """Share of the training rows held out for validation, stratified by label."""
    split_seed: NonNegativeInt = 0
    """Decides which rows are validation, hold-out and limited subsets. Apart from the run's ``seed``,
    so that runs with different seeds are compared on the same rows."""
    order_seed: NonNegativeInt | None = None
    """Decides the order of the training batches; null: the run's ``seed``."""
    objective: ObjectiveName = added("classification")
    """What is learned of a text: ``classification``, a class; ``regression``, a number. Published data sets say it
    themselves."""
    group_by_length: bool = True
    """Put texts of similar length into one batch (less padding); batches still come in random order."""
    pad_to_multiple_of: PositiveInt | None = added(None)
    """Pad batches to a multiple of this many tokens, but not beyond ``max_length``: few lengths, for which a GPU's
    steps are recorded (``trainer.cuda_graphs``) or compiled. null: to the longest text of the batch."""
    num_workers: NonNegativeInt = bookkeeping(0)
    """Loader processes. Does not change the numbers."""

    def row_encoder(self, tokenizer: Tokenizer, *, training: bool = False) -> RowEncoder | None:
        """What makes token rows with targets of these texts; None: they are read, and no token of them is said.

        Args:
            tokenizer: the backbone's.
            training: of the rows that are trained on, which may be fewer than those that a model is judged by.

        Raises:
            PeftlabError: for a tokenizer that cannot do it.
        """
        return None

    def packs(self) -> bool:
        """Whether several texts of a training batch stand in one row (:mod:`peftlab.data.packing`)."""
        return False

    def of_too_long(self) -> TooLong:
        """What becomes of rows that are longer than ``max_length`` (:mod:`peftlab.data.too_long`)."""
        return "cut"

    def tells_prompts(self) -> bool:
        """Whether what a model is given can be told from what it learns to say."""
        return True

    def generation(self) -> Generation | None:
        """How answers are written and judged in a test; None: none are."""
        return None

    def as_prompt(self, text: str) -> str:
        """What a model is asked, where a user gives ``text``."""
        return text

    def what_is_learned(self) -> Learned:
        """What records, tables and checks ask: the objective, or the mixture of the tasks'."""
        return self.objective_of()

    def objective_of(self, task: str | None = None) -> Objective:
        """The objective of the one task that there is, or of ``task``."""
        return objective(self.objective)

    def task_objectives(self) -> list[str]:
        """The name of each task's objective, in order; of the one, if there is one task."""
        return [self.objective_of(task).name for task in self.task_names()] or [self.objective]

    @abstractmethod
    def load(self) -> Splits:
        """Read, check and split the texts.

        Raises:
            DataError: naming the file and row of what cannot be used.
        """

    def files(self) -> dict[str, list[Path]]:
        """The local files this config reads, by split; their content goes into the run's identity.

        Raises:
            DataError: if one of them is missing.
        """
        return {}

    def is_here(self) -> bool:
        """Whether loading reads files of this machine and fetches nothing. What a class of another package does when it
        loads is not known: where it only reads files, it says so here."""
        return bool(self.files()) and type(self).load.__module__.startswith("peftlab.")

    def load_here(self) -> Splits | None:
        """As :meth:`load`, if :meth:`is_here`; else None.

        Raises:
            DataError: as :meth:`load`, for what is here.
        """
        return self.load() if self.is_here() else None

    def unavailable(self) -> str:
        """Why no other process can read these rows again, in a sentence; empty: it can."""
        return ""

    def has_pairs(self, task: str | None = None) -> bool:
        """Whether a row, of ``task`` if there are several, has two texts."""
        return False

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """What the columns of the text and, for pairs, of the second text are called in files, of ``task``."""
        return "text", "text_b" if self.has_pairs(task) else None

    def task_names(self) -> list[str]:
        """Names of the tasks, in order; none for the usual data set of one task."""
        return []

    def rows_an_epoch(self, sizes: Sequence[int]) -> list[int]:
        """Training rows that an epoch takes of each task, which has ``sizes`` of them; all, unless tasks are mixed."""
        return list(sizes)

    def identity_values(self) -> dict[str, Any]:
        """Fields that enter the run's identity in another form than their value: name to plain containers."""
        return {}


NOT_LOADED_BY = (
    "max_length", "truncation", "batch_size", "global_batch_size", "eval_batch_size", "order_seed", "group_by_length",
    "pad_to_multiple_of", "num_workers",
)  # fmt: skip
"""Fields that say what is done with the texts once they are loaded."""


class ByColumns(DataSet):
    """A data set of a table whose columns its config names; ``second_column`` where a row is a pair of texts.

    No dataclass: the fields are each data set's own, since some were there from the start and others came later.
    """

    text_column: str
    second_column: str | None

    def has_pairs(self, task: str | None = None) -> bool:
        """See :meth:`DataSet.has_pairs`."""
        return self.second_column is not None

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """See :meth:`DataSet.columns`."""
        return self.text_column, self.second_column
