"""Published data sets with an official test split: from the hub, or from files of the same rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.data.base import DataSet, Splits, Texts, require_objective
from peftlab.data.delimited import separators
from peftlab.data.hub import PLAIN, Layout, read_hub
from peftlab.data.labels import left_out_facts, read_tables, said_of
from peftlab.data.readers import SUFFIXES, read_pairs, read_review_tree, read_table, review_files
from peftlab.data.splits import assemble, repeated_rows
from peftlab.errors import DataError, listed
from peftlab.fields import own_files
from peftlab.raw_rows import RawRows

LOCAL_SECOND_COLUMN = "text_b"
"""Column of local files that holds the second text of a pair."""


@dataclass(frozen=True, kw_only=True)
class Official:
    """What is published under a data set's name."""

    title: str
    label_names: tuple[str, ...] = ()
    """Names of the classes; none where labels are numbers."""
    hub_label_names: tuple[str, ...] = ()
    """The classes as the hub calls them, in the same order."""
    train_rows: int
    test_rows: int
    packaged: str
    """The packaged data set nearest to this one, offered when the hub cannot be reached."""
    layout: Layout = PLAIN
    """How the hub lays it out; its ``test_splits`` name the local files too."""
    train_stems: tuple[str, ...] = ("train",)
    reads_review_tree: bool = False
    objective: str = "classification"


@dataclass(kw_only=True)
class PublishedDataSet(DataSet, ABC):
    """Official train and test splits; validation is held out of train."""

    source: Literal["hub", "local"] = "hub"
    """Where the rows come from: ``hub``, download (and cache) ``hub_id``; ``local``, read the files in ``path``."""
    path: str | None = own_files()
    """Folder of the train and the test file (parquet, csv, tsv or jsonl); needs ``source=local``."""
    hub_id: str = ""
    """Repository on the hub."""
    hub_revision: str | None = None
    """Branch, tag or commit on the hub; null: its main branch. The record keeps the commit it was."""

    def __post_init__(self) -> None:
        """The set says what its labels are for."""
        require_objective(self, self.official().objective)

    @abstractmethod
    def official(self) -> Official:
        """Classes, sizes and places of the set that this config chooses."""

    def files(self) -> dict[str, list[Path]]:
        """The local train and test files; none when the texts come from the hub."""
        places = self._local_splits()
        if not places:
            return {}
        return {"train": _files_of(places[0]), "test": [file for place in places[1:] for file in _files_of(place)]}

    def load(self) -> Splits:
        """Read both official splits and hold validation out of train."""
        official = self.official()
        tables, provenance = self._tables()
        train_table = tables[0]
        labels = self.objective_of().reader(
            [train_table],
            official.label_names or None,
            {name: i for i, name in enumerate(official.hub_label_names)},
        )
        (train, *tests), left_out = read_tables(tables, labels)
        test = Texts.joined(tests)
        return assemble(
            self,
            train=train,
            validation=None,
            test=test,
            label_names=labels.names,
            train_kind=self._train_kind(train_table, train, left_out[:1]),
            test_kind=self._test_kind(test, left_out[1:]),
            provenance={"data_set": official.title}
            | provenance
            | _repetitions(train, test)
            | left_out_facts(tables, left_out),
        )

    def _tables(self) -> tuple[list[RawRows], dict[str, Any]]:
        """Train, then what is the test; and their provenance."""
        official = self.official()
        if places := self._local_splits():
            names = {"train": places[0].name, "test": ", ".join(place.name for place in places[1:])}
            paired = official.layout.second_column is not None
            named = {"train": places[0], **{place.name: place for place in places[1:]}}
            columns = ["text", *([LOCAL_SECOND_COLUMN] if paired else []), "label"]
            return [_read(place, paired=paired) for place in places], {
                "source": "local files",
                "files": names,
                **separators(named, columns),
            }
        return read_hub(
            self.hub_id,
            self.hub_revision,
            official.hub_label_names,
            packaged=official.packaged,
            layout=official.layout,
        )

    def _train_kind(self, table: RawRows, train: Texts, left_out: Sequence[Mapping[str, int]]) -> str:
        """What the rows are; "official" only when the count is the official one."""
        rows, without = _counted(train, left_out)
        if rows == self.official().train_rows:
            return f"official train{without}"
        name = Path(table.name).name if self.source == "local" else table.name
        return f"subset of train ({name}, {rows:,} rows){without}"

    def _test_kind(self, test: Texts, left_out: Sequence[Mapping[str, int]]) -> str:
        official, (rows, without) = self.official(), _counted(test, left_out)
        split = " + ".join(official.layout.test_splits)
        if rows != official.test_rows:
            kind = f"{split} file ({rows:,} rows)" if split == "test" else f"{split} file used as test ({rows:,} rows)"
            return f"{kind}{without}"
        return f"{'official test' if split == 'test' else f'official {split} split used as test'}{without}"

    def _local_splits(self) -> list[Path]:
        """Train and what is the test: files, or the two folders of the aclImdb tree; empty for the hub."""
        if self.source == "hub":
            if self.path is not None:
                raise DataError(
                    f"data.path={self.path} is only read with data.source=local, but data.source=hub. "
                    f"Type: data.source=local data.path={self.path}"
                )
            return []
        if self.path is None:
            raise DataError(
                "data.source=local needs data.path, the folder of the train and test files. "
                "Type: data.source=local data.path=<folder>"
            )
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.path={self.path}: there is no such folder. {self._expected()}")
        official = self.official()
        if official.reads_review_tree and (folder / "train").is_dir() and (folder / "test").is_dir():
            return [folder / "train", folder / "test"]
        return [
            self._split_file(folder, official.train_stems),
            *(self._split_file(folder, (split,)) for split in official.layout.test_splits),
        ]

    def _split_file(self, folder: Path, stems: tuple[str, ...]) -> Path:
        for stem in stems:
            if file := split_file(folder, stem, "data.path"):
                return file
        found = listed((entry.name for entry in folder.iterdir()), 12)
        raise DataError(
            f"data.path={self.path}: no {' or '.join(stems)} file in this folder. It holds: {found}. {self._expected()}"
        )

    def _expected(self) -> str:
        official = self.official()
        train = " or ".join(official.train_stems)
        tree = "; or the aclImdb folder, which has the folders train and test" if official.reads_review_tree else ""
        names, columns = " and ".join((train, *official.layout.test_splits)), ""
        if official.layout.second_column is not None:
            columns = f", with the columns text, {LOCAL_SECOND_COLUMN} and label"
        return f"Expected: {names}, each as one of {', '.join(SUFFIXES)}{columns}{tree}."


def split_file(folder: Path, stem: str, key: str) -> Path | None:
    """The one file of ``folder`` called ``stem`` with a suffix we read; None if there is none.

    Raises:
        DataError: if there are several, naming ``key``, the config field that gave the folder.
    """
    found = [file for suffix in SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{key}={folder}: several {stem} files ({names}). Keep the one that is meant.")
    return found[0] if found else None


def _files_of(place: Path) -> list[Path]:
    return review_files(place) if place.is_dir() else [place]


def _read(place: Path, *, paired: bool) -> RawRows:
    if place.is_dir():
        return read_review_tree(place)
    return read_pairs(place, "text", LOCAL_SECOND_COLUMN) if paired else read_table(place)


def _counted(texts: Texts, left_out: Sequence[Mapping[str, int]]) -> tuple[int, str]:
    """How many rows were published, and in words which of them are not used."""
    total: Counter[str] = Counter()
    for one in left_out:
        total.update(one)
    said = said_of(total)
    return len(texts) + total.total(), f", {said}" if said else ""


def _repetitions(train: Texts, test: Texts) -> dict[str, Any]:
    """A property of the published set that the record should show: texts that are there twice."""
    in_train = {text.strip() for text in train.texts}
    return {
        "repeated_texts": {
            "train_rows": len(repeated_rows(train.texts)),
            "test_rows": len(repeated_rows(test.texts)),
            "test_rows_also_in_train": sum(text.strip() in in_train for text in test.texts),
        }
    }
