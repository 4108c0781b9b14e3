"""Can the data of each job be read? Tried before the first one starts. Imports no torch.

A wrong separator, an empty text, a label that no training row has: training says it in its first second, and six jobs
shall not each say it again. What differs in nothing that loading depends on is read once, and what was found sound once
is not read again in this process. Nothing is fetched from a hub.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peftlab.config import RunConfig
from peftlab.data.base import NOT_LOADED_BY, Splits
from peftlab.data.in_words import NOT_READ, rows_in_brief
from peftlab.data.probe_texts import ProbeTexts
from peftlab.errors import PeftlabError
from peftlab.records.divergence import ENDED
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder
from peftlab.records.identity import content_sha256
from peftlab.sweeps.faults import Faults

_SOUND: dict[str, str | None] = {}
"""What was read in this process without a fault, and the rows of it in words; None: not all of it is here."""


def read_here(config: RunConfig) -> Splits | None:
    """The rows of ``config`` if all are in files here, else None; the texts of its probe are read too.

    Raises:
        PeftlabError: the very error that training would raise.
    """
    splits = config.data.load_here()
    if config.probe is not None:
        ProbeTexts.of(config.probe).splits()
    return splits


def require_readable(named: Sequence[tuple[str, RunConfig]], what: str) -> list[str]:
    """Refuse jobs whose data cannot be used; of those that have begun or ended it could.

    Args:
        named: name and config of each job.
        what: what they are, ``job`` or ``cell``.

    Returns:
        a line for each different data that was read, and one if some was not.

    Raises:
        PeftlabError: naming every fault, and who has it.
    """
    faults = Faults(what, len(named))
    lines = note_unreadable(faults, waiting(named))
    faults.require_none()
    return lines


def note_unreadable(faults: Faults, named: Sequence[tuple[str, RunConfig]]) -> list[str]:
    """Note the faults of the data of all ``named``; see :func:`require_readable`."""
    bad: dict[str, PeftlabError] = {}
    said: dict[str, str | None] = {}
    with _warning_once():
        for name, config in named:
            with faults.noting(name):
                form = _form(config)
                if form in bad:
                    raise bad[form]
                try:
                    said[form] = _read(config, form)
                except PeftlabError as error:
                    bad[form] = error
                    raise
    read = [f"data: {line}" for line in dict.fromkeys(said.values()) if line]
    return [*read, *([f"data: {NOT_READ}"] if None in said.values() else [])]


@contextmanager
def _warning_once() -> Iterator[None]:
    """Inside, what is said of data is said once, however many splits of the same file are tried."""
    heard: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(heard)
        heard.add(record.getMessage())
        return len(heard) > before

    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("peftlab.")]
    for logger in loggers:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_new)


def waiting(named: Sequence[tuple[str, RunConfig]]) -> list[tuple[str, RunConfig]]:
    """Those that have neither begun nor ended."""
    return [(name, config) for name, config in named if not _begun(config)]


def _read(config: RunConfig, form: str) -> str | None:
    if form not in _SOUND:
        try:
            splits = read_here(config)
        except PeftlabError:
            raise
        except Exception:  # of a data set of another package: its job will say it
            return ""
        _SOUND[form] = None if splits is None else rows_in_brief(splits)
    return _SOUND[form]


def _form(config: RunConfig) -> str:
    """Equal for configs whose data is loaded alike."""
    data = {name: value for name, value in config.plain()["data"].items() if name not in NOT_LOADED_BY}
    contents = {split: content_sha256(files) for split, files in config.data.files().items()}
    probe = None if config.probe is None else [config.probe, content_sha256([ProbeTexts.of(config.probe).path()])]
    return json.dumps([data, contents, probe], sort_keys=True)


def _begun(config: RunConfig) -> bool:
    try:
        folder = RunFolder.of(config) if config.force else known_folder(config)
        record = folder.read_record()
    except PeftlabError:  # what it starts from is not there yet
        return False
    ended = record is not None and record["status"] in ENDED and not config.force
    return ended or folder.checkpoints.exists()
