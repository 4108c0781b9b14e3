"""The hub's commits that a record names: its command is pinned to them, since branches move. Imports no torch.

A config says a branch, a tag or nothing (the main branch); the record keeps the commit that it was. Run again at the
commit, it reads what it has read.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_FIELDS = ("revision", "hub_revision")
"""What config classes call the branch, tag or commit."""


@dataclass(frozen=True)
class Pin:
    """A field of the config that is to say a commit."""

    place: tuple[str | int, ...]
    """Keys and positions in the config that lead to it."""
    said: str | None
    """The branch or tag that it says in the record."""
    commit: str

    @property
    def key(self) -> str:
        """``backbone.revision``, ``data.tasks[0].hub_revision``."""
        return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in self.place)[1:]

    @property
    def override(self) -> str | None:
        """What says it on a command line; None of what lies inside a list."""
        return None if any(isinstance(one, int) for one in self.place) else f"{self.key}={self.commit}"

    def line(self) -> str:
        """What is said of it."""
        was = "the main branch" if self.said is None else self.said
        return f"{self.key}={self.commit}: the commit that {was} was then."


def pins(record: dict[str, Any]) -> list[Pin]:
    """What of the config of ``record`` has to say its commit, and does not yet."""
    config, data = record["config"], record["data"]
    found = list(_pins(config["backbone"], record["backbone"].get("commit"), ("backbone",)))
    found += _pins(config["data"], data.get("hub_commit"), ("data",))
    if isinstance(source := config["data"].get("hub"), dict):
        found += _pins({"revision": None} | source, data.get("hub_commit"), ("data", "hub"))
    several = config["data"].get("tasks")
    for number, task in enumerate(several if isinstance(several, list) else ()):
        of_task = data.get("tasks", {}).get(task.get("task", task.get("name")), {})
        found += _pins(task, of_task.get("hub_commit"), ("data", "tasks", number))
    return found


def _pins(values: dict[str, Any], commit: Any, place: tuple[str | int, ...]) -> Iterator[Pin]:
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        return
    for name in _FIELDS:
        if name in values and values[name] != commit:
            yield Pin((*place, name), values[name], commit)


def pinned(config: dict[str, Any], found: list[Pin]) -> dict[str, Any]:
    """A copy of the plain ``config`` with the commits of ``found`` in it."""
    config = copy.deepcopy(config)
    for pin in found:
        inner: Any = config
        for one in pin.place[:-1]:
            inner = inner[one]
        inner[pin.place[-1]] = pin.commit
    return config


def moving(record: dict[str, Any]) -> str | None:
    """What cannot be pinned: a tokenizer of its own has no field for a revision."""
    tokenizer = record["backbone"].get("tokenizer") or {}
    if not tokenizer.get("commit"):
        return None
    return f"backbone.tokenizer={tokenizer.get('id')} was commit {tokenizer['commit']}; its main branch is read now."
