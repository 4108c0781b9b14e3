"""What ``probe`` says: general texts, and how a language model reads them. Imports no torch.

probe: {file: general.jsonl}
probe: {file: general.csv, column: sentence, max_length: 256}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftlab.data.base import Splits, Texts
from peftlab.data.plain_text import PlainText
from peftlab.errors import DataError, nearest
from peftlab.objectives.causal_lm import NAMES

KEYS = ("file", "column", "max_length")
LENGTH = 512
"""Tokens of a window, where nothing is said."""


@dataclass(frozen=True)
class ProbeTexts:
    """Texts that no run is tuned on: each token is foretold once, in windows, behind a begin token."""

    file: str
    """csv, tsv, jsonl or parquet."""
    column: str = "text"
    """Of the texts."""
    max_length: int = LENGTH
    """Tokens of a window."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ProbeTexts:
        """What ``probe`` says.

        Raises:
            ValueError: naming the key that says something else.
        """
        if unknown := [str(key) for key in given if key not in KEYS]:
            raise ValueError(f"probe has no key '{unknown[0]}'.{nearest(unknown[0], KEYS)} It has: {', '.join(KEYS)}.")
        for name, what in (("file", "the file of the texts"), ("column", "the name of their column")):
            value = given.get(name, cls.column if name == "column" else None)
            if not isinstance(value, str) or not value:
                raise ValueError(f"probe.{name}={value!r} must be {what}: probe={{file: FILE, column: text}}.")
        length = given.get("max_length", LENGTH)
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            raise ValueError(f"probe.max_length={length!r} must be a whole number of tokens from 2 on.")
        return cls(given["file"], given.get("column", cls.column), length)

    def path(self) -> Path:
        """The file.

        Raises:
            DataError: if it is not there.
        """
        found = Path(self.file).expanduser()
        if not found.is_file():
            raise DataError(f"probe.file={self.file}: there is no such file.")
        return found

    def identity(self, sha256: str) -> dict[str, Any]:
        """As it enters a run's key: the file by its content."""
        return asdict(self) | {"file": sha256}

    def data_set(self, eval_batch_size: int) -> PlainText:
        """What reads the texts."""
        file = str(self.path())
        return PlainText(
            train=file, test=file, text_column=self.column, max_length=self.max_length, begin="bos",
            eval_batch_size=eval_batch_size,
        )  # fmt: skip

    def splits(self, named: str = "probe.file") -> Splits:
        """The texts, all of them, as every split.

        Args:
            named: what errors call the file.

        Raises:
            DataError: for a file, or a row of it, that cannot be used.
        """
        try:
            texts: Texts = self.data_set(1).texts_of("test")
        except DataError as error:
            raise DataError(str(error).replace("data.test", named, 1)) from None
        return Splits(texts, texts, texts, NAMES, "probe")
