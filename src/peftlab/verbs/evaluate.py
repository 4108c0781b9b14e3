"""``peftlab evaluate RUN``: test a finished run again, on its own data or on other data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.table import Table

from peftlab.composition import composed, parse
from peftlab.config import GROUPS, RunConfig, check, validate_group
from peftlab.errors import ConfigError
from peftlab.runs.folder import finished_run


def main(arguments: Sequence[str]) -> int:
    """Rebuild the model from the run folder alone, test it, print the metrics."""
    parser = argparse.ArgumentParser("peftlab evaluate", description="Test a finished run again.")
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    parser.add_argument(
        "overrides", nargs="*", help="other data: data=<set>, data.<key>=<value>; also trainer.<key>=<value>"
    )
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_intermixed_args(list(arguments))
    folder, config, record = finished_run(given.run)
    apply_overrides(config, given.overrides)
    from peftlab.runs.evaluate import evaluate

    result = evaluate(folder, config, split=given.split)
    if given.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(result, record, unchanged=not given.overrides and given.split == "test")
    return 0


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> None:
    """Change ``data`` and ``trainer`` of a finished run's config; the model itself cannot be changed.

    Raises:
        ConfigError: naming an override of anything else, or a value that does not fit.
    """
    parse(overrides)
    for override in overrides:
        if not override.startswith(("data=", "data.", "trainer.")):
            raise ConfigError(
                f"evaluate cannot change '{override.partition('=')[0]}': the model is the run's own. "
                "Give data=<set>, data.<key>=<value> or trainer.<key>=<value>."
            )
    if any(override.startswith("data=") for override in overrides):
        # Another data set: its own defaults, but the tokens the model was trained on.
        kept = [f"data.{name}={getattr(config.data, name)}" for name in ("max_length", "truncation", "eval_batch_size")]
        config.data = check(composed([*kept, *overrides]), real=True).data
    else:
        values = asdict(config.data)
        changes = [override for override in overrides if override.startswith("data.")]
        for name, value in _plain_values(changes).items():
            values[name] = value
        target = f"{type(config.data).__module__}.{type(config.data).__qualname__}"
        config.data = validate_group("data", {"_target_": target, **values}, GROUPS["data"], real=True)
    trainer = [override for override in overrides if override.startswith("trainer.")]
    if trainer:
        config.trainer = check(composed(trainer), real=True).trainer


def _plain_values(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    found = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = override.value()
        wrapped = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
        assert isinstance(wrapped, dict)
        found[override.key_or_group.removeprefix("data.")] = wrapped["value"]
    return found


def _print(result: dict[str, Any], record: dict[str, Any], *, unchanged: bool) -> None:
    from peftlab.report.result import console

    table = Table(box=SIMPLE_HEAVY)
    for column in ("split", "rows", "accuracy", "macro-F1", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    metrics = result["metrics"]
    table.add_row(
        f"{result['split']}: {result['kind']}" if result["split"] == "test" else result["split"],
        f"{metrics['rows']:,}",
        f"{metrics['accuracy']:.4f}",
        f"{metrics['macro_f1']:.4f}",
        f"{metrics['loss']:.4f}",
    )
    for name, accuracy in metrics["per_class"]["accuracy"].items():
        table.add_row(f"  {name}", "", f"{accuracy:.4f}", f"{metrics['per_class']['f1'][name]:.4f}", "")
    out = console()
    out.print(table)
    if unchanged:
        same = metrics["accuracy"] == record["metrics"]["test"]["accuracy"]
        out.print(f"the record says {record['metrics']['test']['accuracy']:.4f}: {'the same' if same else 'DIFFERENT'}")
