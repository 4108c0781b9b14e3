"""What must be alike in two records for them to be compared: data, versions, hardware, …, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.metric_names import SPLITS


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The facts of ``record``; the order of the keys is fixed."""
    data, hardware = record.get("data") or {}, record["hardware"]
    versions = record["versions"]
    selection = record.get("selection") or {}
    rows = data.get("rows") or {}
    found = {
        "data": str(data.get("data_set") or data.get("source") or ""),
        "data hash": str(data.get("hash", "")),
        "train kind": str(data.get("train_kind", "")),
        "test kind": str(data.get("test_kind", "")),
        "rows": " / ".join(f"{count:,}" for count in rows.values()),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "hardware": ", ".join(
            [
                str(hardware.get("processor")),
                f"{hardware.get('cpu_count')} CPUs",
                f"{hardware.get('torch_threads')} threads",
                *map(str, hardware.get("accelerators") or []),
                str(hardware.get("platform")),
            ]
        ),
        "revision": _revision(record.get("git") or {}),
        "selection": str(selection.get("rule", "")),
    }
    for split in SPLITS:
        drawn = _drawn(record, data, split)
        found |= {
            f"{split} rows": str(rows.get(split, "")),
            f"{split} hash": str((data.get("split_hashes") or {}).get(split, "")),
            f"{split} drawn": drawn,
            f"{split} texts": " | ".join(
                map(str, (data.get(f"{split}_kind", ""), rows.get(split), _file(data, split), drawn))
            ),
        }
    return found


def _drawn(record: Mapping[str, Any], data: Mapping[str, Any], split: str) -> str:
    """The seed that the rows of ``split`` were drawn with, where they are not all that there are."""
    kind = str(data.get(f"{split}_kind", ""))
    available = (data.get("rows_available") or {}).get(split)
    limited = available is not None and available != (data.get("rows") or {}).get(split)
    # What is not held out is left: the training rows depend on the seed as those held out of them do.
    held_out = "hold-out" in kind or (split != "test" and ("validation" in data or "hold-out" in _test_kind(data)))
    if not (limited or held_out or " of its " in kind):
        return ""
    seed = (record.get("seeds") or {}).get("split_seed", data.get("split_seed"))
    return f"data.split_seed={seed}"


def _test_kind(data: Mapping[str, Any]) -> str:
    return str(data.get("test_kind", ""))


def _file(data: Mapping[str, Any], split: str) -> str:
    files = data.get("files")
    return str(files.get(split, "")) if isinstance(files, Mapping) else ""


def _revision(git: Mapping[str, Any]) -> str:
    revision = str(git.get("revision") or "unknown")[:12]
    return f"{revision} with changes" if git.get("dirty") else revision
