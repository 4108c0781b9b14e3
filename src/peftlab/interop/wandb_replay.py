"""Local records as Weights & Biases runs. The record is the truth and W&B its mirror: it can be made again at any time.

One W&B run a record: its id is the key, its config the run's, one step an epoch, and the summary the record's metrics.
``.wandb-synced.json`` in the run's folder says which record went where; a record that has not changed since is left
alone, and one that has changed replaces its W&B run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.class_names import stable_name
from peftlab.errors import RunError, first_line
from peftlab.files import write_atomically
from peftlab.reading import read_bytes, read_json
from peftlab.records.folder import RunFolder
from peftlab.records.integrity import broken_integrity
from peftlab.training.places import ends_epoch
from peftlab.training.wandb_runs import method_of, names

MARKER = ".wandb-synced.json"


@dataclass(frozen=True)
class Target:
    """Where records go."""

    project: str
    entity: str | None
    mode: Literal["online", "offline"]


@dataclass(frozen=True)
class Replay:
    """What is to be done with one record."""

    folder: RunFolder
    record: dict[str, Any] | None
    action: Literal["new", "changed", "synced", "skipped", "refused"]
    """new: not sent there before; changed: sent, but the record is another one now; synced: nothing to do; skipped:
    not finished; refused: the record is not as it was written."""
    why: str = ""
    """Why it is skipped or refused."""
    sha256: str = ""
    """Of record.json as it is now."""


def planned(folder: RunFolder, target: Target) -> Replay:
    """What syncing ``folder`` to ``target`` would do."""
    try:
        record = folder.read_record()
    except RunError as error:
        return Replay(folder, None, "refused", str(error))
    if record is not None and (problem := broken_integrity(record)):
        return Replay(folder, None, "refused", f"record.json {problem}")
    if record is None or record["status"] != "finished":
        return Replay(folder, None, "skipped", "no record yet" if record is None else f"the run is {record['status']}")
    digest = hashlib.sha256(read_bytes(folder.record)).hexdigest()
    done = [entry for entry in _marker(folder) if _target_of(entry) == target]
    if not done:
        return Replay(folder, record, "new", sha256=digest)
    return Replay(folder, record, "synced" if done[0]["record_sha256"] == digest else "changed", sha256=digest)


def replay(run: Replay, target: Target) -> Path | None:
    """Make the W&B run of one record; an earlier one of the same key at the same place is replaced.

    Returns:
        for mode=offline the folder that ``wandb sync`` uploads, else None.

    Raises:
        RunError: if the run's folder cannot be written, or W&B refuses.
    """
    import wandb

    record = run.record
    assert record is not None
    files = _files_folder(run.folder, target)
    try:
        shutil.rmtree(files, ignore_errors=True)  # left by an attempt before: two of one id would be two uploads
        files.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"cannot write {files}: {error.strerror}. W&B keeps its files in the run's folder.") from error
    named = names(record["config"], record["key"], run.folder.path)
    try:
        session = wandb.init(
            project=target.project,
            entity=target.entity,
            id=record["key"],
            resume=None,  # an earlier run of this id is written anew, not continued
            group=named.group,
            job_type=named.job_type,
            name=named.name,
            tags=tags(record),
            config=config(record),
            mode=target.mode,
            dir=str(files.resolve()),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
        )
        try:
            inside = not all(map(ends_epoch, record["history"]))  # one step a row, and so no longer one an epoch
            for row in history(record):
                # committed now: what is pending when the run ends would overwrite the summary with the last epoch
                session.log(row, step=row["step"] if inside else row["epoch"], commit=True)
            session.summary.update(summary(record))
            made = Path(session.settings.sync_dir)
        finally:
            session.finish()
    except wandb.errors.Error as error:
        raise RunError(f"W&B did not take {run.folder.path}: {first_line(error)}") from error
    upload = files / "wandb" / made.name if target.mode == "offline" else None
    others = [entry for entry in _marker(run.folder) if _target_of(entry) != target]
    entry = asdict(target) | {"id": record["key"], "record_sha256": run.sha256}
    write_atomically(run.folder.path / MARKER, json.dumps({"format": 1, "synced": [*others, entry]}, indent=2) + "\n")
    return upload


def config(record: dict[str, Any]) -> dict[str, Any]:
    """The run's resolved config, and under ``record`` what else one filters runs by."""
    about = ("key", "git", "versions", "hardware", "seeds", "data", "backbone", "parameters", "selection", "ended_at")
    return {**record["config"], "record": {name: record[name] for name in about if name in record}}


def tags(record: dict[str, Any]) -> list[str]:
    """The logger's own tags, the method, the data set and the seed."""
    values = record["config"]
    loggers = [values["logger"], *(values["logger"].get("loggers") or [])]
    own = [tag for one in loggers if isinstance(one, dict) for tag in one.get("tags") or []]
    data_set = stable_name(str(values["data"]["_target_"])).rpartition(".")[2]
    return list(dict.fromkeys([*own, method_of(values), data_set, f"seed {values['seed']}"]))


def history(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the history, with the figures of each class by its name."""
    labels = record["data"]["label_names"]
    for row in record["history"]:
        found: dict[str, Any] = {}
        for name, value in row.items():
            if name.endswith("/per_class"):
                split = name.removesuffix("per_class")
                for metric, numbers in value.items():
                    # a task with an objective of its own names its classes itself
                    by_label = numbers if isinstance(numbers, dict) else dict(zip(labels, numbers, strict=False))
                    found |= {f"{split}{metric}/{label}": n for label, n in by_label.items()}
            elif not isinstance(value, dict | list):
                found[name] = value
        yield found


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Final metrics (of the chosen epoch), sizes and times, flat: ``test/accuracy``, ``timing/train_seconds``."""
    parts = {
        "": record["metrics"],
        "selection": record["selection"],
        "parameters": record["parameters"],
        "timing": record["timing"],
        "memory": record["memory"],
        "forgetting": record.get("forgetting") or {},
        "probe": record.get("probe") or {},
    }
    found: dict[str, Any] = {}
    for prefix, values in parts.items():
        found |= _flat(values, prefix)
    return found


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        # W&B reads a dot as nesting, and class names may have one
        path = "/".join(part for part in (prefix, "" if name == "per_class" else str(name)) if part).replace(".", "_")
        found |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def _files_folder(folder: RunFolder, target: Target) -> Path:
    """Apart from what ``logger=wandb`` writes, and one for each target: ``logs/records/<mode>-<entity>-<project>``."""
    place = "-".join(part for part in (target.mode, target.entity, target.project) if part)
    return folder.logs / "records" / "".join(c if c.isalnum() or c in "-_" else "_" for c in place)


def _marker(folder: RunFolder) -> list[dict[str, Any]]:
    """What was synced before; a marker that cannot be read is as none, and the run is then replaced."""
    try:
        content = read_json(folder.path / MARKER)
        entries = [entry for entry in content["synced"] if isinstance(entry, dict) and "record_sha256" in entry]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return entries


def _target_of(entry: dict[str, Any]) -> Target:
    return Target(entry.get("project", ""), entry.get("entity"), entry.get("mode", "offline"))


def writable(folder: RunFolder) -> bool:
    """Whether the run's folder takes new files."""
    return os.access(folder.path, os.W_OK)
