"""What a run prints before it trains."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.records.folder import RunFolder
from peftlab.report.render.terminal import console


def print_before(
    config: RunConfig, folder: RunFolder, splits: Splits, backbone: Backbone, parameters: dict[str, int]
) -> None:
    """The summary before training: data, model, what trains, and what will be saved."""
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    rows = len(splits.train), len(splits.validation), len(splits.test)
    labels = config.data.what_is_learned().labels_in_words(splits.train.labels, splits.label_names)
    table.add_row("run", str(folder.path))
    table.add_row("data", f"{splits.train_kind}: {rows[0]:,} rows ({labels})")
    if splits.tasks:
        shares = ", ".join(f"{task} {count:,}" for task, count in splits.provenance["rows_an_epoch"].items())
        table.add_row("", f"rows an epoch: {shares}")
    table.add_row("", f"validation: {rows[1]:,} rows")
    table.add_row("", f"test, {splits.test_kind}: {rows[2]:,} rows")
    table.add_row("backbone", _backbone_line(backbone))
    if (start := backbone.provenance.get("from_run")) is not None:
        table.add_row("started from", _start_line(start))
    table.add_row("method", f"{config.peft.name}: {config.peft.count}")
    if parameters["adapted"] and parameters["trainable_without_head"]:
        ratio = parameters["adapted"] / parameters["trainable_without_head"]
        table.add_row(
            "",
            f"{parameters['trainable_without_head']:,} parameters beside the {parameters['adapted']:,} of the weights "
            f"they adapt: {ratio:.1f} times fewer",
        )
    table.add_row("head", _head_line(backbone, parameters, config))
    share = parameters["trainable"] / parameters["total"]
    table.add_row(
        "trainable",
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.3%}); "
        f"{parameters['trainable_without_head']:,} without the head",
    )
    table.add_row(
        "stored",
        f"{parameters['stored']:,} numbers in about {parameters['adapter_bytes']:,} bytes; the whole model has "
        f"{parameters['model_bytes']:,} bytes",
    )
    step = config.data.batch_size * config.trainer.accumulate_grad_batches
    table.add_row("batch", f"{step} texts a step and device, at most {config.data.max_length} tokens each")
    console().print(table)


def _backbone_line(backbone: Backbone) -> str:
    facts = backbone.provenance
    where = next((str(facts[k]) for k in ("package", "name_or_path", "id", "path") if facts.get(k)), "")
    quantized = f", {facts['quantize']} weights" if facts.get("quantize") else ""
    return f"{backbone.architecture} {where}{quantized}".strip()


def _head_line(backbone: Backbone, parameters: dict[str, int], config: RunConfig) -> str:
    state = "trains" if config.backbone.train_head else "frozen"
    return f"{', '.join(backbone.head_modules())}: {parameters['head']:,} parameters, {state}"


def _start_line(start: dict[str, Any]) -> str:
    labels = ", ".join(start["label_names"])
    head = "its head too" if start["head"] == "taken over" else f"not its head, which knew other labels ({labels})"
    return f"{start['path']} (peft={start['method']}): took over {start['parameters_taken_over']:,} parameters, {head}"
