"""The folder of a run, ``<output_dir>/<name>/<key>``, and what lies in it. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

import yaml

from peftlab.errors import PeftlabError, RunError, RunInUse, first_line
from peftlab.files import exchange, open_lock, replaced_name, take_lock, write_atomically
from peftlab.reading import Unreadable, parse_json, parse_json_fast, read_bytes, read_yaml
from peftlab.records.divergence import ENDED, diverged, in_words, without_bare_words
from peftlab.records.holder import SILENT_SECONDS, Holder, heard_of, told
from peftlab.records.integrity import (
    PREDICTIONS,
    WAY_OUT,
    broken_integrity,
    record_text,
    require_as_recorded,
    untouched,
)

if TYPE_CHECKING:
    from peftlab.config import RunConfig

SCHEMA_VERSION = 1
"""Version of record.json; readers refuse what they do not know."""


ASIDE = ".forced-"
"""What the name of a folder begins with in which a run is made again; no reader of runs looks into it."""


class RecordHead(TypedDict, total=False):
    """What reading a record asks of it, whatever else is wanted."""

    schema_version: Any
    status: Any
    checksum: Any


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder that ``config`` runs in."""
        from peftlab.records.identity import run_key  # who reads folders only needs no config, and no Hydra

        return cls(Path(config.output_dir) / config.name / run_key(config))

    @property
    def key(self) -> str:
        """The run's key."""
        return self.path.name.removeprefix(ASIDE)

    @property
    def aside(self) -> RunFolder:
        """Where ``force=true`` makes the result that will replace the one in this folder."""
        return RunFolder(self.path.with_name(f"{ASIDE}{self.key}"))

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held while the run is made; says who holds it (:mod:`peftlab.records.holder`)."""
        return self.path / ".lock"

    @property
    def record(self) -> Path:
        """What ran and what came out; written last."""
        return self.path / "record.json"

    @property
    def metrics(self) -> Path:
        """One row a validation."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """Loss and the selecting figure over the epochs, as a picture."""
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
    def predictions(self) -> Path:
        """What was predicted of each test row (:mod:`peftlab.records.predictions`)."""
        return self.path / PREDICTIONS

    @property
    def checkpoints(self) -> Path:
        """``last.ckpt`` and those inside epochs to resume from, ``best.ckpt`` to test."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Per-step values of the chosen logger."""
        return self.path / "logs"

    def read_record(self, *, checked: bool = True, among_many: bool = False, parts: Any = Any) -> dict[str, Any] | None:
        """The record, or None if there is none yet.

        Args:
            checked: refuse one that is not what its checksum says.
            among_many: it is one of thousands that are read, so that a faster reader is worth its import.
            parts: a :class:`RecordHead` with what is wanted of one among many; the rest may not be there.

        Raises:
            RunError: if it is damaged, no record of peftlab, or of an unknown schema version.
        """
        try:
            parse = partial(parse_json_fast, parts=parts) if among_many else parse_json
            text, record = _read_record(self.record, parse)
        except FileNotFoundError:
            return None
        if checked and "checksum" in record and not untouched(text) and (problem := broken_integrity(parse_json(text))):
            raise RunError(f"{self.record} {problem}. {WAY_OUT}")
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record with its checksum, atomically."""
        write_atomically(self.record, record_text(without_bare_words(record)))

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
        with self._locked_file() as file, told(file):
            yield

    def _locked_file(self) -> IO[str]:
        lock = self.lock
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                file = open_lock(lock)
            except OSError as error:
                raise RunError(f"cannot write {self.path}: {error.strerror}. Choose another output_dir.") from error
            if not take_lock(file, attempts=5):
                holder = Holder.read(file) or Holder()
                file.close()
                raise RunInUse(f"{self.path} is in use by process {holder}. Wait for it, or stop it.")
            if (other := _beyond_the_lock(file)) is not None:
                file.close()
                raise RunInUse(
                    f"{self.path} is in use by process {other}, which was heard of less than {SILENT_SECONDS:.0f} s "
                    "ago: wait for it, or, if it was killed, that long."
                )
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    return file
            file.close()  # the folder was replaced by another while we waited

    def held_by(self) -> Holder | None:
        """The process that holds the run, or None if nobody does."""
        try:
            file = open_lock(self.lock, create=False)
        except OSError:
            return None
        with file:  # closing lets go of what we took to find out
            return _beyond_the_lock(file) if take_lock(file, "shared") else Holder.read(file) or Holder()

    def last_holder(self) -> Holder | None:
        """Whom the lock names, whether or not it lives: one that ended in order has taken its name out of it."""
        with contextlib.suppress(OSError, PeftlabError), open_lock(self.lock, create=False) as file:
            return Holder.read(file)
        return None

    def require_inside(self) -> None:
        """Refuse a folder that a link below ``output_dir`` has put elsewhere: a run would write over what lies there.

        Raises:
            RunError: naming the link.
        """
        named, output_dir = self.path.parent, self.path.parent.parent
        for path in (named, self.path):
            if path.is_symlink() and not path.resolve().is_relative_to(output_dir.resolve()):
                raise RunError(
                    f"{path} is a link to {path.readlink()}, outside of {output_dir}, where runs belong. Remove the "
                    "link, choose another name, or make output_dir itself a link to where there is room."
                )

    def require_no_links(self) -> None:
        """Refuse links inside the folder that a run would write through: what they point to is not the run's.

        Raises:
            RunError: naming the link.
        """
        for path in (self.checkpoints, self.logs):
            if path.is_symlink():
                raise RunError(
                    f"{path} is a link to {path.readlink()}, and a run writes through none inside its folder. Remove "
                    "the link, or make output_dir itself a link to where there is room."
                )

    def replace_by(self, new: RunFolder) -> None:
        """Put ``new``, which lies beside this folder, in its place; what other people have put into it stays.

        Raises:
            OSError: if it cannot be done.
        """
        exchange(new.path, self.path)
        old = RunFolder(new.path)
        of_runs = {*_OF_A_RUN, *(path.name for path in self.path.iterdir())}
        for path in list(old.path.iterdir()):
            if path.name not in of_runs:
                path.rename(self.path / path.name)
        old.remove()

    def remove(self) -> None:
        """Take the folder away, and what links in it point to not."""
        if self.path.is_symlink():
            self.path.unlink()
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def recover(self) -> None:
        """Give the folder its name back, if a process died while it was replaced where that takes two steps."""
        before = replaced_name(self.path)
        if before.is_dir() and not self.path.exists():
            before.rename(self.path)


def _beyond_the_lock(file: IO[str]) -> Holder | None:
    """Who holds the run although its lock is free: a process on another machine, where locks do not reach so far."""
    holder = Holder.read(file)
    return holder if holder is not None and holder.elsewhere and heard_of(file) else None


_OF_A_RUN = frozenset({
    ".lock", "config.yaml", "record.json", "metrics.csv", "curves.png", "adapter.safetensors", "adapter.json",
    "vocabulary.json", "predictions.parquet", "checkpoints", "damaged", "logs", "inspect.png",
})  # fmt: skip
"""What a run, and what measures it, writes into its folder: of an old result nothing of it stays."""


def parsed_record(path: Path) -> dict[str, Any]:
    """The record in the file ``path``, whatever its name.

    Raises:
        FileNotFoundError: if there is no such file.
        RunError: if it is damaged, no record of peftlab, or of an unknown schema version.
    """
    return _read_record(path)[1]


def _read_record(path: Path, parse: Callable[[bytes], Any] = parse_json) -> tuple[bytes, dict[str, Any]]:
    """The file's bytes, and :func:`parsed_record` of them."""
    way_out = " Delete the file; the run then resumes from its checkpoint." if path.name == "record.json" else ""
    try:
        text = read_bytes(path)
        record = parse(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except Unreadable as error:
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
    return text, record


def finished_run(given: str) -> tuple[RunFolder, RunConfig, dict[str, Any]]:
    """Folder, config and record of a finished run.

    Args:
        given: the path of a run folder, as typed.

    Raises:
        RunError: saying what is missing, and what there is instead; or which file is not the one that the run wrote.
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
    if record["status"] not in ENDED:
        raise RunError(
            f"the run in '{given}' is {record['status']}; train it again with the same config to complete it."
        )
    if diverged(record):
        raise RunError(f"the run in '{given}' diverged ({in_words(record)}): its weights are good for nothing.")
    if unknown := require_as_recorded(folder.path, record):
        print(
            f"note: the record in '{given}' has no sha256 of {', '.join(unknown)}: an older peftlab wrote it, and "
            "whether they are still the run's cannot be known.",
            file=sys.stderr,
        )
    from peftlab.records.own_code import changed_code  # needs a config, which who lists folders does not read

    config = read_config(folder)
    if changed := changed_code(record, config):
        names = ", ".join(f"{group}={name}" for group, name in changed.items())
        print(
            f"note: the code of {names} is not what the run in '{given}' was trained with: what follows is computed "
            "with the code of today.",
            file=sys.stderr,
        )
    return folder, config, record


def read_config(folder: RunFolder) -> RunConfig:
    """The config of ``folder``, checked again and with the classes imported for use.

    Raises:
        RunError: if config.yaml is missing or damaged.
    """
    from peftlab.config import from_plain

    return from_plain(read_config_values(folder))


def read_config_values(folder: RunFolder) -> dict[str, Any]:
    """config.yaml as plain containers, not checked against the schema.

    Raises:
        RunError: if the file is missing or damaged.
    """
    try:
        values = read_yaml(folder.config)
    except (OSError, Unreadable, yaml.YAMLError) as error:
        raise RunError(f"cannot read {folder.config}: {first_line(error)}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{folder.config} holds no config.")
    return values


def _runs_below(path: Path) -> str:
    found = sorted(str(record.parent) for record in path.glob("**/record.json"))[:5] if path.is_dir() else []
    return f" Runs there are: {', '.join(found)}." if found else ""
