"""Counts of parameters against each other: no method's own counts contradict themselves, and an edited one does."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.composition import composed
from peftlab.config import RunConfig, check, from_plain
from peftlab.peft.base import apply
from peftlab.runs.assemble import count_parameters
from peftlab.runs.sizes import size_findings
from peftlab.runs.tensors import Array
from tests.conftest import TINY

METHODS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "conf/peft").glob("*.yaml") if path.stem != "import"
)

SMALL = {"hf_peft": ("peft.options.oft_block_size=8",)}

VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (f"peft={name}", *SMALL.get(name, ())) for name in METHODS},
    "lora-fa": ("peft=lora", "peft.freeze_A=true"),
    "pissa": ("peft=lora", "peft.init=pissa"),
    "lora with biases": ("peft=lora", "peft.bias=all"),
    "frozen head": ("peft=lora", "backbone.train_head=false"),
    "two methods": ("peft=compose", "peft.methods=[{name: lora, rank: 4}, bitfit]"),
    "only own tensors": ("peft=compose", "peft.methods=[bitfit]"),
    "vera and lora": ("peft=compose", "peft.methods=[{name: vera, targets: [query]}, {name: lora, targets: [value]}]"),
    "adalora and lora-fa": (
        "peft=compose",
        "peft.methods=[{name: adalora, targets: [query]}, {name: lora, freeze_A: true, targets: [value]}]",
    ),
    "lora in bfloat16": ("peft=lora", "backbone.dtype=bfloat16"),
    "bitfit in bfloat16": ("peft=bitfit", "backbone.dtype=bfloat16"),
    "lora on nf4": ("peft=lora", "backbone.quantize=nf4"),
    "bitfit on nf4": ("peft=bitfit", "backbone.quantize=nf4"),
    "dora on int8": ("peft=dora", "backbone.quantize=int8"),
    "a decoder": ("peft=lora", "backbone.architecture.model_type=llama"),
    "text classifier": ("backbone=text_classifier", "peft=full"),
    "frozen words": ("backbone=text_classifier", "backbone.freeze=true", "peft=full"),
}


def counted(*overrides: str) -> tuple[dict[str, Any], RunConfig, dict[str, Array]]:
    """What of a record says how large things are, as a run of ``overrides`` would write it; config and adapter."""
    plain = check(composed([*TINY, "data.path=reviews.jsonl", *overrides])).plain()
    config = from_plain(plain, real=True)
    backbone = config.backbone.build(2, seed=0, train_texts=["a fine film", "a dull one"])
    apply(config.peft, backbone, seed=0, train_head=config.backbone.train_head)
    state = config.peft.adapter_state(backbone)
    record = {
        "config": plain,
        "backbone": backbone.provenance,
        "parameters": count_parameters(backbone, config.peft) | {"adapter_bytes": 1234},
        "files": {"adapter.safetensors": {"bytes": 1234}},
    }
    return record, from_plain(plain, real=False), {n: np.zeros(tuple(tensor.shape)) for n, tensor in state.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_run_counts_agrees(name: str, reviews: Path) -> None:
    record, config, tensors = counted(*VARIANTS[name])
    assert list(size_findings(record, config, tensors)) == []
    assert list(size_findings(record, None, None)) == []
    older = deepcopy(record)
    for lacking in ("stored", "head", "adapted", "model_bytes"):
        del older["parameters"][lacking]
    del older["backbone"]["parameters"]
    assert list(size_findings(older, config, tensors)) == []


# (counts that are changed together, by how much)
EDITS: list[tuple[tuple[str, ...], int]] = [
    (("parameters.trainable",), 8),
    (("parameters.trainable_without_head",), -8),
    (("parameters.trainable", "parameters.trainable_without_head"), -8),
    (("parameters.trainable", "parameters.trainable_without_head", "parameters.total"), -8),
    (("parameters.total",), 8),
    (("parameters.total", "backbone.parameters"), 8),
    (("parameters.head",), 8),
    (("parameters.stored",), -8),
    (("parameters.adapter_bytes",), -8),
    (("backbone.parameters",), 8),
]


@pytest.mark.parametrize("overrides", ["lora", "full", "prompt_tuning", "adalora"])
def test_an_edited_count_is_named(overrides: str, reviews: Path) -> None:
    record, config, tensors = counted(f"peft={overrides}")
    for names, by in EDITS:
        edited = deepcopy(record)
        for name in names:
            part, _, leaf = name.partition(".")
            edited[part][leaf] += by
        if overrides == "adalora" and names == ("parameters.stored",):
            continue  # stores more than what trains; the file itself is counted elsewhere
        assert list(size_findings(edited, config, tensors)), names


def test_of_methods_from_elsewhere_only_the_protocol_is_asked(reviews: Path) -> None:
    record, _, tensors = counted("peft=lora")
    record["config"]["peft"]["_target_"] = "my_methods.mine.Mine"
    record["parameters"]["total"] += 5000  # a frozen matrix that is drawn again from the seed
    assert list(size_findings(record, None, tensors)) == []
    record["parameters"]["trainable"] += 1
    assert {finding.about for finding in size_findings(record, None, tensors)} == {
        "parameters.trainable",
        "parameters.stored",
    }
