"""A run's identity: the hash of what decides its numbers.

Fields marked as bookkeeping (names, folders, loggers, progress bars) are left out; local files enter by their
content, not by their path; classes by their stable names. How the numbers are computed enters where that was changed on
purpose (:mod:`peftlab.runs.identity_tags`). Imports no torch: finding that a run is finished must cost milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from peftlab.class_names import stable_name
from peftlab.config import RunConfig
from peftlab.errors import PeftlabError, RunError
from peftlab.fields import enters_identity
from peftlab.files import cache_folder, write_atomically
from peftlab.runs import identity_tags

KEY_LENGTH = 12


def run_key(config: RunConfig, tags: Sequence[str] | None = None) -> str:
    """The run's key: 12 hex digits. Same key, same run.

    Args:
        config: the run's.
        tags: the identity tags that a record names, for the key that it must have; None: those that hold today.
    """
    text = json.dumps(semantic(config, tags), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def run_tags(config: RunConfig) -> tuple[str, ...]:
    """The identity tags that hold for a run of ``config`` today."""
    return identity_tags.tags_of(config.plain()) if identity_tags.TAGS else ()


def semantic(config: RunConfig, tags: Sequence[str] | None = None) -> dict[str, Any]:
    """What the key is the hash of, as plain containers; see :func:`run_key`."""
    values: dict[str, Any] = _semantic_fields(config)
    values["data"] |= config.data.identity_values()
    values["data_content"] = {split: content_sha256(files) for split, files in config.data.files().items()}
    values["backbone_content"] = content_sha256(config.backbone.weight_files())
    if files := config.peft.files():
        values["peft_content"] = content_sha256(files)
    if config.backbone.from_run is not None:
        values["from_run"] = _earlier_run(Path(config.backbone.from_run).expanduser())
    if tags := run_tags(config) if tags is None else tags:  # with none, keys are what they were before there were any
        values["tags"] = sorted(tags)
    return values


def _earlier_run(folder: Path) -> dict[str, Any]:
    """What an earlier run is, beside the content of its adapter: its own key, and the backbone under it."""
    try:
        facts = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("run", "backbone_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"backbone.from_run: {folder / 'adapter.json'} is damaged ({error}).") from error


def _semantic_fields(node: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"class": stable_name(type(node))}
    for field in fields(node):
        value = getattr(node, field.name)
        if enters_identity(field, value):
            values[field.name] = _semantic_fields(value) if is_dataclass(value) else value
    return values


def content_sha256(files: list[Path]) -> str:
    """sha256 of the content of ``files`` in their order, remembered by paths, sizes and times of change."""
    if not files:
        return ""
    facts = "".join(f"{path.resolve()} {_size_and_time(path)}\n" for path in files)
    memo = cache_folder() / "digests" / hashlib.sha256(facts.encode()).hexdigest()
    try:
        remembered = memo.read_text(encoding="ascii")
        if len(remembered) == 64:
            return remembered
    except (OSError, UnicodeDecodeError):
        pass
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    with contextlib.suppress(PeftlabError):  # only a memory: without it the files are read again
        write_atomically(memo, whole.hexdigest())
    return whole.hexdigest()


def _size_and_time(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
