"""A run's identity: the hash of what decides its numbers.

Fields marked as bookkeeping (names, folders, loggers, progress bars) are left out; local files enter by their
content, not by their path. Imports no torch: finding that a run is finished must cost milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import PeftlabError, RunError
from peftlab.fields import enters_identity
from peftlab.files import cache_folder, write_atomically

KEY_LENGTH = 12


def run_key(config: RunConfig) -> str:
    """The run's key: 12 hex digits. Same key, same run."""
    text = json.dumps(semantic(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def semantic(config: RunConfig) -> dict[str, Any]:
    """What the key is the hash of, as plain containers."""
    values: dict[str, Any] = _semantic_fields(config)
    values["data"] |= config.data.identity_values()
    values["data_content"] = {split: content_sha256(files) for split, files in config.data.files().items()}
    values["backbone_content"] = content_sha256(config.backbone.weight_files())
    if files := config.peft.files():
        values["peft_content"] = content_sha256(files)
    if config.backbone.from_run is not None:
        values["from_run"] = _earlier_run(Path(config.backbone.from_run).expanduser())
    return values


def _earlier_run(folder: Path) -> dict[str, Any]:
    """What an earlier run is, beside the content of its adapter: its own key, and the backbone under it."""
    try:
        facts = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("run", "backbone_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"backbone.from_run: {folder / 'adapter.json'} is damaged ({error}).") from error


def _semantic_fields(node: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"class": f"{type(node).__module__}.{type(node).__qualname__}"}
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
