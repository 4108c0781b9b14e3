"""Any set of the hub as files: ``data.hub`` of instructions, questions with options, and plain texts.

    hub: {id: openai/gsm8k, config: main, revision: main, train: train, validation: null, test: test}

A split of the hub is written into the cache as a parquet file of the columns that are read, so that it goes the way of
files of one's own. A column inside another is named with a dot (``choices.text``). Rows where a column that every row
must have is empty are left out and counted, since nobody can fill them in.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab import files
from peftlab.data.hub import Asked, Found, splits_of
from peftlab.data.labels import is_missing
from peftlab.errors import DataError, listed, nearest

SPLITS = ("train", "validation", "test")
KEYS = ("id", "config", "revision", *SPLITS)


@dataclass(frozen=True)
class HubSource:
    """What ``data.hub`` says: a repository, a revision, and which of its splits are for what."""

    id: str
    config: str | None
    revision: str | None
    splits: Mapping[str, str]
    """Use (train, validation, test) → split of the hub; a use that is missing is held out of train."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> HubSource:
        """What ``data.hub`` says.

        Raises:
            ValueError: naming the key that says something else.
        """
        if unknown := [str(key) for key in given if key not in KEYS]:
            raise ValueError(
                f"data.hub has no key '{unknown[0]}'.{nearest(unknown[0], KEYS)} It has: {', '.join(KEYS)}."
            )
        for key, value in given.items():
            if not isinstance(value, str) and (value is not None or key == "id"):
                raise ValueError(f"data.hub.{key}={value!r} must be a text{'' if key == 'id' else ', or null'}.")
        if str(given.get("id", "")).count("/") != 1:
            raise ValueError(f"data.hub.id={given.get('id')} must be a hub id, namespace/name.")
        named = {"train": "train"} | {use: given[use] for use in SPLITS if given.get(use)}
        return cls(given["id"], given.get("config"), given.get("revision"), named)

    def found(self, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[dict[str, Path], dict[str, Any]]:
        """A file of each use, and what a record says of them.

        Args:
            needed: columns without which a row is left out.
            optional: further ones, whose cells may be empty.

        Raises:
            DataError: the hub is out of reach and the set is not cached; a split or column is missing; or no row has
                all needed columns.
        """
        ways = (
            "  - files:             data.hub=null data.path=<folder of train.*, test.*>, with the same columns\n"
            "                       (datasets.load_dataset(…)['train'].to_parquet('train.parquet') writes one)"
        )
        asked = Asked(
            self.id, self.revision, self.config, ways,
            id_key="data.hub.id", revision_key="data.hub.revision", config_key="data.hub.config",
        )  # fmt: skip
        found = splits_of(asked, tuple(dict.fromkeys(self.splits.values())))
        paths, left_out = {}, {}
        for use, name in self.splits.items():
            paths[use], left_out[use] = self._written(found, name, list(dict.fromkeys(needed)), optional)
        said = {use: count for use, count in left_out.items() if count}
        facts = {
            "hub_splits": dict(self.splits),
            **({"hub_config": self.config} if self.config else {}),
            **({"rows_left_out": {f"{use}, with an empty cell": n for use, n in said.items()}} if said else {}),
        }
        return paths, found.provenance | facts

    def _written(self, found: Found, name: str, needed: list[str], optional: Sequence[str]) -> tuple[Path, int]:
        """The file of the split ``name``, and how many rows were left out of it."""
        split = found.splits[name]
        place = f"{self.id}{f' {self.config}' if self.config else ''}, {name} split"
        if any("." in column and column not in split.column_names for column in (*needed, *optional)):
            split = split.flatten()
        columns = list(dict.fromkeys([*needed, *optional]))
        for column in columns:
            if column not in split.column_names:
                raise DataError(
                    f"{place}: there is no column '{column}'. Columns there are: {listed(split.column_names)}."
                    f"{nearest(column, split.column_names)}"
                )
        commit = found.provenance["hub_commit"]
        key = hashlib.sha256(json.dumps([self.id, self.config, commit, name, columns, needed]).encode()).hexdigest()
        file = files.cache_folder() / "hub" / key[:16] / f"{self.id.replace('/', '--')}-{name}.parquet"
        cells = {column: list(split[column]) for column in columns}
        rows = [row for row in range(len(split)) if not any(is_missing(cells[column][row]) for column in needed)]
        if not rows:
            raise DataError(f"{place}: no row has something in each of the columns {listed(needed)}.")
        content = _parquet({column: [of[row] for row in rows] for column, of in cells.items()})
        if not file.is_file() or file.read_bytes() != content:
            files.write_atomically(file, content)
        return file, len(split) - len(rows)


def _parquet(cells: Mapping[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(dict(cells)), stream)
    return stream.getvalue()
