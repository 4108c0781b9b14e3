"""What a run prints before it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from typing import Any

from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.in_words import TOO_LONG, rows_in_words
from peftlab.records.find import begun_on_other_devices
from peftlab.records.folder import RunFolder
from peftlab.report.render.terminal import console, print_facts
from peftlab.runs.batches import batches_a_step
from peftlab.terminal import say
from peftlab.training.ranks import world_size


def print_before(
    config: RunConfig,
    folder: RunFolder,
    splits: Splits,
    backbone: Backbone,
    parameters: dict[str, int],
    tokens: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """The summary before training: data, model, what trains, and what will be saved.

    ``tokens``: what is known of them, by split.
    """
    facts = _facts(config, folder, splits, backbone, parameters)
    lines = enumerate(_token_lines(tokens or {}, splits, config.data.max_length))
    print_facts(console(), [*facts, *(("" if number else "tokens", line) for number, line in lines)])


def _token_lines(tokens: Mapping[str, Mapping[str, int]], splits: Splits, max_length: int) -> Iterator[str]:
    """``train: 12,345 tokens, 2,345 of them targets``, and what was cut; of texts without targets only that."""
    for split, of in tokens.items():
        if "targets" not in of:
            if of["cut"]:
                texts = len(getattr(splits, split))
                yield f"{split}: {of['cut']:,} of {texts:,} texts are longer than {max_length} tokens, and cut"
            continue
        said = f"{split}: {of['tokens']:,} tokens, {of['targets']:,} of them targets"
        if "token_rows" in of:
            said += f", in {of['token_rows']:,} rows of tokens"
        if of["cut"]:
            said += f"; {of['cut']:,} answers are cut at data.max_length, and end without an end token"
        if of["rows_without_targets"]:
            said += f"; {of['rows_without_targets']:,} rows have no target and do not count"
        yield said


def say_where_it_was_begun(config: RunConfig) -> None:
    """Name unfinished runs that are this one on other processes: nothing of them is gone on with."""
    for other, trainer in begun_on_other_devices(config):
        theirs, mine = world_size(trainer), world_size(config.trainer)
        say(
            f"note: {other.path} is this run on {theirs} process{'es' if theirs > 1 else ''}, and has not ended. On "
            f"{mine} it is another one, which begins at the start: dropout is drawn by process, and gradients are "
            f"added up in another order. trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes} "
            f"trainer.strategy={trainer.strategy} goes on with it, to the same bits.",
        )


def _facts(
    config: RunConfig, folder: RunFolder, splits: Splits, backbone: Backbone, parameters: dict[str, int]
) -> Iterator[tuple[str, str]]:
    yield ("run", str(folder.path))
    yield from zip(chain(["data"], repeat("")), rows_in_words(config.data, splits), strict=False)
    if any(longer := splits.provenance.get(TOO_LONG, {}).values()):
        train, validation, test = longer
        said = f"{train:,} training and {validation:,} validation rows, left out; {test:,} of the test, cut"
        yield ("", f"too long: {said}")
    yield ("backbone", _backbone_line(backbone))
    if (start := backbone.provenance.get("from_run")) is not None:
        yield ("started from", _start_line(start))
    yield ("method", f"{config.peft.name}: {config.peft.count}")
    if parameters["adapted"] and parameters["trainable_without_head"]:
        ratio = parameters["adapted"] / parameters["trainable_without_head"]
        yield (
            "",
            f"{parameters['trainable_without_head']:,} parameters beside the {parameters['adapted']:,} of the weights "
            f"they adapt: {ratio:.1f} times fewer",
        )
    yield ("head", _head_line(backbone, parameters, config))
    yield ("trainable", trainable_in_words(parameters))
    yield (
        "stored",
        f"{parameters['stored']:,} numbers in about {parameters['adapter_bytes']:,} bytes; the whole model has "
        f"{parameters['model_bytes']:,} bytes",
    )
    yield ("batch", f"{_step_line(config)}, at most {config.data.max_length} tokens each")


def trainable_in_words(parameters: Mapping[str, int]) -> str:
    """``294,912 of 66,955,010 parameters (0.440%); 294,912 without the head``."""
    share = parameters["trainable"] / parameters["total"]
    return (
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.3%}); "
        f"{parameters['trainable_without_head']:,} without the head"
    )


def _step_line(config: RunConfig) -> str:
    batches, together = batches_a_step(config), config.data.global_batch_size
    if together is None:
        return f"{config.data.batch_size * batches} texts a step and device"
    return f"{together} texts a step, in {batches} batch{'es' if batches > 1 else ''} a device"


def _backbone_line(backbone: Backbone) -> str:
    facts = backbone.provenance
    where = next((str(facts[k]) for k in ("package", "name_or_path", "id", "path") if facts.get(k)), "")
    quantized = f", {facts['quantize']} weights" if facts.get("quantize") else ""
    return f"{backbone.architecture} {where}{quantized}".strip()


def _head_line(backbone: Backbone, parameters: dict[str, int], config: RunConfig) -> str:
    if not backbone.head_modules():
        return f"{backbone.provenance.get('head', 'none')}: no part of what trains beside the method"
    state = "trains" if config.trains_head else "frozen"
    said = f"{', '.join(backbone.head_modules())}: {parameters['head']:,} parameters, {state}"
    origin = backbone.provenance.get("head")
    return f"{said}; {origin}" if origin else said


def _start_line(start: dict[str, Any]) -> str:
    labels = ", ".join(start["label_names"])
    head = "its head too" if start["head"] == "taken over" else f"not its head, which knew other labels ({labels})"
    return f"{start['path']} (peft={start['method']}): took over {start['parameters_taken_over']:,} parameters, {head}"
