"""The folder of a run, ``<output_dir>/<name>/<key>``, and what lies in it. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftlab.config import RunConfig, from_plain
from peftlab.errors import RunError
from peftlab.files import write_atomically
from peftlab.runs.identity import run_key

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
        """Loss and accuracy an epoch, as a picture."""
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
            RunError: if it is damaged or of an unknown schema version.
        """
        try:
            text = self.record.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            record: dict[str, Any] = json.loads(text)
            version = record["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.record} is damaged ({error}). Delete the file; the run then resumes from its checkpoint."
            ) from error
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{self.record} has schema version {version}; this peftlab reads version {SCHEMA_VERSION}. "
                "Read it with the version of peftlab that it names, or run it again with force=true."
            )
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record, atomically."""
        write_atomically(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config."""
        text = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)
        write_atomically(self.config, f"# The resolved config of run {self.key}.\n{text}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the operating system lets go of it when the process dies, however it dies.

        Raises:
            RunError: if another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}. Choose another output_dir.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise RunError(
                    f"{self.path} is in use by process {file.read().strip() or '?'}. Wait for it, or stop it."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


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
    try:
        values = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {folder.config}: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{folder.config} holds no config.")
    return from_plain(values, real=True)


def _runs_below(path: Path) -> str:
    found = sorted(str(record.parent) for record in path.glob("**/record.json"))[:5] if path.is_dir() else []
    return f" Runs there are: {', '.join(found)}." if found else ""
