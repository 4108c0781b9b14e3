"""Texts tokenised once: flat arrays on disk, keyed by content and opened memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peftlab import files
from peftlab.backbones.base import Tokenizer
from peftlab.data.base import Texts
from peftlab.errors import DataError, UnreadableText
from peftlab.objectives.base import Label
from peftlab.reading import read_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHUNK = 100  # texts handed to the tokenizer at once: it keeps several times their size until the last is done
SAID = 2_000  # texts after which a line says how far it is
Arrays = Mapping[str, npt.NDArray[Any]]
"""Name of a file, without its ending, to what is in it."""
_ARRAYS = ("ids", "offsets")


def cache_folder() -> Path:
    """Where tokenised texts are kept."""
    return files.cache_folder() / "tokens"


def cache_key(texts: Sequence[str], fingerprint: str, max_length: int) -> str:
    """Hash of everything that decides the ids."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, fingerprint, max_length]).encode())
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


class TokenizedTexts:
    """A split as token ids: ``self[row]`` is ``{"input_ids": (T,) int32, "label": …}``.

    The ids stay on disk until they are read, and every process of a run shares the same pages.
    """

    def __init__(self, folder: Path, labels: Sequence[Label]) -> None:
        self.folder = folder
        self.labels = list(labels)
        self._open()
        assert len(self.lengths) == len(self.labels)

    def _open(self) -> None:
        self._ids: npt.NDArray[np.int32] = np.load(self.folder / "ids.npy", mmap_mode="r")
        self._offsets: npt.NDArray[np.int64] = np.load(self.folder / "offsets.npy", mmap_mode="r")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, (N,) int64."""
        return np.diff(self._offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = self._offsets[row], self._offsets[row + 1]
        return {"input_ids": self._ids[start:end], "label": self.labels[row]}

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of all of it; a loader process opens the files instead.
        return {"folder": self.folder, "labels": self.labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def tokenize(texts: Texts, tokenizer: Tokenizer, max_length: int, *, split: str = "texts") -> TokenizedTexts:
    """The token ids of ``texts``, from the cache or written to it.

    Args:
        texts: the split.
        tokenizer: is not called when the cache has the ids.
        max_length: tokens kept of each text.
        split: what the texts are called in messages.

    Raises:
        DataError: if a text has no tokens at all, or the cache folder cannot be written.
    """
    folder = cache_folder() / cache_key(texts.texts, tokenizer.fingerprint, max_length)
    if not is_whole(folder, len(texts), _ARRAYS, _fits):
        ids, offsets = _encode(texts.texts, tokenizer, max_length, split)
        store(folder, {"ids": ids, "offsets": offsets}, len(texts), _fits)
    return TokenizedTexts(folder, texts.labels)


def _encode(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, split: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Flat ids and, for row i, their range ``offsets[i]:offsets[i + 1]``."""
    pieces: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), CHUNK):
        if start and start % SAID == 0:
            logger.info("Tokenised %s of %s %s texts", f"{start:,}", f"{len(texts):,}", split)
        try:
            encoded = tokenizer.encode(texts[start : start + CHUNK], max_length)
        except UnreadableText as error:
            raise DataError(f"Row {start + error.row + 1} of the {split} split: {error}") from error
        for row, ids in enumerate(encoded, start=start):
            if not ids:
                raise DataError(
                    f"Row {row + 1} of the {split} split has no tokens: the tokenizer knows nothing in "
                    f"{texts[row][:60]!r}. Remove the row or use another tokenizer."
                )
            assert len(ids) <= max_length, "a tokenizer must cut to max_length"
            pieces.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32), offsets


def cut_rows(
    texts: Texts, tokenizer: Tokenizer, max_length: int, *, lengths: npt.NDArray[np.int64], split: str = "texts"
) -> npt.NDArray[np.int64]:
    """Numbers of the texts that have more tokens than ``max_length``, ascending, from the cache or counted now.

    Args:
        texts: the split.
        tokenizer: cuts at the length that it is asked for.
        max_length: tokens kept of each text.
        lengths: tokens of each text as it was cut, (N,).
        split: what the texts are called in messages.
    """
    full: npt.NDArray[np.int64] = np.flatnonzero(lengths >= max_length)  # what is shorter was not cut
    if not len(full):
        return full
    asked = [texts.texts[row] for row in full]
    folder = cache_folder() / cache_key(asked, f"{tokenizer.fingerprint}/cut", max_length)
    if not is_whole(folder, len(asked), ["cut"], _fits_cut):
        _, offsets = _encode(asked, tokenizer, max_length + 1, f"{split} (longest)")
        store(folder, {"cut": np.diff(offsets) > max_length}, len(asked), _fits_cut)
    found: npt.NDArray[np.int64] = full[np.load(folder / "cut.npy")]
    return found


def _fits_cut(arrays: Arrays, rows: int) -> bool:
    return arrays["cut"].dtype == np.bool_ and arrays["cut"].shape == (rows,)


Fits = Callable[[Arrays, int], bool]
"""Whether arrays are those of so many texts."""


def is_whole(folder: Path, texts: int, names: Sequence[str], fits: Fits) -> bool:
    """Whether the folder holds exactly what was once written there, and this is of so many texts."""
    try:
        expected = read_json(folder / "complete.json")
        if expected["rows"] != texts or expected["sha256"] != _hashes(folder, names):
            return False
        return fits({name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}, texts)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fits(arrays: Arrays, rows: int) -> bool:
    """Whether the arrays are of so many rows: their hashes lie beside them, and are whatever somebody writes there."""
    ids, offsets = arrays["ids"], arrays["offsets"]
    types = ids.dtype == np.int32 and ids.ndim == 1 and offsets.dtype == np.int64 and offsets.shape == (rows + 1,)
    return bool(types and offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) > 0).all())


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    hashes = {}
    for name in (f"{name}.npy" for name in names):
        with (folder / name).open("rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def store(folder: Path, arrays: Arrays, texts: int, fits: Fits) -> None:
    """Write beside and rename, so that a reader sees all of it or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        written = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise _not_writable(folder.parent, error) from None
    try:
        for name, array in arrays.items():
            np.save(written / f"{name}.npy", array)
        note = {"rows": texts, "sha256": _hashes(written, list(arrays))}
        (written / "complete.json").write_text(json.dumps(note), encoding="utf-8")
        _put_in_place(written, folder, lambda: is_whole(folder, texts, list(arrays), fits))
    except OSError as error:
        raise _not_writable(folder.parent, error) from None
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _put_in_place(written: Path, folder: Path, whole: Callable[[], bool]) -> None:
    for _ in range(10):
        try:
            written.replace(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if whole():
            return  # another process wrote the same ids first
        # Damaged: move it out of the way under a name of our own, since others may be doing the same.
        damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
        try:
            folder.replace(damaged)
        except FileNotFoundError:
            pass
        finally:
            shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(f"{folder} keeps being replaced by other processes")


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"The token cache {folder} cannot be written ({error.strerror or error}). "
        "Set PEFTLAB_CACHE to a folder you can write to, with room for it."
    )
