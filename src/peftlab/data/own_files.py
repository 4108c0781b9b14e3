"""Files of one's own: one file, a folder of splits, or each split by name."""

from __future__ import annotations

from pathlib import Path

from peftlab.data.base import DataSet
from peftlab.data.published import split_file
from peftlab.data.readers import SUFFIXES
from peftlab.errors import DataError, listed


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


class LanguageFiles(OwnFiles):
    """Files of texts whose tokens are learned."""

    packing: bool

    def packs(self) -> bool:
        """See :meth:`DataSet.packs`."""
        return self.packing


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    return f" {path.parent} holds: {listed((entry.name for entry in path.parent.iterdir()), 12)}."
