"""Anyone's labelled texts: one file, a folder of splits, or each split by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.data.base import ByColumns, Splits
from peftlab.data.delimited import separators
from peftlab.data.labels import to_texts
from peftlab.data.own_files import OwnFiles
from peftlab.data.readers import read_pairs, read_table
from peftlab.data.splits import assemble, require_all_learned, test_or_hold_out
from peftlab.errors import DataError
from peftlab.fields import Fraction, added, own_files
from peftlab.raw_rows import RawRows


@dataclass(kw_only=True)
class TextFiles(OwnFiles, ByColumns):
    """csv, tsv, jsonl or parquet files with a text and a label column.

    Give ``path`` (a folder with train.*, and perhaps validation.* and test.*; or one file, which is
    train), or ``train`` and perhaps ``validation`` and ``test``. A split that is not given is held out
    of train, stratified by label.
    """

    path: str | None = own_files()
    """A folder of train.*, validation.*, test.*, or one file; instead of ``train``, ``validation`` and ``test``."""
    train: str | None = own_files()
    """File of training texts."""
    validation: str | None = own_files()
    """File of validation texts; null: ``val_fraction`` of train."""
    test: str | None = own_files()
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

    def load(self) -> Splits:
        """Read the files, name the classes, and hold out the splits that are not given."""
        files, columns = self._split_files(), (self.text_column, self.second_column, self.label_column)
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
                **separators(files, [name for name in columns if name is not None]),
            },
        )

    def _read(self, split: str, file: Path) -> RawRows:
        try:
            if self.second_column is not None:
                return read_pairs(file, self.text_column, self.second_column, self.label_column)
            return read_table(file, self.text_column, self.label_column)
        except DataError as error:
            raise DataError(f"{self._key(split)}: {error}") from None
