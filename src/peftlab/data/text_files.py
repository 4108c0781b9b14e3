"""Anyone's labelled texts: one file, a folder of splits, or each split by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.data.base import ByColumns, Splits
from peftlab.data.labels import to_texts
from peftlab.data.published import split_file
from peftlab.data.readers import SUFFIXES, read_pairs, read_table
from peftlab.data.splits import assemble, require_all_learned, test_or_hold_out
from peftlab.errors import DataError, listed
from peftlab.fields import Fraction, added, bookkeeping
from peftlab.raw_rows import RawRows


@dataclass(kw_only=True)
class TextFiles(ByColumns):
    """csv, tsv, jsonl or parquet files with a text and a label column.

    Give ``path`` (a folder with train.*, and perhaps validation.* and test.*; or one file, which is
    train), or ``train`` and perhaps ``validation`` and ``test``. A split that is not given is held out
    of train, stratified by label.
    """

    path: str | None = bookkeeping(None)
    """A folder of train.*, validation.*, test.*, or one file; instead of the three fields below."""
    train: str | None = bookkeeping(None)
    """File of training texts."""
    validation: str | None = bookkeeping(None)
    """File of validation texts; null: ``val_fraction`` of train."""
    test: str | None = bookkeeping(None)
    """File of test texts; null: ``holdout_fraction`` of train."""
    text_column: str = "text"
    """Column (or JSON key) of the text."""
    label_column: str = "label"
    """Column (or JSON key) of the label: a name or an integer; with objective=regression a number."""
    second_column: str | None = added(None)
    """Column (or JSON key) of the second text, where a row is a pair of texts."""
    labels: list[str] | None = None
    """Class names in the order of their indices; null: the distinct labels of train, sorted."""
    holdout_fraction: Fraction = 0.2
    """Share of train held out as test when no test file is given."""

    def files(self) -> dict[str, list[Path]]:
        """The files there are of train, validation and test."""
        return {split: [file] for split, file in self._split_files().items()}

    def load(self) -> Splits:
        """Read the files, name the classes, and hold out the splits that are not given."""
        files = self._split_files()
        tables = {split: self._read(split, file) for split, file in files.items()}
        objective = self.objective_of()
        reader = objective.reader([tables["train"]], self.labels)
        texts = {split: to_texts(table, reader) for split, table in tables.items()}
        train, test, held_out = test_or_hold_out(self, self.holdout_fraction, texts, files["train"].name)
        require_all_learned(objective, train, reader.names, files["train"])
        return assemble(
            self,
            train=train,
            validation=texts.get("validation"),
            test=test,
            label_names=reader.names,
            train_kind=f"train file ({files['train'].name}, {len(texts['train']):,} rows)",
            test_kind=held_out or f"test file ({len(test):,} rows)",
            provenance={
                "source": "text files",
                "files": {split: file.name for split, file in files.items()},
            },
        )

    def _split_files(self) -> dict[str, Path]:
        """Split name to file; ``train`` is always there."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        given = {split: Path(name).expanduser() for split, name in named.items() if name is not None}
        if self.path is not None:
            if given:
                raise DataError(
                    f"data.path={self.path} and data.{min(given)}={given[min(given)]} are both given. "
                    "Give data.path alone, or data.train, data.validation and data.test."
                )
            return self._files_in(Path(self.path).expanduser())
        if "train" not in given:
            raise DataError(
                "No training texts: data.path and data.train are null. "
                "Type data.path=<folder or file>, or data.train=<file>."
            )
        for split, file in given.items():
            if not file.is_file():
                raise DataError(f"data.{split}={file}: there is no such file.{_siblings(file)}")
        return given

    def _files_in(self, path: Path) -> dict[str, Path]:
        if path.is_file():
            return {"train": path}
        if not path.is_dir():
            raise DataError(f"data.path={path}: there is no such file or folder.{_siblings(path)}")
        found = {split: split_file(path, split, "data.path") for split in ("train", "validation", "test")}
        files = {split: file for split, file in found.items() if file is not None}
        if "train" not in files:
            held = listed((entry.name for entry in path.iterdir()), 12)
            raise DataError(
                f"data.path={path}: no train file in this folder. It holds: {held}. "
                f"Expected: train, and perhaps validation and test, each as one of {', '.join(SUFFIXES)}."
            )
        return files

    def _read(self, split: str, file: Path) -> RawRows:
        try:
            if self.second_column is not None:
                return read_pairs(file, self.text_column, self.second_column, self.label_column)
            return read_table(file, self.text_column, self.label_column)
        except DataError as error:
            key = f"data.{split}" if self.path is None else "data.path"
            raise DataError(f"{key}: {error}") from None


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    return f" {path.parent} holds: {listed((entry.name for entry in path.parent.iterdir()), 12)}."
