"""Finding that a run is done already, from its folder alone. Imports no torch."""

from __future__ import annotations

import shlex
from typing import Any

from peftlab.config import RunConfig, plain
from peftlab.records.divergence import ENDED, STATUS, in_words
from peftlab.records.folder import RunFolder
from peftlab.report.result import print_result
from peftlab.terminal import say
from peftlab.training.loggers import kinds


def finished_record(config: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
    """The record of a run that is finished and need not run again, printed; else None."""
    if config.force:
        return None
    record = folder.read_record()
    if record is None or record["status"] not in ENDED:
        return None
    if record["status"] == STATUS:
        say(f"{folder.path} has {in_words(record)}; force=true runs it again.{_not_logged(config, folder, record)}")
        return record
    say(f"{folder.path} is finished already; force=true runs it again.{_not_logged(config, folder, record)}")
    if config.trainer.measure_latency and "latency_seconds" not in record["timing"]:
        say("Its latency was not measured (trainer.measure_latency is no part of the key): force=true does.")
    print_result(folder.path, record, config.data.what_is_learned())
    return record


def _not_logged(config: RunConfig, folder: RunFolder, record: dict[str, Any]) -> str:
    """Which of the loggers that are asked for now have nothing of the run, which had others, and what fills them."""
    there = kinds(record["config"].get("logger") or {})
    missing = [kind for kind in kinds(plain("logger", config.logger)) if kind not in there]
    if not missing:
        return ""
    had = f"{', '.join(there) or 'none'}, and loggers write while a run trains (force=true)"
    said = f" It has nothing for {', '.join(missing)}: it ran with logger {had}."
    if "wandb" in missing and record["status"] != STATUS:
        said += f" W&B takes the record as it is: peftlab wandb-sync {shlex.quote(str(folder.path))}."
    return said
