"""The tensors of a safetensors file as numpy arrays. Imports no torch: checking a thousand files must be quick."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from peftlab.errors import RunError
from peftlab.reading import read_bytes

Array = npt.NDArray[np.generic]

_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_tensors(path: Path) -> dict[str, Array]:
    """Name → array of a safetensors file; bfloat16, which numpy does not know, as float32 with the same values.

    Raises:
        RunError: if the file is missing, damaged, or holds a type that is none of torch's usual ones.
    """
    try:
        return tensors_in(read_bytes(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except RunError as error:
        raise RunError(f"cannot read {path}: {error}") from error


def tensors_in(data: bytes) -> dict[str, Array]:
    """The same for the content of a file."""
    try:
        parts = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise RunError(f"it is no whole safetensors file ({error}).") from error
    return {name: _array(name, part["dtype"], part["shape"], part["data"]) for name, part in parts}


def frozen_in(data: bytes) -> frozenset[str] | None:
    """Names of the tensors in the content of an adapter file that did not train; None: the file does not say it.

    Raises:
        RunError: if it says it in another way than peftlab writes it.
    """
    length = int.from_bytes(data[:8], "little")
    said = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("frozen")
    if said is None:
        return None
    try:
        names = json.loads(said)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError("what it says of its frozen tensors is not as peftlab writes it.")
    return frozenset(names)


def _array(name: str, kind: str, shape: list[int], data: bytes) -> Array:
    if kind == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if kind not in _TYPES:
        raise RunError(f"tensor '{name}' is of type {kind}, which peftlab does not write.")
    return np.frombuffer(data, _TYPES[kind]).reshape(shape)
