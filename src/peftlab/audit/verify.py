"""A finished run against its own record: is everything in the folder still what the record says it is?

Reads files only and imports no torch; what needs the data or the model is in :mod:`peftlab.audit.verify_again`.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peftlab.audit.consistency import Finding, inconsistencies, where
from peftlab.audit.sizes import size_findings
from peftlab.audit.tensors import Array, frozen_in, tensors_in
from peftlab.config import without_method
from peftlab.errors import PeftlabError, RunError
from peftlab.reading import Unreadable, read_bytes, read_json
from peftlab.records import identity_tags
from peftlab.records.continuing import FIELD as CONTINUED
from peftlab.records.divergence import STATUS, finite
from peftlab.records.find import moved_runs, set_value, value_of
from peftlab.records.folder import RunFolder, read_config_values
from peftlab.records.history import columns_of
from peftlab.records.identity import key_of, semantic_of
from peftlab.records.identity_recorded import content_now, recorded_identity
from peftlab.records.integrity import HASHED, broken_integrity, lost_hashes
from peftlab.records.own_code import recorded_code
from peftlab.shipped import require_known_fields
from peftlab.training.places import OF_EPOCH

UNFINISHED = ("failed", "interrupted", STATUS)
"""What a record can say of a run beside ``finished``; it then holds no results."""


@dataclass
class Verdict:
    """What was found of one run."""

    folder: RunFolder
    record: dict[str, Any] | None = None
    unfinished: str = ""
    """Why there is nothing to verify; empty for a finished run."""
    diverged: bool = False
    """Whether the record itself says that the training diverged, or that the tested model's loss is not finite."""
    differences: list[Finding] = field(default_factory=list)
    not_checked: list[Finding] = field(default_factory=list)
    """What the record does not say, or what needs a file that is not here."""
    changes: list[str] = field(default_factory=list)
    """What is other here than in the record; asked only where figures of the test run again differ."""
    notes: list[Finding] = field(default_factory=list)
    """What is as recorded, and yet is to be known: that numbers are computed otherwise since then."""

    @property
    def status(self) -> Literal["ok", "differs", "diverged", "unfinished"]:
        """In one word; a diverged run is as recorded, but its record is of a training that failed."""
        if self.differences:
            return "differs"
        if self.unfinished:
            return "unfinished"
        return "diverged" if self.diverged else "ok"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder.path),
            "key": self.folder.path.absolute().name if self.record is None else self.record.get("key"),
            "status": self.status,
            "unfinished": self.unfinished or None,
            "differences": [{"about": finding.about, "said": finding.said} for finding in self.differences],
            "not_checked": [{"about": finding.about, "said": finding.said} for finding in self.not_checked],
            "changes": self.changes,
            "notes": [{"about": finding.about, "said": finding.said} for finding in self.notes],
        }


def verify(folder: RunFolder) -> Verdict:
    """Check every file of ``folder`` against its record."""
    verdict = Verdict(folder)
    try:
        record = folder.read_record(checked=False)
    except (RunError, OSError) as error:
        verdict.differences.append(Finding("record.json", str(error)))
        return verdict
    if record is None:
        if folder.adapter.exists() or folder.metrics.exists():
            verdict.differences.append(
                Finding("record.json", "missing, though the run wrote its results; train it again to complete it")
            )
        verdict.unfinished = "no record yet"
        return verdict
    verdict.record = record
    try:
        verdict.differences += _checksum(record, verdict.not_checked)
        if record["status"] != "finished":
            if not (of_divergence := record["status"] == STATUS):
                verdict.unfinished = f"{record['status']}: {record.get('error', '')}"
            verdict.diverged = of_divergence
            verdict.differences += _unfinished(record)
            return verdict
        verdict.diverged = not finite(record["metrics"]["test"]["loss"])
        parts = _config(verdict, record)
        verdict.differences += _files(folder, record, verdict.not_checked)
        tensors, frozen = _tensors(verdict, record)
        if tensors is not None:
            verdict.differences += _adapter(folder, record, tensors, finite=not verdict.diverged)
        verdict.differences += size_findings(record, tensors, frozen)
        verdict.differences += _adapter_facts(folder, record)
        verdict.differences += _metrics_csv(folder, record["history"])
        verdict.differences += _continued(verdict, record)
        verdict.differences += _not_hashed(folder, record, verdict.not_checked)
        if parts is not None:
            objective = parts["data"].what_is_learned()
            verdict.differences += inconsistencies(record, parts["trainer"], objective)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        # A part of the record that is not there or is of another kind than every peftlab writes.
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        verdict.differences.append(Finding("record.json", f"is not as peftlab writes it ({reason})"))
    return verdict


_RESULTS = ("metrics", "history", "selection")


def _checksum(record: dict[str, Any], not_checked: list[Finding]) -> Iterator[Finding]:
    if problem := broken_integrity(record):
        yield Finding("record.json", problem)
    elif "checksum" not in record:
        not_checked.append(Finding("record.json", "has no checksum of its own; it was written by an older peftlab"))


def _unfinished(record: dict[str, Any]) -> Iterator[Finding]:
    if record["status"] not in UNFINISHED:
        yield Finding("status", f"'{record['status']}' is none of finished, {', '.join(UNFINISHED)}")
    elif results := [name for name in _RESULTS if name in record and (name, record["status"]) != ("history", STATUS)]:
        yield Finding("status", f"'{record['status']}', but the record has results ({', '.join(results)})")


def _config(verdict: Verdict, record: dict[str, Any]) -> dict[str, Any] | None:
    """The groups but the method's, checked; what is found of config, config.yaml and key goes to ``verdict``."""
    folder, found = verdict.folder, verdict.differences
    name = folder.path.absolute().name
    if record["key"] != name:
        found.append(Finding("key", f"the record is of run {record['key']}, but the folder is called {name}"))
    try:
        values = read_config_values(folder)
        found += [Finding("config.yaml", line) for line in _different(values, record["config"])]
    except RunError as error:
        found.append(Finding("config.yaml", str(error)))
    try:
        # Classes of methods stand beside their code: of these the names of the fields are known without importing them.
        require_known_fields("peft", record["config"]["peft"])
        parts = without_method(record["config"])
    except PeftlabError as error:
        found.append(Finding("config", f"this peftlab does not accept the record's config: {error}"))
        return None
    standing = identity_tags.standing(record)
    verdict.notes += [Finding(identity_tags.FIELD, line) for line in standing.lines()]
    _key(verdict, record, parts)
    return parts


def _key(verdict: Verdict, record: dict[str, Any], parts: dict[str, Any]) -> None:
    """The key against the record's config, and against the files that the run read, as they are now."""
    config, said = record["config"], recorded_identity(record, parts["data"])
    moved = moved_runs(config, said["run_folders"], verdict.folder)
    here = copy.deepcopy(config)
    for key, path in moved.items():
        set_value(here, key, path)
    places = {str(value_of(config, key)): path for key, path in moved.items()}
    now = None
    try:
        backbone = replace(parts["backbone"], from_run=here["backbone"].get("from_run"))
        now = content_now(here, said, parts["data"], backbone, places)
    except (PeftlabError, OSError) as error:
        verdict.not_checked.append(Finding("key", f"needs files that are not here: {error}"))
    if code := recorded_code(record):
        where = ", ".join(str(value_of(config, f"{group}._target_")) for group in sorted(code))
        verdict.not_checked.append(Finding("key", f"the code of {where}: it is in the key, and verifying imports none"))
    then = said.get("content", now)
    if then is None:
        return
    tags = identity_tags.recorded_tags(record)
    key = key_of(semantic_of(config, said | {"content": then}, tags))  # the figures are what they were: so is the key
    if key != record["key"]:
        reason = "the config is another one" if "content" in said else "the config, or a file it reads, is another one"
        verdict.differences.append(
            Finding("key", f"the record's config gives {key} here, not {record['key']}: {reason}")
        )
    elif now is not None and now != then:
        key = key_of(semantic_of(config, said | {"content": now}, tags))
        names = ", ".join(sorted(name for name in {*now, *then} if now.get(name) != then.get(name)))
        verdict.differences.append(
            Finding("key", f"{key} here, not {record['key']}: the content of a file it reads is another one ({names})")
        )
    if verdict.notes:
        today = key_of(semantic_of(config, said | {"content": now or then}, identity_tags.tags_today(config)))
        if today != record["key"]:
            verdict.notes.append(Finding("key", f"run today, its config has the key {today}"))


def _different(values: Any, expected: Any) -> Iterator[str]:
    first, second = _flat(values), _flat(expected)
    for key in dict.fromkeys([*second, *first]):
        if key not in first:
            yield f"{key} is missing; the record has {second[key]!r}"
        elif key not in second:
            yield f"{key}={first[key]!r} is not in the record"
        elif first[key] != second[key] or type(first[key]) is not type(second[key]):
            yield f"{key}={first[key]!r}, but the record has {second[key]!r}"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or (prefix and not values):
        return {prefix: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _files(folder: RunFolder, record: dict[str, Any], not_checked: list[Finding]) -> Iterator[Finding]:
    """Sizes and hashes of the files the record lists."""
    recorded = record["files"]
    lost = list(lost_hashes(record))
    for name in lost:
        yield Finding(name, "the record has lost its sha256 of it: the peftlab that wrote it always writes one")
    for name in HASHED:
        if name not in recorded and name not in lost:
            not_checked.append(Finding(name, "the record has no sha256 of it; it was written by an older peftlab"))
    for name, facts in recorded.items():
        if Path(name).name != name:
            yield Finding(name, "is not the name of a file in the run's folder")
            continue
        try:
            data = read_bytes(folder.path / name)
        except OSError as error:
            yield Finding(name, f"cannot be read: {error.strerror or error}")
            continue
        if len(data) != facts["bytes"]:
            yield Finding(name, f"has {len(data):,} bytes; the record says {facts['bytes']:,}")
        elif (digest := hashlib.sha256(data).hexdigest()) != facts["sha256"]:
            yield Finding(name, f"has another content: sha256 {digest[:12]}…, the record says {facts['sha256'][:12]}…")


def _tensors(verdict: Verdict, record: dict[str, Any]) -> tuple[dict[str, Array] | None, frozenset[str] | None]:
    """What the adapter file holds, and what of it did not train; None, and a difference, if it cannot be read."""
    name = verdict.folder.adapter.name
    try:
        data = read_bytes(verdict.folder.adapter)
        return tensors_in(data), frozen_in(data)
    except OSError as error:
        if name not in record["files"]:
            verdict.differences.append(Finding(name, f"cannot be read: {error.strerror or error}"))
    except RunError as error:
        verdict.differences.append(Finding(name, str(error)))
    return None, None


def _adapter(
    folder: RunFolder, record: dict[str, Any], tensors: dict[str, Array], *, finite: bool
) -> Iterator[Finding]:
    """Whether the adapter holds as many numbers as recorded, and whether they are ``finite`` where they must be."""
    name = folder.adapter.name
    numbers, stored = sum(tensor.size for tensor in tensors.values()), record["parameters"].get("stored")
    if stored is not None and numbers != stored:
        yield Finding(name, f"holds {numbers:,} numbers; the record says {stored:,}")
    for tensor_name, tensor in tensors.items():
        if finite and tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            yield Finding(name, f"tensor '{tensor_name}' has values that are not finite, though the test loss is")


def _continued(verdict: Verdict, record: dict[str, Any]) -> Iterator[Finding]:
    """What the record says of the run that it goes on with, against that run where it is here."""
    config, facts = record["config"], record.get(CONTINUED)
    if (path := config.get("continue_from")) is None or facts is None:
        if path is not None or facts is not None:
            yield Finding(CONTINUED, "the record and its config do not agree on whether the run goes on with another")
        return
    ends = [row for row in record["history"] if row["step"] <= facts["step"]]
    if not ends or ends[-1]["step"] != facts["step"] or ends[-1]["epoch"] + 1 != facts["epochs"]:
        yield Finding(CONTINUED, f"the history has no end of epoch {facts['epochs']} at step {facts['step']}")
        return
    moved = moved_runs(config, ["continue_from"], verdict.folder)
    earlier = RunFolder(Path(moved.get("continue_from", path)).expanduser())
    try:
        before = earlier.read_record(checked=False)
    except RunError as error:
        yield Finding(CONTINUED, str(error))
        return
    if before is None or before.get("key") != facts["run"]:
        return  # that it is not there, the key has said
    if before.get("checksum") != facts["checksum"]:
        said = f"{earlier.path} has another record than the one gone on with: the run was made again"
        verdict.notes.append(Finding(CONTINUED, said))
    elif before["history"] != ends:
        yield Finding("history", f"its first {len(ends)} rows are not those of {earlier.path}, which it goes on with")


def _adapter_facts(folder: RunFolder, record: dict[str, Any]) -> Iterator[Finding]:
    name = folder.adapter_facts.name
    try:
        facts = read_json(folder.adapter_facts)
    except (OSError, Unreadable) as error:
        yield Finding(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return
    if not isinstance(facts, dict):
        yield Finding(name, "holds no facts")
        return
    config, data = record["config"], record["data"]
    expected = {
        "run": record["key"],
        "backbone_fingerprint": record["backbone"]["fingerprint"],
        "peft": config["peft"],
        "backbone": config["backbone"],
        "label_names": data["label_names"],
        "max_length": config["data"]["max_length"],
        "truncation": config["data"]["truncation"],
    }
    for key, value in expected.items():
        yield from (Finding(name, line) for line in _different({key: facts.get(key)}, {key: value}))


def _metrics_csv(folder: RunFolder, history: list[dict[str, Any]]) -> Iterator[Finding]:
    """Every cell of metrics.csv against the record's history."""
    name = folder.metrics.name
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(folder.metrics).decode("utf-8"), newline="")))
    except OSError as error:
        yield Finding(name, f"cannot be read: {error.strerror or error}")
        return
    except (ValueError, csv.Error) as error:
        yield Finding(name, f"is no CSV file ({error})")
        return
    if len(rows) != len(history):
        yield Finding(name, f"has {len(rows)} rows; the record's history has {len(history)}")
        return
    columns = columns_of(history)
    for row, recorded in zip(rows, history, strict=True):
        for column in columns:
            expected = recorded.get(column) if column == OF_EPOCH else recorded[column]
            if (value := row.get(column)) != ("" if expected is None else str(expected)):
                about = f"{where(recorded)}, {column}"
                yield Finding(name, f"{about}: {value}, but the record has {expected}")


def _not_hashed(folder: RunFolder, record: dict[str, Any], not_checked: list[Finding]) -> Iterator[Finding]:
    """Files that the record does not list: the picture, and checkpoints, which may be deleted to save space.

    They may be missing; but what is there and cannot be what the run wrote is damage.
    """
    trainer = record["config"]["trainer"]
    kept = trainer.get("keep_checkpoints", True)  # earlier versions kept them
    names = dict.fromkeys(("last", trainer["select"])) if kept else {}
    for path, kind, looks_right in (
        (folder.curves, "PNG picture", _is_png),
        *((folder.checkpoints / f"{name}.ckpt", "checkpoint", zipfile.is_zipfile) for name in names),
    ):
        name = str(path.relative_to(folder.path))
        if not path.exists():
            not_checked.append(Finding(name, "not there; no result needs it"))
        elif not path.is_file() or not looks_right(path):
            yield Finding(name, f"is no whole {kind}")


def _is_png(path: Path) -> bool:
    """Whether ``path`` begins and ends as a PNG file does."""
    try:
        data = read_bytes(path)
    except OSError:
        return False
    return data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
