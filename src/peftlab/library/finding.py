"""``find_runs``: the records below a folder as one DataFrame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from peftlab.metric_names import MetricName
from peftlab.records.find import run_folders
from peftlab.report.listed import Listed, read_listed
from peftlab.report.records_config import DATA_HASH

if TYPE_CHECKING:
    from pandas import DataFrame

_SAID_ALREADY = ("name", "output_dir", "force", DATA_HASH)
"""Keys of the config that say where a run is, which other columns do; and what is none of its keys."""


def find_runs(*where: str | PathLike[str]) -> DataFrame:
    """The records of all runs in or below ``where``, a row a run.

    Args:
        where: run folders or folders of them, ``"outputs/ablation"``; none: ``outputs``.

    Returns:
        columns ``name``, ``key``, ``status``; one for each key of the config whose value is not the same in all runs
        (``peft.rank``; a group's class stands under the group's name); one for each metric (``validation/accuracy`` of
        the chosen epoch, ``test/…``); ``trainable`` (parameters), ``train_seconds``, ``error`` (of a run that failed),
        and ``folder``, for :func:`peftlab.load_run`. A record that cannot be read is a row of status ``unreadable``; a
        run without one is ``running`` or ``unfinished``.

    Raises:
        RunError: if a folder is not there, or holds no run.
    """
    import pandas

    runs = read_listed(run_folders([str(path) for path in (where or ("outputs",))]))
    rows, configs = [_row(run) for run in runs], [run.config for run in runs]
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


def _row(run: Listed) -> dict[str, Any]:
    return {
        "name": run.name,
        "key": run.key,
        "status": run.status,
        **_figures(run.values),
        "trainable": run.values.get("parameters.trainable"),
        "train_seconds": run.values.get("timing.train_seconds"),
        "error": run.error or None,
        "folder": run.folder,
    }


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one number."""
    named = ((name, MetricName.from_history(name)) for name in values)
    return {name: values[name] for name, of in named if of and of.figure != "rows" and "." not in of.figure}


__all__: Sequence[str] = ["find_runs"]
