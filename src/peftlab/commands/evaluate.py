"""``peftlab evaluate RUN``: test a finished run again, on its own data or on other data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from peftlab.class_names import stable_name
from peftlab.commands.prediction_files import require_writable, write_rows
from peftlab.composition import composed, override_values, parse
from peftlab.config import RunConfig, check, validate_group
from peftlab.data.base import DataSet, Texts
from peftlab.errors import ConfigError
from peftlab.objectives.base import Learned, shown
from peftlab.pairs import SEPARATOR
from peftlab.records.folder import finished_run
from peftlab.records.predictions import class_names
from peftlab.report.table import Head, Table, plain_table
from peftlab.training.config import TrainerConfig

if TYPE_CHECKING:
    import pyarrow


def main(arguments: Sequence[str]) -> int:
    """Rebuild the model from the run folder alone, test it, print the metrics."""
    parser = argparse.ArgumentParser("peftlab evaluate", description="Test a finished run again.")
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    parser.add_argument(
        "overrides", nargs="*", help="other data: data=<set>, data.<key>=<value>; also trainer.<key>=<value>"
    )
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--predictions", metavar="FILE", help="also write a row a text: csv, tsv, jsonl or parquet")
    given = parser.parse_intermixed_args(list(arguments))
    path = None if given.predictions is None else require_writable(given.predictions, "--predictions")
    folder, config, record = finished_run(given.run)
    apply_overrides(config, given.overrides)
    from peftlab.runs.evaluate import evaluate

    def keep(rows: Texts, table: pyarrow.Table) -> None:
        if path is not None:
            write_rows(path, _rows(rows, table))

    result = evaluate(folder, config, split=given.split, keep=keep)
    if given.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(result, record, config.data.what_is_learned(), unchanged=not given.overrides and given.split == "test")
    return 0


def _rows(rows: Texts, table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    """The predictions, each with its text, and probabilities by the names of the classes."""
    names = class_names(table)
    for text, row in zip(rows.texts, table.to_pylist(), strict=True):
        found = {"row": row.pop("row"), "text": text.replace(SEPARATOR, "\t"), **row}
        if (shares := found.get("probabilities")) is not None:
            task = f"{row['task']}/" if "task" in row else ""
            own = [name.removeprefix(task) for name in names if name.startswith(task)]
            found["probabilities"] = dict(zip(own, shares, strict=True))
        yield found


CHANGEABLE = ("trainer.accelerator", "trainer.precision", "trainer.threads", "trainer.progress_bar")
"""Trainer keys that make sense for a test, which always runs on one device."""


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> None:
    """Change ``data`` and the device of a finished run's config; the model itself cannot be changed.

    Raises:
        ConfigError: naming an override of anything else, or a value that does not fit.
    """
    parse(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key != "data" and not key.startswith("data.") and key not in CHANGEABLE:
            raise ConfigError(
                f"evaluate cannot change '{key}': the model is the run's own. "
                f"Give data=<set>, data.<key>=<value>, or one of {', '.join(CHANGEABLE)}."
            )
    if any(override.startswith("data=") for override in overrides):
        # Another data set: its own defaults, but the tokens the model was trained on.
        kept = [f"data.{name}={getattr(config.data, name)}" for name in ("max_length", "truncation", "eval_batch_size")]
        data = [override for override in overrides if override.startswith("data")]
        config.data = check(composed([*kept, *data])).data
    else:
        config.data = _changed("data", config.data, DataSet, overrides)
    one_device = ["trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto"]
    config.trainer = _changed("trainer", config.trainer, TrainerConfig, [*one_device, *overrides])


def _changed(group: str, current: Any, base: type, overrides: Sequence[str]) -> Any:
    """``current`` with the overrides of its ``group``, checked."""
    mine = [override for override in overrides if override.startswith(f"{group}.")]
    values = asdict(current) | _plain_values(mine, group)
    return validate_group(group, {"_target_": stable_name(type(current)), **values}, base)


def _plain_values(overrides: Sequence[str], group: str) -> dict[str, Any]:
    return {key.removeprefix(f"{group}."): value for key, value in override_values(overrides).items()}


def _details(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    """The figures of each class, by their own names: of one class the share that was found is its recall."""
    titles = list(dict.fromkeys(title for _, values in rows for title in values))
    lines = [[name, *(shown(values[title]) if title in values else "" for title in titles)] for name, values in rows]
    return plain_table([Head("class"), *(Head(title, number=True) for title in titles)], lines)


def _print(result: dict[str, Any], record: dict[str, Any], objective: Learned, *, unchanged: bool) -> None:
    from peftlab.report.render.terminal import console, print_lines, print_table
    from peftlab.report.result import FiguresTable, generated_lines, undefined_lines

    metrics, figures = result["metrics"], FiguresTable(objective)
    title = f"{result['split']}: {result['kind']}" if result["split"] == "test" else result["split"]
    figures.add(title, metrics["rows"], metrics)
    figures.add_tasks(metrics)
    out = console()
    print_table(out, figures.table)
    if details := [*objective.detail_rows(metrics)]:
        print_table(out, _details(details))
    print_lines(out, undefined_lines(objective, result["split"], metrics))
    print_lines(out, generated_lines(objective, result["split"], metrics))
    if unchanged:
        now, before = metrics[objective.selects], record["metrics"]["test"][objective.selects]
        out.print(f"the record says {shown(before)}: {'the same' if now == before else 'DIFFERENT'}")
