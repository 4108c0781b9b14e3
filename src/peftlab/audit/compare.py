"""Two results of one run, compared to the bit: metrics, every epoch, and the adapter's tensors. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftlab.audit.consistency import ADDED_LATER, same, where
from peftlab.audit.tensors import Array, read_tensors
from peftlab.errors import RunError
from peftlab.reading import read_bytes

_CLOCK = ("train_seconds",)
"""What an epoch's row says of time: never twice the same."""


@dataclass(frozen=True)
class Compared:
    """One figure, or group of figures, of the record and of the run again."""

    name: str
    identical: bool
    said: str


def compare(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Compared]:
    """The results in two records: data, epochs, chosen epoch and the metrics of each split."""
    yield _exactly("data", before["data"]["hash"][:12], now["data"]["hash"][:12], "the texts, by their hash")
    yield _epochs(before["history"], now["history"])
    yield _exactly("chosen epoch", _chosen(before["selection"]), _chosen(now["selection"]), "")
    for split in ("train", "validation", "test"):
        first, second = (_flat(record["metrics"][split]) for record in (before, now))
        for name in dict.fromkeys([*first, *(name for name in second if name not in ADDED_LATER)]):
            yield _figure(f"{split} {name}", first.get(name), second.get(name))


def compare_adapters(before: Path, recorded: dict[str, Any], now: Path) -> Iterator[Compared]:
    """The two adapter files; ``recorded`` is what the record says of the first, which may be elsewhere.

    Raises:
        RunError: if the new file cannot be read.
    """
    name = "adapter.safetensors"
    digest = hashlib.sha256(read_bytes(now)).hexdigest()
    if digest == recorded["sha256"]:
        yield Compared(name, True, f"sha256 {digest[:12]}…")
        return
    said = f"sha256 {recorded['sha256'][:12]}… in the record, {digest[:12]}… here"
    try:
        first = read_tensors(before)
    except RunError:
        yield Compared(name, False, f"{said} (the record's file is not here, or damaged: no tensor can be compared)")
        return
    second = read_tensors(now)
    if {key: value.shape for key, value in first.items()} != {key: value.shape for key, value in second.items()}:
        yield Compared(name, False, f"{said}; the two do not hold the same tensors")
        return
    largest, where = max((_distance(first[key], second[key]), key) for key in first)
    changed = sum(not np.array_equal(first[key], second[key], equal_nan=True) for key in first)
    yield Compared(
        name, False, f"{said}; {changed} of {len(first)} tensors differ, most '{where}': by up to {largest:.3g}"
    )


def _distance(first: Array, second: Array) -> float:
    if not first.size:
        return 0.0
    difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max())


def _exactly(name: str, before: Any, now: Any, what: str) -> Compared:
    if before == now:
        return Compared(name, True, str(now))
    return Compared(name, False, f"{before} in the record, {now} here" + (f": {what}" if what else ""))


def _chosen(selection: dict[str, Any]) -> str:
    """As people count epochs, from 1."""
    return f"{selection['epoch'] + 1}" + (f", step {selection['step']}" if "step" in selection else "")


def _epochs(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Compared:
    """Every figure of every epoch."""
    if len(before) != len(now):
        return Compared("epochs", False, f"{len(before)} in the record, {len(now)} here")
    for first, second in zip(before, now, strict=True):
        different = [key for key in first if key not in _CLOCK and not same(first[key], second.get(key))]
        if different:
            key = different[0]
            values = f"{first[key]} in the record, {second.get(key)} here"
            return Compared("epochs", False, f"from {where(first)} on: {key} {values}")
    return Compared("epochs", True, f"every figure of {len(now)}")


def _figure(name: str, before: Any, now: Any) -> Compared:
    if same(before, now):
        return Compared(name, True, str(now))
    said = f"{before} in the record, {now} here"
    if isinstance(before, int | float) and isinstance(now, int | float):
        said += f": a difference of {now - before:+.3g}"
    return Compared(name, False, said)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
