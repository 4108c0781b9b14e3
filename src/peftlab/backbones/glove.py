"""Read GloVe word vectors (Pennington et al. 2014): a text file, one word and its floats a line."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from peftlab.errors import BackboneError
from peftlab.files import cache_folder
from peftlab.remembered import recall, remember, settled, version_of


def cached_glove(path: Path, dimension: int, wanted: dict[str, int], into: Tensor) -> int:
    """:func:`load_glove`, remembering the vectors found: a file of a million lines is read once for a vocabulary."""
    try:
        facts = f"{version_of(path)} {dimension} {sorted(wanted.items())}"
    except OSError:
        return load_glove(path, dimension, wanted, into)  # which says what is wrong
    cached = cache_folder() / "glove" / hashlib.sha256(facts.encode()).hexdigest()
    kept = recall(cached)
    if kept is None:
        before = into.clone()
        into.fill_(math.nan)
        try:
            load_glove(path, dimension, wanted, into)
        finally:
            found = ~into.isnan().any(dim=1)
            into[~found] = before[~found]
        rows = found.nonzero().squeeze(1)
        if settled(path):
            remember(cached, safetensors.torch.save({"rows": rows, "vectors": into[rows].clone()}))
        return len(rows)
    tensors = safetensors.torch.load(kept)
    rows = tensors["rows"]
    into[rows] = tensors["vectors"]
    return len(rows)


def load_glove(path: Path, dimension: int, wanted: dict[str, int], into: Tensor) -> int:
    """Copy the vectors of the ``wanted`` words (word -> row) into ``into`` (rows, dimension).

    Words the file lacks keep their rows; of a word that occurs twice the first counts.

    Returns:
        How many of the wanted words were found.

    Raises:
        BackboneError: naming the file and line, for anything that is not a word and ``dimension`` numbers.
    """
    found: set[str] = set()
    try:
        with path.open("rb") as file:  # bytes, so that a line that is not UTF-8 can be named
            for number, line in enumerate(file, start=1):
                word, values = _split(line, dimension, f"{path}, line {number}")
                if word in wanted and word not in found:
                    into[wanted[word]] = _vector(values, f"{path}, line {number}")
                    found.add(word)
    except OSError as error:
        raise BackboneError(
            f"backbone.glove: {path} cannot be read ({error.strerror}). Give the path of a GloVe text file, "
            f"for example glove.6B.{dimension}d.txt, or backbone.glove=null for random vectors."
        ) from error
    if not found:
        raise BackboneError(
            f"backbone.glove: {path} has a vector for none of the {len(wanted)} words of the vocabulary, "
            f"which is "
            "lower case. Give vectors of the texts' language, or backbone.glove=null for random ones."
        )
    return len(found)


def _split(line: bytes, dimension: int, where: str) -> tuple[str, list[str]]:
    try:
        parts = line.decode("utf-8").rstrip("\r\n").split(" ")
    except UnicodeDecodeError as error:
        raise BackboneError(f"backbone.glove: {where} is not UTF-8 ({error.reason}).") from error
    # A few words of glove.840B hold spaces; a second part that is a number is no such word.
    if len(parts) <= dimension or (len(parts) > dimension + 1 and _number(parts[1]) is not None):
        raise BackboneError(
            f"backbone.glove: {where} has {len(parts) - 1} numbers after the word, but "
            f"backbone.embedding_dim is "
            f"{dimension}. Set backbone.embedding_dim to the file's dimension, or give the file of "
            f"{dimension}."
        )
    return " ".join(parts[:-dimension]), parts[-dimension:]


def _vector(values: list[str], where: str) -> Tensor:
    numbers = []
    for value in values:
        number = _number(value)
        if number is None or not math.isfinite(number):
            raise BackboneError(f"backbone.glove: {where} has '{value}' where a finite number is needed.")
        numbers.append(number)
    return torch.tensor(numbers)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
