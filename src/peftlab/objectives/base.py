"""What an objective says of itself: labels, head, loss, figures, predictions. Imports no torch.

An objective is one file of this folder: a subclass of :class:`Objective`, registered by its name, without a field. Data
sets name theirs in ``data.objective``. Methods that compute import torch inside, so that a config can be checked, and a
record read, without it.

What later ones need has its place: an objective may read a label from several cells (``reader``), make the target of a
batch from the tokens themselves (``target`` gets whole rows), have no new head (``head``), and judge by rows that it
has collected (``states``). Tasks of different objectives in one model are told in
:mod:`peftlab.objectives.parts.mixture`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator

from peftlab.errors import listed, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import Metric

    from peftlab.raw_rows import RawRows

Direction = Literal["max", "min"]
Label = Any
"""What an objective makes of a label's cell: the index of a class, a number."""


@dataclass(frozen=True)
class Figure:
    """One number that says how good a model is on a split."""

    name: str
    """In records, history and ``trainer.monitor``."""
    title: str
    """In tables."""
    better: Direction
    """Whether more or less of it is better."""
    low: float | None = None
    high: float | None = None
    """What it cannot go beyond, if there is such a thing."""
    each_epoch: bool = True
    """Whether the history has it of train and validation; else the test alone has it."""
    share_of_rows: bool = False
    """Whether it is a share of the rows, whose sampling error follows from their number."""

    @property
    def worst(self) -> float:
        """What an undefined value counts as where epochs are compared; NaN if there is no worst."""
        found = self.low if self.better == "max" else self.high
        return float("nan") if found is None else found


def shown(value: float | None) -> str:
    """A figure with four decimals; ``undefined`` where there is none."""
    return "undefined" if value is None else f"{value:.4f}"


LOSS = Figure("loss", "loss", "min")
"""Every objective has one: what was minimised, as the mean over rows."""
TASK_MEANS: Mapping[Direction, Figure] = {
    "max": Figure("task_mean", "mean of the tasks", "max"),
    "min": Figure("task_mean_error", "mean error of the tasks", "min"),
}
"""What selects where tasks differ: the mean of the tasks' selecting figures, if all of them better the same way."""


class LabelReader(Protocol):
    """Reads the labels of one data set."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the outputs of the head stand for, in their order."""
        ...

    def read(self, table: RawRows, row: int) -> Label:
        """The label of the zero-based ``row``.

        Raises:
            DataError: naming file and row of what is no label.
        """


class Learned(ABC):
    """What is learned, as records, tables and checks ask for it: of one task an :class:`Objective`, of several that
    differ a :class:`~peftlab.objectives.parts.mixture.Mixture`. It has no state."""

    name: str
    about: str
    """In a few words, for messages: ``a regression, whose labels are numbers``."""
    figures: tuple[Figure, ...]
    """Beside the loss, in the order of the tables."""
    selects: str
    """The figure that decides between epochs and runs unless another is asked for."""
    details: tuple[str, ...] = ()
    """What there is of a split beside numbers, kept of validation and test: figures of each class."""
    smooths_labels: bool = False
    """Whether ``trainer.label_smoothing`` means something."""
    loss_title: str = "loss"
    """What the loss is, on the axis of a picture."""
    head: Literal["new", "own", "none"] = "new"
    """What the head is: ``new``, of random weights for every data set; the model's ``own``, with which it was
    pre-trained, as a language model's is; or ``none``."""
    learns_tokens: bool = False
    """Whether it learns tokens of texts, and so needs a data set that says which (``DataSet.row_encoder``)."""
    weighs: bool = False
    """Whether rows count by something else than their number: by :meth:`Objective.weight`."""
    head_trains: bool = True
    """Whether the head trains where ``backbone.train_head`` is null."""

    def trains_head(self, asked: bool | None) -> bool:
        """Whether the head trains, where ``backbone.train_head`` is ``asked``.

        Raises:
            ValueError: if a head is to train that there is not.
        """
        if asked and self.head == "none":
            raise ValueError(f"{self.about[:1].upper()}{self.about[1:]}, has no head to train.")
        return self.head_trains and self.head != "none" if asked is None else asked

    def head_size(self, names: Sequence[str]) -> int:
        """Outputs C of a new head; 0 if there is none to build."""
        return len(names) if self.head == "new" else 0

    # -- figures ---------------------------------------------------------------------------------------

    def tasks(self) -> Mapping[str, Objective]:
        """The objective of each task, where there are several that differ; else nothing."""
        return {}

    def every_epoch(self) -> tuple[str, ...]:
        """Names of the figures that the history has, the loss first; ``trainer.monitor`` is one of them."""
        return ("loss", *(figure.name for figure in self.figures if figure.each_epoch))

    def figure(self, name: str) -> Figure:
        """The figure called ``name``."""
        return next(figure for figure in (LOSS, *self.figures) if figure.name == name)

    def monitors(self) -> tuple[str, ...]:
        """What ``trainer.monitor`` may be."""
        return self.every_epoch()

    def shown_figures(self) -> tuple[str, ...]:
        """The columns of a run's table, the loss last."""
        return (*(name for name in self.every_epoch() if name != "loss"), "loss")

    def facts(self) -> dict[str, Any]:
        """What a record says, so that a reader needs no table of its own: which figures, and what is better."""
        better = {figure.name: figure.better for figure in (LOSS, *self.figures)}
        return {"name": self.name, "selects": self.selects, "metrics": better}

    # -- labels and what is kept -----------------------------------------------------------------------

    @abstractmethod
    def labels_in_words(self, labels: Sequence[Label], names: Sequence[str]) -> str:
        """The training labels in a few words, for the summary before training."""

    def named(self, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """``values`` with its details as records have them, by the names of labels."""
        return values

    def detail_rows(self, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
        """Lines of a table of its own, of ``values`` as records have them: a name, and title → number."""
        return iter(())

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """What of a record's ``figures`` of one split contradicts the rest, or what ``data`` says of its rows."""
        return iter(())


class Objective(Learned):
    """What is learned of one task. What is counted lies in the metrics of :meth:`states`."""

    columns: Mapping[str, str] = MappingProxyType({})
    """What a run keeps of each test row, for the reference: a column of :meth:`kept` (or of what is judged beside it) →
    what it holds."""

    def __init_subclass__(cls, *, name: str = "") -> None:
        super().__init_subclass__()
        if name:
            cls.name = name
            _REGISTERED[name] = cls

    # -- data ------------------------------------------------------------------------------------------

    @abstractmethod
    def reader(
        self, train: Sequence[RawRows], names: Sequence[str] | None = None, aliases: Mapping[str, int] | None = None
    ) -> LabelReader:
        """What reads the labels of a data set.

        Args:
            train: the training rows, from which may be learned what labels there are.
            names: of the labels, where the data set declares them.
            aliases: other names, to the label's index.

        Raises:
            DataError: if the labels are none of this objective, or the declaration does not fit.
        """

    def not_learned(self, labels: Sequence[Label], names: Sequence[str]) -> list[str]:
        """Of the ``names`` those that nothing can be learned of from the ``labels`` of the training rows."""
        return []

    def same_but_for_case(self, lost: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """Of the ``lost`` names those that are another of the ``names`` but for upper and lower case, and that one."""
        return {}

    def strata(self, labels: Sequence[Label]) -> Sequence[int]:
        """What each row is drawn by where rows are held out or left out: every stratum keeps its share; here one."""
        return [0] * len(labels)

    def label_facts(self, splits: Mapping[str, Sequence[Label]], names: Sequence[str]) -> dict[str, Any]:
        """What a record says of the labels of each split, beside their hash."""
        return {}

    # -- head, loss, figures ---------------------------------------------------------------------------

    @abstractmethod
    def target(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """What a batch is compared to, (B,): made of ``rows``, which have ``label`` and ``input_ids``."""

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean of the rows' losses, in float32.

        Args:
            outputs: (B, C) float32, of the head.
            labels: what :meth:`target` returned.
            label_smoothing: 0 unless :attr:`smooths_labels`.
        """

    def weight(self, row: Mapping[str, Any]) -> int:
        """What a row counts in :meth:`loss`, which is a mean over such counts: 1 unless :attr:`weighs`."""
        return 1

    def asks(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the backbone is called with beside ids, mask and tasks."""
        return {}

    def of_rows(self, outputs: Tensor, labels: Any) -> Tensor:
        """What is kept of each row of a test, (B, C) for the C names of a data set: the head's ``outputs``."""
        return outputs

    @abstractmethod
    def states(self, names: Sequence[str]) -> dict[str, Metric]:
        """New metrics that hold what the figures follow from, over batches and processes."""

    @abstractmethod
    def update(self, states: nn.ModuleDict, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch to what :meth:`states` returned."""

    @abstractmethod
    def compute(self, states: Mapping[str, Tensor]) -> dict[str, Any]:
        """The figures, ``rows`` and the details as plain numbers, from the states over all processes.

        A figure that is undefined is None, and ``undefined`` maps its name to the reason.
        """

    # -- what is kept and shown ------------------------------------------------------------------------

    @abstractmethod
    def predictions(self, outputs: Tensor, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What is predicted from ``outputs`` (B, C), a row each, as JSON has it."""

    def gold(self, label: Label, names: Sequence[str]) -> Any:
        """The label of a row as predictions say it."""
        return label

    def kept(self, outputs: Tensor, labels: Sequence[Label], names: Sequence[str]) -> dict[str, list[Any]]:
        """What a run keeps of each test row, as columns: ``gold``, then the predictions'.

        Args:
            outputs: (N, C) float32, of the head.
            labels: of the N rows.
            names: of the C outputs.
        """
        columns: dict[str, list[Any]] = {"gold": [self.gold(label, names) for label in labels]}
        for predicted in self.predictions(outputs, names):
            for name, value in predicted.items():
                cells = list(value.values()) if isinstance(value, Mapping) else value
                columns.setdefault("predicted" if name == "label" else name, []).append(cells)
        return columns

    @abstractmethod
    def prediction_in_words(self, predicted: Mapping[str, Any]) -> str:
        """A prediction as one line for people, parts with a tab between."""

    @abstractmethod
    def output_in_words(self, names: Sequence[str]) -> tuple[str, str]:
        """What the head gives, for a model card: ``("classes, in order", "negative, positive")``."""

    @abstractmethod
    def hf_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Fields of a ``transformers`` config that say the same."""


Contradiction = tuple[str, str]
"""The key below ``metrics.<split>``, and what is there and should be."""

_REGISTERED: dict[str, type[Objective]] = {}


@cache
def objectives() -> dict[str, Objective]:
    """Every objective by its name: one for each file of this folder that has one."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.ispkg:
            importlib.import_module(f"peftlab.objectives.{module.name}")
    return {name: _REGISTERED[name]() for name in sorted(_REGISTERED)}


def objective(name: str) -> Objective:
    """The objective called ``name``."""
    return objectives()[name]


def figure_called(name: str) -> Figure | None:
    """The figure of that name, of whatever objective has it."""
    known = (figure for one in objectives().values() for figure in (LOSS, *one.figures, *TASK_MEANS.values()))
    return next((figure for figure in known if figure.name == name), None)


def _known(name: str) -> str:
    if name not in objectives():
        raise ValueError(f"it must be one of {listed(objectives())}.{nearest(name, objectives())}")
    return name


ObjectiveName = Annotated[str, AfterValidator(_known)]
"""A field that names an objective."""
