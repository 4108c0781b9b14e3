"""Any labelled set of the hub, or one that ``datasets`` has saved to disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.base import ByColumns, Splits
from peftlab.data.hub import Asked, splits_of
from peftlab.data.labels import by_name, is_missing, left_out_facts, read_tables, said_of
from peftlab.data.saved import read_saved, saved_files
from peftlab.data.splits import assemble, test_or_hold_out
from peftlab.errors import DataError, listed, nearest
from peftlab.fields import Fraction
from peftlab.raw_rows import FROM_0, RawRows

VALIDATION = ("validation", "valid", "val", "dev")
"""What a split for validation is called."""


@dataclass(kw_only=True)
class HubSet(ByColumns):
    """A text and a label column of a data set of the hub, or of a folder that ``save_to_disk`` has written.

    The splits ``train``, ``validation`` and ``test`` are used; one that is missing, or whose labels are hidden, is held
    out of train, stratified by label. Rows of the hub without text or label are left out, and counted in the record.
    """

    id: str = "???"
    """``namespace/name`` on the hub, or a folder, which enters the run's identity by its content."""
    config: str | None = None
    """Which configuration to read, of a repository of several (``sst2`` of ``nyu-mll/glue``)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: its main branch. The record keeps the commit it was."""
    text_column: str = "text"
    """Column of the text."""
    label_column: str = "label"
    """Column of the label: a name or an integer; with objective=regression a number."""
    second_column: str | None = None
    """Column of the second text, where a row is a pair of texts."""
    labels: list[str] | None = None
    """Class names in the order of their indices; null: the set's own, or the distinct labels of train, sorted."""
    holdout_fraction: Fraction = 0.2
    """Share of train held out as test where there is none."""

    def files(self) -> dict[str, list[Path]]:
        """The files of a folder; none of the hub."""
        return {} if (folder := self._folder()) is None else saved_files(folder, self._key())

    def identity_values(self) -> dict[str, Any]:
        """A folder is known by its content."""
        return {} if self._folder() is None else {"id": "a folder"}

    def load(self) -> Splits:
        """Read the splits, name the classes, and hold out what there is no split for."""
        found, provenance = self._found()
        tables, hidden = self._tables(found)
        declared = self.labels
        if declared is None and self.objective == "classification":
            declared = _class_names(found["train"], self.label_column)
        reader = self.objective_of().reader([tables["train"]], declared)
        rows, left_out = read_tables(list(tables.values()), reader)
        texts = dict(zip(tables, rows, strict=True))
        without = {split: f", {said_of(one)}" if one else "" for split, one in zip(tables, left_out, strict=True)}
        named = f"the train split of {self._title()}"
        train, test, held_out = test_or_hold_out(self, self.holdout_fraction, texts, named)
        if held_out and "test" in hidden:
            held_out += ", whose test labels are hidden"
        return assemble(
            self,
            train=train,
            validation=texts.get("validation"),
            test=test,
            label_names=reader.names,
            train_kind=f"{named} ({len(texts['train']):,} rows){without['train']}",
            test_kind=held_out or f"the test split of {self._title()} ({len(test):,} rows){without['test']}",
            provenance=provenance
            | ({"splits_without_labels": hidden} if hidden else {})
            | left_out_facts(list(tables.values()), left_out),
        )

    def _key(self) -> str:
        return f"data.id={self.id}"

    def _title(self) -> str:
        name = self.id if self._folder() is None else Path(self.id).expanduser().resolve().name
        return name if self.config is None else f"{name} {self.config}"

    def _folder(self) -> Path | None:
        """The folder that ``id`` is; None: it is an id of the hub.

        Raises:
            DataError: for a path where no folder is, and for what belongs to the hub beside a folder.
        """
        if self.id in ("", "???"):
            raise DataError("data.id must be given: a hub id, such as stanfordnlp/imdb, or a folder of save_to_disk.")
        path = Path(self.id).expanduser()
        if not path.is_dir():
            if path.exists() or self.id.startswith((".", "/", "~")) or self.id.count("/") > 1:
                what = "this is a file" if path.exists() else "there is no such folder"
                raise DataError(
                    f"{self._key()}: {what}. Give a folder that datasets.save_to_disk has written, or a hub id "
                    "(namespace/name); files go by data=text_files data.path=<file or folder>."
                )
            return None
        for field, value in (("config", self.config), ("revision", self.revision)):
            if value is not None:
                raise DataError(f"data.{field}={value} belongs to a hub id, but {self._key()} is a folder here.")
        return path

    def _found(self) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """The splits as ``datasets`` has them, and their provenance."""
        wanted = (*VALIDATION, "test")
        if (folder := self._folder()) is not None:
            facts = {"source": "a folder of datasets", "folder": folder.resolve().name}
            return read_saved(folder, ("train",), wanted, self._key()), facts
        ways = (
            "  - a folder:          data.id=<folder that datasets.save_to_disk has written>\n"
            "  - files:             data=text_files data.path=<folder of train.*, test.*>"
        )
        asked = Asked(self.id, self.revision, self.config, ways, id_key="data.id", revision_key="data.revision")
        found = splits_of(asked, ("train",), wanted)
        return found.splits, found.provenance | ({} if self.config is None else {"hub_config": self.config})

    def _tables(self, found: Mapping[str, Any]) -> tuple[dict[str, RawRows], list[str]]:
        """The tables by what their splits are for, and the splits whose labels are hidden."""
        names = {"train": "train", "validation": next((n for n in VALIDATION if n in found), ""), "test": "test"}
        tables = {use: self._table(found[name], name) for use, name in names.items() if name in found}
        hidden = [use for use, table in tables.items() if use != "train" and all(map(is_missing, table.labels))]
        return {use: table for use, table in tables.items() if use not in hidden}, hidden

    def _table(self, split: Any, name: str) -> RawRows:
        place = f"{self._title()}, {name} split"
        wanted = {"text": self.text_column, "second": self.second_column, "label": self.label_column}
        for what, column in wanted.items():
            if column is not None:
                _require_column(split, column, f"data.{what}_column", place)
        return RawRows(
            place,
            list(split[self.text_column]),
            by_name(list(split[self.label_column]), _class_names(split, self.label_column)),
            text_column=self.text_column,
            label_column=self.label_column,
            seconds=None if self.second_column is None else list(split[self.second_column]),
            second_column=self.second_column or "",
            editable=self._folder() is not None,
            index=range(len(split)),
            index_name=FROM_0,
        )


def _class_names(split: Any, column: str) -> list[str] | None:
    """The names of a ``ClassLabel`` column."""
    names = getattr(split.features.get(column), "names", None)
    return None if names is None else [str(name) for name in names]


def _require_column(split: Any, column: str, key: str, place: str) -> None:
    """Refuse a column that is not there, or holds something else than one text, or one label, a row."""
    if column not in split.column_names:
        raise DataError(
            f"{place}: there is no column '{column}' ({key}). Columns there are: {listed(split.column_names)}."
            f"{nearest(column, split.column_names)}"
        )
    feature = split.features[column]
    kind, dtype = type(feature).__name__, getattr(feature, "dtype", None)
    if key == "data.label_column":
        fits, wanted = kind in ("Value", "ClassLabel"), "a label is one name or number a row"
    else:
        fits, wanted = kind == "Value" and dtype in ("string", "large_string", "null"), "a text a row is wanted"
    if not fits:
        shown = " ".join(str(feature).split())[:80]
        raise DataError(f"{place}: column '{column}' ({key}) holds {shown}; {wanted}. Choose another column.")
