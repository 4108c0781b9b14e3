"""Whether a record's counts of parameters agree with each other, with its adapter file and with its bytes.

Of peftlab's own methods it is known what they add and what they store, so that most counts follow from others; of
methods from elsewhere only what the protocol asks of all. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.runs.consistency import Finding
from peftlab.runs.seal import ADAPTER
from peftlab.runs.tensors import Array


def size_findings(
    record: dict[str, Any], config: RunConfig | None, tensors: Mapping[str, Array] | None
) -> Iterator[Finding]:
    """Every count of a finished ``record`` that contradicts another one.

    Args:
        record: of the known schema version.
        config: the run's, checked; None if this peftlab does not accept it.
        tensors: of the adapter file; None if it cannot be read.
    """
    counts = record["parameters"]
    trainable, alone, total = (counts[name] for name in ("trainable", "trainable_without_head", "total"))
    if not 0 <= alone <= trainable <= total:
        yield Finding(
            "parameters",
            f"trainable_without_head={alone}, trainable={trainable} and total={total} must not decrease",
        )
    stored, head = counts.get("stored"), counts.get("head")
    trains_head = record["config"]["backbone"].get("train_head")
    if head is not None and trains_head is not None and trainable - alone != (expected := head if trains_head else 0):
        yield Finding(
            "parameters.trainable",
            f"{trainable}, but trainable_without_head={alone} and the {expected} of the head that train give "
            f"{alone + expected}",
        )
    if stored is not None and stored < trainable:
        yield Finding("parameters.stored", f"{stored}, but {trainable} train, and all that trains is stored")
    size = record["files"].get(ADAPTER, {}).get("bytes")
    if size is not None and counts["adapter_bytes"] != size:
        yield Finding("parameters.adapter_bytes", f"{counts['adapter_bytes']}, but {ADAPTER} has {size} by 'files'")
    yield from _of_own_methods(record, config, tensors)


def _of_own_methods(
    record: dict[str, Any], config: RunConfig | None, tensors: Mapping[str, Array] | None
) -> Iterator[Finding]:
    counts, peft = record["parameters"], record["config"]["peft"]
    if not _is_own(peft):
        return
    beside = _beside(peft)
    if tensors is not None and beside is not None:
        trains = sum(tensor.size for name, tensor in tensors.items() if not beside.fullmatch(name.rpartition(".")[2]))
        if trains != counts["trainable"]:
            said = f"{counts['trainable']}, but of the numbers in {ADAPTER} {trains} train"
            yield Finding("parameters.trainable", said)
    if (size := counts.get("model_bytes")) is not None:
        least, most = _bytes_an_element(record)
        if not least * counts["total"] <= size <= most * counts["total"]:
            yield Finding("parameters.total", f"{counts['total']}, which {size} bytes of the model cannot be")
    if (backbone := record["backbone"].get("parameters")) is None:
        return
    added = counts["total"] - backbone
    head = counts["trainable"] - counts["trainable_without_head"]
    least_added, most_added = 0, counts.get("stored", counts["total"]) - head
    if config is not None and not _is_composed(peft):  # a composition adds what some of its methods add
        if config.peft.supports.adds_nothing:
            most_added = 0
        elif _adds_what_trains(peft):
            least_added = most_added = counts["trainable_without_head"]
    if not least_added <= added <= most_added:
        yield Finding(
            "parameters.total",
            f"{counts['total']}, {added} more than the {backbone} of the backbone; the method adds "
            + (f"{most_added}" if least_added == most_added else f"{least_added} to {most_added}"),
        )


_FROM_ELSEWHERE = ("hf_peft", "imported")
"""Modules of peftlab's whose methods' layers are made by others' code, or by what a file says."""


def _is_own(peft: dict[str, Any]) -> bool:
    """Whether all that the config ``peft`` names are methods of peftlab's own code."""
    named = [str(peft["_target_"])]
    for entry in peft.get("methods", []) if _is_composed(peft) else []:
        fields = entry if isinstance(entry, dict) else {"name": entry}
        named.append(str(fields.get("_target_") or f"peftlab.peft.{fields.get('name')}.of_this_name"))
    modules = [name.removeprefix("peftlab.peft.").partition(".")[0] for name in named]
    return all(name.startswith("peftlab.peft.") for name in named) and all(
        module not in _FROM_ELSEWHERE and (_METHODS / f"{module}.py").is_file() for module in modules
    )


_METHODS = Path(__file__).parents[1] / "peft"


def _is_composed(peft: dict[str, Any]) -> bool:
    return str(peft["_target_"]).startswith("peftlab.peft.compose.")


def _beside(peft: dict[str, Any]) -> re.Pattern[str] | None:
    """Last names of stored tensors that do not train; None if names do not tell.

    The starts of PiSSA, what methods with a rank budget remember, and the frozen random matrices.
    """
    frozen = ""
    if "vera" in str(peft["_target_"]):
        frozen = "|A|B"
    elif peft.get("freeze_A"):
        frozen = "|A"
    elif _is_composed(peft) and ("vera" in str(peft) or "'freeze_A': True" in str(peft)):
        return None
    return re.compile(rf"A_start|B_start|kept|importance|weight_squares|sensitivity_\w+|uncertainty_\w+{frozen}")


def _adds_what_trains(peft: dict[str, Any]) -> bool:
    """Whether what trains beside the head is what the method adds: none of it is the backbone's, and none is frozen."""
    return peft.get("bias") not in ("all", "lora_only") and not peft.get("freeze_A")


def _bytes_an_element(record: dict[str, Any]) -> tuple[float, float]:
    """The least and the most that an element of the model can take."""
    match record["config"]["backbone"].get("quantize"), record["backbone"].get("dtype", "float32"):
        case None, "float32":
            return 4, 4
        case None, _:
            return 2, 4
        case "int8", _:
            return 1, 4
        case _:
            return 0.5, 4
