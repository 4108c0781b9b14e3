"""What the frozen trunk makes of texts, on the disk: computed by one process, read by all, memory-mapped.

Known by content: the backbone's bytes and settings, the blocks, the precision, the token ids of the rows, and the
versions of torch and transformers. Rows are computed in batches of their own, so that what is kept does not depend on
the batches of a run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peftlab import files
from peftlab.data.batching import pad
from peftlab.data.tokens import TokenizedTexts
from peftlab.errors import DataError
from peftlab.reading import read_json

FORMAT_VERSION = 1
BATCH = 32
_STORED: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
Compute = Callable[[Tensor, Tensor], Tensor]
"""Ids and mask (B, T) to what is kept of them."""


class TrunkStates:
    """What is kept of the rows of a split: ``self[row]``, (T, d), (1, d) or (d,); the file stays on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open()

    def _open(self) -> None:
        about = read_json(self.folder / "complete.json")
        self.dtype: torch.dtype = getattr(torch, about["dtype"])
        self._whole = bool(about["whole"])  # a row is one vector
        self._states: npt.NDArray[Any] = np.load(self.folder / "states.npy", mmap_mode="r")
        self._offsets: npt.NDArray[np.int64] = np.load(self.folder / "offsets.npy")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        first, end = self._offsets[row], self._offsets[row + 1]
        found = torch.from_numpy(np.array(self._states[first:end]))
        found = found.view(self.dtype) if found.dtype != self.dtype else found
        return found[0] if self._whole else found

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a loader process opens the file instead of copying it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def trunk_states(
    rows: TokenizedTexts, pad_id: int, compute: Compute, *, key: dict[str, Any], said: Callable[[str], None]
) -> TrunkStates:
    """What ``compute`` makes of ``rows``: from the cache, or computed into it while others wait for it.

    Args:
        rows: a split, tokenised.
        pad_id: of the tokenizer.
        compute: as :meth:`peftlab.training.trunk.FrozenTrunk.compute`.
        key: everything beside the token ids that decides what comes out, as plain containers.
        said: is given lines for people: the size, and who is waited for.

    Raises:
        DataError: if the disk has no room for it, or the cache folder cannot be written.
    """
    folder = files.cache_folder() / "trunk" / _name(rows, key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.open_lock(folder.with_suffix(".lock")) as lock:
            waited = False
            while not _is_whole(folder, len(rows)) and not files.take_lock(lock):
                if not waited:
                    said("frozen trunk: another process computes it, and this one waits")
                waited = True
                time.sleep(0.2)
            if not _is_whole(folder, len(rows)):
                _write(folder, rows, pad_id, compute, said)
    except OSError as error:
        raise DataError(
            f"The cache of the frozen trunk {folder.parent} cannot be written ({error.strerror or error}). Set "
            "PEFTLAB_CACHE to a folder you can write to, with room for it, or backbone.cache_frozen=false."
        ) from None
    return TrunkStates(folder)


def _name(rows: TokenizedTexts, key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, BATCH, key], sort_keys=True).encode())
    digest.update(rows.lengths.tobytes())
    for row in range(len(rows)):
        digest.update(rows[row]["input_ids"].tobytes())
    return digest.hexdigest()


def _is_whole(folder: Path, rows: int) -> bool:
    """Whether the folder holds exactly what was once written there."""
    try:
        about = read_json(folder / "complete.json")
        return bool(about["rows"] == rows and about["sha256"] == _hashes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for name in ("states.npy", "offsets.npy"):
        with (folder / name).open("rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _write(folder: Path, rows: TokenizedTexts, pad_id: int, compute: Compute, said: Callable[[str], None]) -> None:
    """Compute beside and rename, so that a reader sees all of it or nothing."""
    order = np.argsort(-rows.lengths, kind="stable")
    first = _batch(rows, order[:BATCH], pad_id, compute)
    dtype, whole = first.dtype, first.dim() == 2
    lengths = rows.lengths if not whole and first.shape[1] > 1 else np.ones(len(rows), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shape = (int(offsets[-1]), first.shape[-1])
    _require_room(folder.parent, shape[0] * shape[1] * first.element_size(), said)
    shutil.rmtree(folder, ignore_errors=True)  # what lies there is damaged
    written = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        stored = np.lib.format.open_memmap(written / "states.npy", mode="w+", dtype=_STORED[dtype], shape=shape)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            states = first if start == 0 else _batch(rows, some, pad_id, compute)
            for row, one in zip(some.tolist(), states.cpu(), strict=True):
                kept = one[None] if whole else one[: lengths[row]]
                stored[offsets[row] : offsets[row + 1]] = kept.view(torch.uint16) if dtype == torch.bfloat16 else kept
        stored.flush()
        np.save(written / "offsets.npy", offsets)
        about = {
            "rows": len(rows),
            "dtype": str(dtype).removeprefix("torch."),
            "whole": whole,
            "sha256": _hashes(written),
        }
        (written / "complete.json").write_text(json.dumps(about), encoding="utf-8")
        written.replace(folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _batch(rows: TokenizedTexts, some: npt.NDArray[np.int64], pad_id: int, compute: Compute) -> Tensor:
    padded = pad([rows[row]["input_ids"] for row in some.tolist()], pad_id)
    return compute(padded["input_ids"], padded["attention_mask"])


def _require_room(folder: Path, needed: int, said: Callable[[str], None]) -> None:
    free = shutil.disk_usage(folder).free
    if needed * 1.02 + 2**20 > free:
        raise DataError(
            f"backbone.cache_frozen=true needs {needed / 2**20:,.0f} MiB in {folder}, and {free / 2**20:,.0f} MiB are "
            "free there. Set PEFTLAB_CACHE to a folder with more room, take fewer or shorter texts (data.limit_train, "
            "data.max_length), or set backbone.cache_frozen=false."
        )
    said(f"frozen trunk: {needed / 2**20:,.1f} MiB are computed into {folder}")
