"""How long a run will take, from records of similar runs. Imports no torch.

Similar is a run of the same backbone on the same kind of data with the same text length; those of the same method
count alone where there are any. Rows, epochs and what is not training are scaled from each record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from peftlab.class_names import stable_name
from peftlab.config import RunConfig
from peftlab.reading import read_json
from peftlab.training.places import ends_epoch

Record = Mapping[str, Any]


def finished_records(output_dir: Path) -> list[Record]:
    """All finished records in ``<output_dir>/<name>/<key>``; files that cannot be read are passed over."""
    found: list[Record] = []
    for path in sorted(output_dir.glob("*/*/record.json")):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("status") == "finished":
            found.append(record)
    return found


def seconds(config: RunConfig, records: Sequence[Record]) -> float | None:
    """Seconds that a run of ``config`` will take; None if no record is of a similar run."""
    estimates = [_scaled(config, record) for record in similar(config, records)]
    return median(estimates) if estimates else None


def similar(config: RunConfig, records: Sequence[Record]) -> list[Record]:
    """Those of ``records`` that tell how long a run of ``config`` takes."""
    wanted = config.plain()
    found = [record for record in records if _kind(record["config"]) == _kind(wanted)]
    return [record for record in found if _method(record["config"]) == _method(wanted)] or found


def _kind(config: Mapping[str, Any]) -> tuple[Any, ...]:
    data, trainer, backbone = config["data"], config["trainer"], config["backbone"]
    settings = {key: value for key, value in backbone.items() if key not in ("_target_", "from_run", "glove")}
    classes = (stable_name(data["_target_"]), stable_name(backbone["_target_"]))
    return *classes, data["max_length"], trainer["accelerator"], trainer["precision"], json.dumps(settings)


def _method(config: Mapping[str, Any]) -> str:
    return stable_name(str(config["peft"]["_target_"]))


def _scaled(config: RunConfig, record: Record) -> float:
    timing, data = record["timing"], record["data"]
    before = record["config"]
    available: int = data.get("rows_available", data["rows"])["train"]
    rows: int = min(config.data.limit_train or available, available)
    # An earlier run may have stopped before its last epoch; this one may not.
    epochs_before = sum(map(ends_epoch, record["history"]))
    scale: float = rows * config.trainer.max_epochs / max(1, data["rows"]["train"] * epochs_before)
    if config.trainer.max_steps is not None or before["trainer"]["max_steps"] is not None:
        scale = 1.0  # the steps decide, and not the rows
    training = float(timing["train_seconds"])
    return training * scale + max(0.0, float(timing["total_seconds"]) - training)


def in_words(total: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if total < 120:
        return f"{total:.0f} s"
    return f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"
