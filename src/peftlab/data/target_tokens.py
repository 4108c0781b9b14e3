"""Token rows of a language model, made once: as :mod:`peftlab.data.tokens`, with what is under loss beside the ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peftlab.data.base import Texts
from peftlab.data.labels import SHOWN
from peftlab.data.target_rows import RowEncoder, RowError, TokenRow
from peftlab.data.tokens import Arrays, TokenizedTexts, cache_folder, cache_key, is_whole, store
from peftlab.errors import DataError
from peftlab.objectives.base import Label

_ARRAYS = ("ids", "offsets", "loss", "text", "cut")


class TokenizedTargets(TokenizedTexts):
    """A split as token rows: ``self[row]`` is ``{"input_ids": (T,) int32, "loss": (T,) bool, "label": …, "texts": …}``.

    ``texts`` is 1 in the first row of a text and 0 in its further ones: a batch's texts are the sum. ``text`` is its
    number, and the row is number ``part`` of its ``parts``; both count from 0.
    """

    def __init__(self, folder: Path, labels: Sequence[Label]) -> None:
        self.folder = folder
        self.labels = list(labels)
        self._open()

    def _open(self) -> None:
        super()._open()
        self._loss: npt.NDArray[np.bool_] = np.load(self.folder / "loss.npy", mmap_mode="r")
        self.text_of: npt.NDArray[np.int64] = np.load(self.folder / "text.npy", mmap_mode="r")
        """The text of each row, (N,) int64, ascending from 0."""
        self.cut: npt.NDArray[np.bool_] = np.load(self.folder / "cut.npy", mmap_mode="r")
        """Whether what is under loss was cut at the limit, (N,)."""

    def __len__(self) -> int:
        return len(self.text_of)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = self._offsets[row], self._offsets[row + 1]
        text = int(self.text_of[row])
        first, behind = np.searchsorted(self.text_of, [text, text + 1]).tolist()
        return {
            "input_ids": self._ids[start:end],
            "loss": self._loss[start:end],
            "label": self.labels[text],
            "texts": int(row == first),
            "text": text,
            "part": row - first,
            "parts": behind - first,
        }

    def facts(self) -> dict[str, int]:
        """What a record says of them: tokens, rows that were cut, and how many rows if texts have several."""
        found = {"tokens": len(self._ids), "cut": int(self.cut.sum())}
        return found | ({"token_rows": len(self)} if len(self) != len(self.labels) else {})


def tokenize_targets(texts: Texts, encoder: RowEncoder, max_length: int, *, split: str = "texts") -> TokenizedTargets:
    """The token rows of ``texts``, from the cache or written to it.

    Raises:
        DataError: naming file and row of every text without a target, at most 20 of them.
    """
    folder = cache_folder() / cache_key(texts.texts, encoder.fingerprint, max_length)
    if not is_whole(folder, len(texts), _ARRAYS, _fits):
        store(folder, _arrays(_encoded(texts, encoder, max_length, split)), len(texts), _fits)
    return TokenizedTargets(folder, texts.labels)


def _encoded(texts: Texts, encoder: RowEncoder, max_length: int, split: str) -> list[list[TokenRow]]:
    rows: list[list[TokenRow]] = []
    faults: list[tuple[str, str]] = []
    for number, text in enumerate(texts.texts):
        try:
            rows.append(encoder.encode(text, max_length))
        except RowError as error:
            faults.append((texts.place(number, split), str(error)))
    if faults:
        raise DataError(_in_words(faults, len(texts)))
    return rows


def _in_words(faults: list[tuple[str, str]], texts: int) -> str:
    (place, why), *others = faults
    if not others:
        return f"{place}: {why}."
    alike = [where for where, reason in others[: SHOWN - 1] if reason == why]
    lines = [f"{place}: {why}.", f"{len(faults):,} of {texts:,} rows cannot be used; the others:"]
    if alike:
        lines.append(f"  {'; '.join(alike)}: the same")
    lines += [f"  {where}: {reason}" for where, reason in others[: SHOWN - 1] if reason != why]
    if len(faults) > SHOWN:
        lines.append(f"  … and {len(faults) - SHOWN:,} more")
    return "\n".join(lines)


def _arrays(texts: list[list[TokenRow]]) -> Arrays:
    rows = [row for text in texts for row in text]
    return {
        "ids": np.asarray([token for row in rows for token in row.ids], dtype=np.int32),
        "offsets": np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64),
        "loss": np.asarray([under for row in rows for under in row.loss], dtype=np.bool_),
        "text": np.asarray([number for number, text in enumerate(texts) for _ in text], dtype=np.int64),
        "cut": np.asarray([row.cut for row in rows], dtype=np.bool_),
    }


def _fits(arrays: Arrays, texts: int) -> bool:
    ids, offsets, loss, text, cut = (arrays[name] for name in _ARRAYS)
    kinds = [array.dtype for array in (ids, offsets, loss, text, cut)]
    if kinds != [np.dtype(kind) for kind in (np.int32, np.int64, np.bool_, np.int64, np.bool_)]:
        return False
    rows = len(text)
    if offsets.shape != (rows + 1,) or cut.shape != (rows,) or loss.shape != ids.shape or ids.ndim != 1:
        return False
    if not texts:
        return rows == 0
    in_order = text[0] == 0 and text[-1] == texts - 1 and bool(np.isin(np.diff(text), (0, 1)).all())
    return bool(in_order and offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) > 0).all())
