"""The folder of a run, ``<output_dir>/<name>/<key>``, and what lies in it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftlab.config import RunConfig, from_plain
from peftlab.errors import RunError, RunInUse
from peftlab.files import take_lock, write_atomically
from peftlab.records.identity import run_key

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there

SCHEMA_VERSION = 1
"""Version of record.json; readers refuse what they do not know."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder that ``config`` runs in."""
        return cls(Path(config.output_dir) / config.name / run_key(config))

    @property
    def key(self) -> str:
        """The run's key."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """What ran and what came out; written last."""
        return self.path / "record.json"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """Loss and the selecting figure an epoch, as a picture."""
        return self.path / "curves.png"

    @property
    def adapter(self) -> Path:
        """What was trained, the head included."""
        return self.path / "adapter.safetensors"

    @property
    def adapter_facts(self) -> Path:
        """What the adapter belongs to."""
        return self.path / "adapter.json"

    @property
    def checkpoints(self) -> Path:
        """``last.ckpt`` to resume from, ``best.ckpt`` to test."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Per-step values of the chosen logger."""
        return self.path / "logs"

    def read_record(self) -> dict[str, Any] | None:
        """The record, or None if there is none yet.

        Raises:
            RunError: if it is damaged, no record of peftlab, or of an unknown schema version.
        """
        try:
            return parsed_record(self.record)
        except FileNotFoundError:
            return None

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record with its checksum, atomically."""
        whole = record | {"checksum": record_checksum(record)}
        write_atomically(self.record, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config."""
        text = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)
        write_atomically(self.config, f"# The resolved config of run {self.key}.\n{text}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the operating system lets go of it when the process dies, however it dies.

        Raises:
            RunInUse: if another process holds it.
            RunError: if its folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}. Choose another output_dir.") from error
        with file:
            if not take_lock(file, attempts=5):
                file.seek(0)
                raise RunInUse(
                    f"{self.path} is in use by process {file.read().strip() or '?'}. Wait for it, or stop it."
                )
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def held_by(self) -> str | None:
        """The process that holds the run (its number, or ``?``), or None if nobody does."""
        try:
            file = (self.path / ".lock").open(encoding="ascii", errors="replace")
        except OSError:
            return None
        with file:  # closing lets go of what we took to find out
            return None if take_lock(file, "shared") else file.read().strip() or "?"


def parsed_record(path: Path) -> dict[str, Any]:
    """The record in the file ``path``, whatever its name.

    Raises:
        FileNotFoundError: if there is no such file.
        RunError: if it is damaged, no record of peftlab, or of an unknown schema version.
    """
    way_out = " Delete the file; the run then resumes from its checkpoint." if path.name == "record.json" else ""
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or brackets by the thousand
        raise RunError(f"{path} is damaged ({error}).{way_out}") from error
    if not isinstance(record, dict) or "schema_version" not in record:
        raise RunError(f"{path} is no record of peftlab: it says no schema_version.{way_out}")
    version = record["schema_version"]
    if type(version) is not int:
        raise RunError(
            f"{path} is not as peftlab writes it: its schema_version is {json.dumps(version)[:40]}, and must be a "
            f"whole number (this peftlab reads {SCHEMA_VERSION}).{way_out}"
        )
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema version {version}; this peftlab reads version {SCHEMA_VERSION}. "
            "Read it with the version of peftlab that it names, or run it again with force=true."
        )
    if not isinstance(record.get("status"), str):
        raise RunError(f"{path} is not as peftlab writes it: it says no status.{way_out}")
    return record


def record_checksum(record: dict[str, Any]) -> str:
    """sha256 over all of ``record`` but its checksum, whatever the order and spacing in the file."""
    values = json.loads(json.dumps(record))  # what a reader will find: lists for tuples, text for keys
    values.pop("checksum", None)
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def finished_run(given: str) -> tuple[RunFolder, RunConfig, dict[str, Any]]:
    """Folder, config and record of a finished run.

    Args:
        given: the path of a run folder, as typed.

    Raises:
        RunError: saying what is missing, and what there is instead.
    """
    folder = RunFolder(Path(given))
    if not folder.path.is_dir():
        raise RunError(f"there is no run folder '{given}'.{_runs_below(folder.path.parent)}")
    record = folder.read_record()
    if record is None:
        raise RunError(
            f"'{given}' has no record.json: it is not a run folder, or the run has not finished."
            f"{_runs_below(folder.path)}"
        )
    if record["status"] != "finished":
        raise RunError(
            f"the run in '{given}' is {record['status']}; train it again with the same config to complete it."
        )
    return folder, read_config(folder), record


def read_config(folder: RunFolder) -> RunConfig:
    """The config of ``folder``, checked again and with the classes imported for use.

    Raises:
        RunError: if config.yaml is missing or damaged.
    """
    return from_plain(read_config_values(folder))


def read_config_values(folder: RunFolder) -> dict[str, Any]:
    """config.yaml as plain containers, not checked against the schema.

    Raises:
        RunError: if the file is missing or damaged.
    """
    try:
        values = yaml.load(folder.config.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {folder.config}: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{folder.config} holds no config.")
    return values


def _runs_below(path: Path) -> str:
    found = sorted(str(record.parent) for record in path.glob("**/record.json"))[:5] if path.is_dir() else []
    return f" Runs there are: {', '.join(found)}." if found else ""
