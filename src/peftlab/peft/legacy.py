"""Adapter files and checkpoints of earlier versions: their names of tensors, and which of these trained.

Format 1 named tensors as the adapted model had them at the time (``model.….query.updates.all.A``), each method with a
word of its own, and did not say which of them train. Format 2 names them as :mod:`peftlab.peft.adapter` does.

Nothing else in the project knows format 1. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from peftlab.errors import PeftlabError

T = TypeVar("T")

FORMAT = 2
"""What is written now."""

_LOW_RANK = (
    (r"\.updates\.(\w+)\.A$", r".deltas.\1.lora_A"),
    (r"\.updates\.(\w+)\.B$", r".deltas.\1.lora_B"),
    (r"\.updates\.(\w+)\.", r".deltas.\1."),
)
_BOTTLENECK = ((r"\.adapters\.(\w+)\.", r".deltas.\1."),)
_OWN = ((r"\.base(?:_layer)?\.(\w+)$", r".\1"),)

NAMES: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType(
    {
        "lora": (*_LOW_RANK, *_OWN),
        "dora": _LOW_RANK,
        "adalora": _LOW_RANK,
        "dynamic_dora": _LOW_RANK,
        "vera": ((r"\.updates\.(\w+)\.", r".deltas.\1."),),
        "ia3": (
            (r"\.output_scales\.(\w+)$", r".deltas.\1.scale"),
            (r"\.input_scale$", r".deltas.input.scale"),
        ),
        "houlsby": _BOTTLENECK,
        "pfeiffer": _BOTTLENECK,
        "parallel_adapter": (*_BOTTLENECK, (r"\.around\.", r".deltas.sub_layer.")),
        "bitfit": _OWN,  # beside a method that stands around the layer
        "layernorm": _OWN,
        "parameters": _OWN,
        "last_layers": _OWN,
        "full": _OWN,
        "hf_peft": ((r"\.token_adapter\.", "."),),
    }
)
"""Method → (regex, replacement) of its tensors' names in format 1, tried in this order; methods that are not here kept
theirs. All names began with ``model.`` (in checkpoints ``backbone.model.``), which is gone."""


MODULES = frozenset(
    {
        "adalora", "bitfit", "compose", "dora", "dynamic_dora", "full", "head", "houlsby", "ia3", "last_layers",
        "layernorm", "lora", "multitask_prompt", "p_tuning", "p_tuning_v2", "parallel_adapter", "parameters",
        "pfeiffer", "prefix_tuning", "prompt_tuning", "vera",
    }
)  # fmt: skip
"""Modules of peftlab's own methods that wrote format 1."""

ADD_NOTHING = frozenset({"bitfit", "full", "head", "last_layers", "layernorm", "parameters"})
"""Those of them that train the backbone's own tensors alone."""


def present_state(state: Mapping[str, T], written: int, methods: Sequence[str]) -> dict[str, T]:
    """The tensors of a file or checkpoint under the names that they have now.

    Args:
        state: by the names that they were saved under.
        written: the format that they were saved in.
        methods: that the adapter is of.

    Raises:
        PeftlabError: for a format of a later version.
    """
    if written == FORMAT:
        return dict(state)
    if written > FORMAT:
        raise PeftlabError(
            f"the adapter is of format {written}, and this peftlab reads up to {FORMAT}. Read it with the version of "
            "peftlab that its record names."
        )
    return {present_name(name, methods): tensor for name, tensor in state.items()}


def present_name(name: str, methods: Sequence[str]) -> str:
    """What is called now what format 1 called ``name``, in an adapter of ``methods``."""
    name = name.removeprefix("backbone.").removeprefix("model.")
    for method in methods:
        for pattern, replacement in NAMES.get(method, ()):
            new, count = re.subn(pattern, replacement, name)
            if count:
                return new
    return name


def trained(name: str, peft: Mapping[str, Any]) -> bool | None:
    """Whether the tensor ``name`` of a file in format 1 trained; None if names do not tell.

    Of the methods of :data:`MODULES`: the starts of PiSSA, what methods with a rank budget remember, and frozen random
    matrices did not.

    Args:
        name: in format 1.
        peft: the config of the method, as a record holds it.
    """
    frozen = ""
    if "vera" in str(peft["_target_"]):
        frozen = "|A|B"
    elif peft.get("freeze_A"):
        frozen = "|A"
    elif "methods" in peft and ("vera" in str(peft) or "'freeze_A': True" in str(peft)):
        return None
    beside = rf"A_start|B_start|kept|importance|weight_squares|sensitivity_\w+|uncertainty_\w+{frozen}"
    return re.fullmatch(beside, name.rpartition(".")[2]) is None


def added(peft: Mapping[str, Any], counts: Mapping[str, int], *, adds_nothing: bool | None) -> tuple[int, int]:
    """The least and the most parameters that the methods of a record without ``parameters.added`` have added.

    Args:
        peft: the config of the method.
        counts: the record's parameters.
        adds_nothing: of the method; None if it is not known, or several methods are composed.
    """
    if adds_nothing:
        return 0, 0
    alone = counts["trainable_without_head"]
    # none of what trains is the backbone's, and none of what is added is frozen
    if adds_nothing is False and peft.get("bias") not in ("all", "lora_only") and not peft.get("freeze_A"):
        return alone, alone
    return 0, counts.get("stored", counts["total"]) - (counts["trainable"] - alone)
