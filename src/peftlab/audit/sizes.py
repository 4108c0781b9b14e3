"""Whether a record's counts of parameters agree with each other, with its adapter file and with its bytes.

Of peftlab's own methods it is known what they add and what they store, so that most counts follow from others; of
methods from elsewhere only what the protocol asks of all. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.audit.consistency import Finding
from peftlab.audit.tensors import Array
from peftlab.class_names import place_of, stable_name
from peftlab.peft import legacy
from peftlab.records.integrity import ADAPTER


def size_findings(
    record: dict[str, Any],
    tensors: Mapping[str, Array] | None,
    frozen: frozenset[str] | None = None,
) -> Iterator[Finding]:
    """Every count of a finished ``record`` that contradicts another one.

    Args:
        record: of the known schema version.
        tensors: of the adapter file; None if it cannot be read.
        frozen: names of those that did not train; None if the file does not say it, as earlier versions wrote it.
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
    peft = record["config"]["peft"]
    if tensors is not None:
        yield from _what_trains(trainable, peft, tensors, frozen)
    yield from _bytes_of_the_model(record)
    yield from _what_is_added(record)


def _what_trains(
    trainable: int, peft: dict[str, Any], tensors: Mapping[str, Array], frozen: frozenset[str] | None
) -> Iterator[Finding]:
    """The numbers in the adapter file that train, by what the file says of itself, or by the names of format 1."""
    if frozen is not None:
        trains = {name: name not in frozen for name in tensors}
    else:
        known = _modules(peft) <= legacy.MODULES
        by_name = {name: legacy.trained(name, peft) if known else None for name in tensors}
        if None in by_name.values():
            return
        trains = {name: bool(holds) for name, holds in by_name.items()}
    found = sum(tensor.size for name, tensor in tensors.items() if trains[name])
    if found != trainable:
        yield Finding("parameters.trainable", f"{trainable}, but of the numbers in {ADAPTER} {found} train")


def _bytes_of_the_model(record: dict[str, Any]) -> Iterator[Finding]:
    counts = record["parameters"]
    size = counts.get("model_bytes")
    if size is None or not _is_own(record["config"]["peft"]):
        return
    least, most = _bytes_an_element(record)
    if not least * counts["total"] <= size <= most * counts["total"]:
        yield Finding("parameters.total", f"{counts['total']}, which {size} bytes of the model cannot be")


def _what_is_added(record: dict[str, Any]) -> Iterator[Finding]:
    """The parameters that the model has and the backbone has not."""
    counts, peft = record["parameters"], record["config"]["peft"]
    if (backbone := record["backbone"].get("parameters")) is None:
        return
    found = counts["total"] - backbone
    if "added" in counts:
        least = most = counts["added"]
    elif (modules := _modules(peft)) <= legacy.MODULES:
        # a composition adds what some of its methods add
        nothing = None if _is_composed(peft) else modules <= legacy.ADD_NOTHING
        least, most = legacy.added(peft, counts, adds_nothing=nothing)
    else:
        return
    if not least <= found <= most:
        yield Finding(
            "parameters.total",
            f"{counts['total']}, {found} more than the {backbone} of the backbone; the method adds "
            + (f"{most}" if least == most else f"{least} to {most}"),
        )


_FROM_ELSEWHERE = {"hf_peft", "imported", ""}
"""Modules of peftlab's whose methods' layers are made by others' code, or by what a file says; empty: of others."""


def _is_own(peft: dict[str, Any]) -> bool:
    """Whether all that the config ``peft`` names are methods of peftlab's own code."""
    return not _modules(peft) & _FROM_ELSEWHERE


def _modules(peft: dict[str, Any]) -> set[str]:
    """Modules in the room ``peft`` of all methods that the config ``peft`` names; empty for a method from elsewhere."""
    named = [str(peft["_target_"])]
    for entry in peft.get("methods", []) if _is_composed(peft) else []:
        fields = entry if isinstance(entry, dict) else {"name": entry}
        named.append(str(fields.get("_target_") or f"peftlab.peft.{fields.get('name')}.of_this_name"))
    modules = set()
    for place in map(place_of, named):
        module = place.removeprefix("peftlab.peft.").partition(".")[0]
        shipped = place.startswith("peftlab.peft.") and (_METHODS / f"{module}.py").is_file()
        modules.add(module if shipped else "")
    return modules


_METHODS = Path(__file__).parents[1] / "peft"


def _is_composed(peft: dict[str, Any]) -> bool:
    return stable_name(str(peft["_target_"])).startswith("peftlab.peft.compose.")


_OF_ALL_FLOATS = {"bf16-true": 2, "16-true": 2, "64-true": 8, "64": 8}
"""Precision of training that gives all floats of the model one type → bytes of that type."""


def _bytes_an_element(record: dict[str, Any]) -> tuple[float, float]:
    """The least and the most that an element of the model can take."""
    of_all = _OF_ALL_FLOATS.get(record["config"]["trainer"].get("precision"))
    match record["config"]["backbone"].get("quantize"), record["backbone"].get("dtype", "float32"):
        case None, _ if of_all is not None:
            return of_all, of_all
        case None, "float32":
            return 4, 4
        case None, _:
            return 2, 4
        case "int8", _:
            return 1, of_all or 4
        case _:
            return 0.5, of_all or 4
