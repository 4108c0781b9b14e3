"""Files of one's own: one file, a folder of splits, or each split by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peftlab.data.base import DataSet
from peftlab.data.delimited import separators
from peftlab.data.hub_source import HubSource
from peftlab.data.published import split_file
from peftlab.data.readers import SUFFIXES
from peftlab.errors import DataError, listed
from peftlab.fields import names_files

logger = logging.getLogger(__name__)


class OwnFiles(DataSet):
    """A data set in files that its config names: ``path``, or ``train`` and perhaps ``validation`` and ``test``.

    No dataclass, as :class:`~peftlab.data.base.ByColumns` is none.
    """

    path: str | None
    train: str | None
    validation: str | None
    test: str | None

    def files(self) -> dict[str, list[Path]]:
        """The files there are of train, validation and test."""
        return {split: [file] for split, file in self._split_files().items()}

    def _key(self, split: str) -> str:
        """The config field that named the file of ``split``."""
        return f"data.{split}" if self.path is None else "data.path"

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


class FilesOrHub(OwnFiles):
    """Files of one's own, or a set of the hub (``hub``) that is read as files are."""

    hub: dict[str, Any] | None

    def files(self) -> dict[str, list[Path]]:
        """None of the hub: it is known by its id and revision."""
        return {} if self.hub is not None else super().files()

    def _require_one_source(self) -> None:
        """Raise ValueError for a hub that is said wrongly, or beside files."""
        if self.hub is None:
            return
        HubSource.of(self.hub)
        for name in ("path", "train", "validation", "test"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"data.{name}={value} and data.hub (id {self.hub['id']}) are both given. To read files, set "
                    "data.hub=null; their columns are those that the preset names."
                )

    def _sources(self, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[dict[str, Path], dict[str, Any]]:
        """The file of each split, and what a record says of where they come from.

        Args:
            needed: columns that every row must have.
            optional: those that may be empty.
        """
        _note_written_breaks(self)
        if self.hub is None:
            found = self._split_files()
            names = {split: file.name for split, file in found.items()}
            return found, {"files": names, **separators(found, needed)}
        return HubSource.of(self.hub).found(needed, optional)

    def _key(self, split: str) -> str:
        return super()._key(split) if self.hub is None else f"data.hub.{split}"

    def _title(self, split: str, files: Mapping[str, Path]) -> str:
        """What the rows of ``split`` come from."""
        if self.hub is None:
            return files[split].name
        source = HubSource.of(self.hub)
        return f"the {source.splits[split]} split of {' '.join(filter(None, (source.id, source.config)))}"

    def _kind(self, split: str, files: Mapping[str, Path], rows: int, what: str) -> str:
        """The same with the number of its rows, for tables."""
        if self.hub is not None:
            return f"{self._title(split, files)} ({rows:,} {what})"
        name = f"{files[split].name}, " if split == "train" else ""
        return f"{split} file ({name}{rows:,} {what})"


class LanguageFiles(FilesOrHub):
    """Texts whose tokens are learned."""

    packing: bool

    def packs(self) -> bool:
        """See :meth:`DataSet.packs`."""
        return self.packing


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    return f" {path.parent} holds: {listed((entry.name for entry in path.parent.iterdir()), 12)}."


def _note_written_breaks(data: Any) -> None:
    """Say which texts of ``data``, a config, hold a line break as two signs: who wrote them means one, as a rule."""
    for field in fields(data):
        if names_files(field) or field.name == "chat_template":  # Jinja reads them as Python does
            continue
        for key, text in _texts_in(getattr(data, field.name), f"data.{field.name}"):
            if found := re.search(r"\\[nt]", text):
                logger.warning(
                    "%s has %s in it as two signs, and the model reads them so. Where a line break or a tab is meant, "
                    "write the override between $' and ' in bash, or the text between double quotes in a YAML file.",
                    key,
                    found[0],
                )


def _texts_in(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts_in(inner, f"{key}.{name}")
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_in(inner, key)
