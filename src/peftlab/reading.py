"""Small files that may hold anything: damaged, made to harm, or no files at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peftlab.files import open_regular

MOST_DEPTH = 100
"""Brackets within brackets: libyaml's constructor is recursive, and ends the process at some ten thousand."""
MOST_NODES = 100_000
"""Values in a YAML file, those counted again that an alias repeats: nine lines can repeat a list a billion times."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


class Unreadable(ValueError):
    """A file that is there and does not hold what it should; the message says why, without its name."""


def read_bytes(path: Path) -> bytes:
    """The content of ``path``.

    Raises:
        OSError: if it cannot be read, or is no file: a named pipe would be waited for without end.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """What the JSON file ``path`` holds.

    Raises:
        OSError: if it cannot be read.
        Unreadable: if it is not JSON in UTF-8.
    """
    return parse_json(read_bytes(path))


def parse_json(data: bytes) -> Any:
    """The same of ``data``."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise Unreadable("brackets within brackets without end") from error
    except ValueError as error:
        raise Unreadable(f"it is no JSON: {error}") from error


def parse_json_fast(data: bytes, parts: Any = Any) -> Any:
    """The same, in half the time, for who reads thousands: what does it takes a while to import.

    Args:
        data: UTF-8.
        parts: a TypedDict: what stands under keys that it does not name is passed over, not made into objects. Where
            ``data`` is not as it says, all is there.
    """
    import msgspec

    try:
        if parts is not Any and not data.isascii():
            data.decode("utf-8")  # the decoder takes any bytes in texts that it passes over
        return _decoder(parts).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return parse_json(data)  # the two differ in NaN, infinity and halves of surrogates, and in their words


@cache
def _decoder(parts: Any) -> Any:
    import msgspec

    return msgspec.json.Decoder(parts)


def read_yaml(path: Path, loader: Any = _Loader) -> Any:
    """What the YAML file ``path`` holds.

    Raises:
        OSError: if it cannot be read.
        Unreadable: if it is not UTF-8, nested too deeply, or repeats itself without end.
        yaml.YAMLError: if it is no YAML.
    """
    return parse_yaml(read_bytes(path), loader)


def require_harmless(path: Path) -> None:
    """Raise what :func:`read_yaml` would of the YAML file ``path``, which somebody else is going to read."""
    try:
        _require_bounded(read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is no UTF-8: {error}") from error


def parse_yaml(data: bytes, loader: Any = _Loader) -> Any:
    """The same of ``data``."""
    try:
        text = data.decode("utf-8")
        _require_bounded(text)
        return yaml.load(text, Loader=loader)
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    except ValueError as error:  # a date that is none, for example
        raise Unreadable(f"it is no YAML: {error}") from error


def _require_bounded(text: str) -> None:
    """Look at the events of ``text``, which cost no recursion, before anything is made of them."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and what was counted before it
    counted = 0
    for event in _events(text):
        if isinstance(event, yaml.AliasEvent):
            counted += sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, counted))
            counted += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = counted - before
        elif isinstance(event, yaml.ScalarEvent):
            counted += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > MOST_DEPTH:
            raise Unreadable(f"it has more than {MOST_DEPTH} brackets within brackets")
        if counted > MOST_NODES:
            raise Unreadable(f"with what its aliases repeat it has more than {MOST_NODES:,} values")


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # newer libraries have a limit of their own, and look ahead of ours
            raise Unreadable(f"it has more than {MOST_DEPTH} brackets within brackets") from error
        raise
