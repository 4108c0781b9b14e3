"""Folders that ``datasets`` has written: ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.errors import DataError, first_line, listed
from peftlab.reading import Unreadable, read_json


def saved_splits(folder: Path, key: str) -> dict[str, Path]:
    """Split → its folder; a ``Dataset`` without splits is ``train``.

    Args:
        folder: what was written.
        key: the config's words for it, for messages.

    Raises:
        DataError: if it is no such folder, or damaged.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _field(folder / "dataset_dict.json", "splits", key)
        return {str(name): folder / str(name) for name in names}
    if (folder / "state.json").is_file():
        return {"train": folder}
    raise DataError(
        f"{key} is a folder here that datasets.save_to_disk has not written: it has neither dataset_dict.json nor "
        f"state.json, but {listed((entry.name for entry in folder.iterdir()), 8)}. Files go by data=text_files "
        "data.path=<folder>; a set of the hub of that name is read from another working folder."
    )


def saved_files(folder: Path, key: str) -> dict[str, list[Path]]:
    """The files that hold each split's types and rows, in the order of the rows.

    Raises:
        DataError: as :func:`saved_splits`; or if one of them is missing.
    """
    found = {}
    for split, place in saved_splits(folder, key).items():
        names = [str(entry.get("filename")) for entry in _field(place / "state.json", "_data_files", key)]
        files = [place / "dataset_info.json", *(place / name for name in names)]
        for file in files:
            if Path(file.name) != file.relative_to(place) or not file.is_file():
                raise DataError(f"{key}: {file} is missing. Save the data set again with save_to_disk.")
        found[split] = files
    return found


def read_saved(folder: Path, needed: tuple[str, ...], wanted: tuple[str, ...], key: str) -> dict[str, Any]:
    """The ``needed`` splits and those of the ``wanted`` that there are, as ``datasets`` reads them.

    Raises:
        DataError: if the folder is none of ``datasets``, is damaged, or lacks a split.
    """
    from datasets import Dataset

    there = saved_splits(folder, key)
    for name in needed:
        if name not in there:
            raise DataError(f"{key} has no {name} split; there are: {listed(there)}.")
    saved_files(folder, key)
    found = {}
    for name in (*needed, *(name for name in wanted if name in there)):
        try:
            found[name] = Dataset.load_from_disk(str(there[name]))
        except Exception as error:  # pyarrow's, json's, those of datasets: damaged, whichever it is
            raise DataError(f"{key}: cannot read {there[name]} ({first_line(error)}). Save the set again.") from error
    return found


def _field(file: Path, name: str, key: str) -> list[Any]:
    try:
        found = read_json(file)[name]
    except (OSError, Unreadable, KeyError, TypeError) as error:
        said = first_line(error)
        raise DataError(f"{key}: {file} is not as datasets writes it ({said}). Save the set again.") from error
    if not isinstance(found, list) or not found:
        raise DataError(f"{key}: {file} is not as datasets writes it: it lists no {name.strip('_')}.")
    return found
