"""``find_runs``: the records below a folder as one DataFrame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from peftlab.errors import RunError
from peftlab.metric_names import MetricName
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder
from peftlab.report.records_config import flat

if TYPE_CHECKING:
    from pandas import DataFrame

_SAID_ALREADY = ("name", "output_dir", "force")
"""Keys of the config that say where a run is, which other columns do."""


def find_runs(*where: str | PathLike[str]) -> DataFrame:
    """The records of all runs in or below ``where``, a row a run.

    Args:
        where: run folders or folders of them, ``"outputs/ablation"``; none: ``outputs``.

    Returns:
        columns ``name``, ``key``, ``status``; one for each key of the config whose value is not the same in all runs
        (``peft.rank``; a group's class stands under the group's name); one for each metric (``validation/accuracy`` of
        the chosen epoch, ``test/…``); ``trainable`` (parameters), ``train_seconds``, ``error`` (of a run that failed),
        and ``folder``, for :func:`peftlab.load_run`. A record that cannot be read is a row of status ``unreadable``.

    Raises:
        RunError: if a folder is not there, or holds no run.
    """
    import pandas

    rows, configs = [], []
    for folder in run_folders([str(path) for path in (where or ("outputs",))]):
        try:
            record = folder.read_record() or {"status": "unfinished"}
            rows.append(_row(folder, record))
            configs.append(flat(record.get("config", {})))
        except RunError as error:
            rows.append({"key": folder.key, "status": "unreadable", "error": str(error), "folder": str(folder.path)})
            configs.append({})
    known = [config for config in configs if config]
    names = dict.fromkeys(name for config in known for name in config if name not in _SAID_ALREADY)
    differing = [name for name in names if len({json.dumps(config.get(name)) for config in known}) > 1]
    front, behind = ("name", "key", "status"), ("trainable", "train_seconds", "error", "folder")
    metrics = dict.fromkeys(name for row in rows for name in row if "/" in name)
    columns = [*front, *differing, *metrics, *behind]
    table = [
        {**{name: config.get(name) for name in differing}, **row} for row, config in zip(rows, configs, strict=True)
    ]
    return pandas.DataFrame(table, columns=columns)


def _row(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": record.get("name", folder.path.parent.name),
        "key": record.get("key", folder.key),
        "status": record["status"],
        **_figures(record.get("metrics") or {}),
        "trainable": (record.get("parameters") or {}).get("trainable"),
        "train_seconds": (record.get("timing") or {}).get("train_seconds"),
        "error": record.get("error"),
        "folder": str(folder.path),
    }


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """``split/metric`` → value, of the metrics that are one number."""
    return {
        MetricName(split, name).in_history: value
        for split, figures in metrics.items()
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "rows"
    }


__all__: Sequence[str] = ["find_runs"]
