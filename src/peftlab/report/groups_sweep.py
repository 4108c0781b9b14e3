"""sweep.json: what a sweep calls the runs of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.reading import read_json
from peftlab.report.columns import Column, present_format
from peftlab.report.records_find import LeftOut

FORMAT = 1


@dataclass(frozen=True)
class SweepArm:
    """What the sweep varies, and its runs: a row of the table, mostly."""

    id: str
    label: str
    runs: dict[str, str]
    """Seed → key."""
    failed: dict[str, str] = field(default_factory=dict)
    """Seed → why, in one line."""
    logs: dict[str, str] = field(default_factory=dict)
    """Seed of a failed run → its log, below the sweep's folder; older files have none."""
    row: bool = True
    curve: bool = False
    group: str = ""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    tried: frozenset[str] = frozenset()
    """Keys of the runs that a search has tried for it."""


@dataclass(frozen=True)
class SweepFile:
    """One sweep.json."""

    folder: str
    title: str
    source: str
    selection: str
    notes: str
    metric: str
    baseline: str | None
    """Id of an arm."""
    seeds: list[int]
    columns: list[Column]
    arms: list[SweepArm]
    """``cells`` in the file."""


def read_sweep_file(path: str) -> SweepFile | LeftOut:
    """The file at ``path``, or why it cannot be used."""
    try:
        given: dict[str, Any] = read_json(Path(path))
        if given["format"] != FORMAT:
            return LeftOut(path, f"has format {given['format']}; this peftlab reads format {FORMAT}")
        return SweepFile(
            folder=path.rpartition("/")[0],
            title=str(given["title"]),
            source=str(given.get("source") or ""),
            selection=str(given.get("selection") or ""),
            notes=str(given.get("notes") or ""),
            metric=str(given["metric"]),
            baseline=given.get("baseline"),
            seeds=[int(seed) for seed in given["seeds"]],
            columns=list(map(_column, given["columns"])),
            arms=list(map(_arm, given["cells"])),
        )
    except KeyError as error:
        return LeftOut(path, f"is damaged: no {error}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return LeftOut(path, f"is damaged ({error})")


def _column(given: dict[str, Any]) -> Column:
    form = present_format(str(given.get("format", "score")))
    digits = given.get("digits")
    return Column(
        title=str(given["title"]),
        value=str(given["value"]),
        format=form,
        digits=None if digits is None else int(digits),
        deviation=given.get("deviation") is not False,
    )


def _arm(given: dict[str, Any]) -> SweepArm:
    return SweepArm(
        id=str(given["id"]),
        label=str(given.get("label") or ""),
        runs={str(seed): str(key) for seed, key in given["runs"].items()},
        failed={str(seed): str(why) for seed, why in (given.get("failed") or {}).items()},
        logs={str(seed): path for seed, path in (given.get("logs") or {}).items() if _inside(path)},
        row=bool(given.get("row", True)),
        curve=bool(given.get("curve", False)),
        group=str(given.get("group") or ""),
        chosen=dict(given.get("chosen") or {}),
        tried=frozenset(str(one["run"]) for one in given.get("tried") or [] if one.get("run")),
    )


def _inside(path: Any) -> bool:
    """Whether ``path`` leads below the sweep's folder: the end of the file is shown, so no other will do."""
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts
