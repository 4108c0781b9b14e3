"""Finding that a run is done already, from its folder alone. Imports no torch."""

from __future__ import annotations

from typing import Any

from peftlab.config import RunConfig
from peftlab.records.divergence import ENDED, STATUS, in_words
from peftlab.records.folder import RunFolder
from peftlab.report.result import print_result


def finished_record(config: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
    """The record of a run that is finished and need not run again, printed; else None."""
    if config.force:
        return None
    record = folder.read_record()
    if record is None or record["status"] not in ENDED:
        return None
    if record["status"] == STATUS:
        print(f"{folder.path} has {in_words(record)}; force=true runs it again.")
        return record
    print(f"{folder.path} is finished already; force=true runs it again.")
    print_result(folder.path, record, config.data.what_is_learned())
    return record
