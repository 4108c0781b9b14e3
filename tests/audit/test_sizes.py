"""Counts of parameters against each other: no method's own counts contradict themselves, and an edited one does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from peftlab.audit.consistency import Finding
from peftlab.audit.sizes import size_findings
from peftlab.audit.tensors import Array, frozen_in, tensors_in
from peftlab.composition import composed
from peftlab.config import check, from_plain
from peftlab.errors import RunError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.runs.adapter_file import adapter_bytes
from peftlab.runs.counted import count_parameters
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


@dataclass(frozen=True)
class Run:
    """What of a run says how large things are."""

    record: dict[str, Any]
    tensors: dict[str, Array] | None
    """Of the adapter file."""
    frozen: frozenset[str] | None
    """What the file says of itself."""

    def findings(self) -> list[Finding]:
        return list(size_findings(self.record, self.tensors, self.frozen))


def built(*overrides: str) -> tuple[Adapter, dict[str, Any]]:
    """The adapter of a run with ``overrides``, not trained, and the run's config."""
    plain = check(composed([*TINY, "data.path=reviews.jsonl", *overrides])).plain()
    config = from_plain(plain)
    backbone = config.backbone.build(2, seed=0, train_texts=["a fine film", "a dull one"])
    return attach(backbone, config.peft, seed=0, train_head=config.trains_head), plain


def counted(*overrides: str) -> Run:
    """As a run of ``overrides`` would write it."""
    adapter, plain = built(*overrides)
    data = adapter_bytes(adapter)
    record = {
        "config": plain,
        "backbone": adapter.backbone.provenance,
        "parameters": count_parameters(adapter) | {"adapter_bytes": len(data)},
        "files": {"adapter.safetensors": {"bytes": len(data)}},
    }
    return Run(record, tensors_in(data), frozen_in(data))


def lacking_added(run: Run) -> Run:
    """The run as it was written before records said what the method adds."""
    record = deepcopy(run.record)
    del record["parameters"]["added"]
    return replace(run, record=record)


def lacking_header(run: Run) -> Run:
    """The run with an adapter file of format 1, which does not say what trains, but by the last names of tensors."""
    assert run.tensors is not None
    tensors = {f"model.{name}".replace(".lora_", "."): tensor for name, tensor in run.tensors.items()}
    assert len(tensors) == len(run.tensors)
    return replace(run, tensors=tensors, frozen=None)


VERSIONS = {
    "now": lambda run: run,
    "no added": lacking_added,
    "no header": lacking_header,
    "format 1": lambda run: lacking_header(lacking_added(run)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_run_counts_agrees(name: str, reviews: Path) -> None:
    run = counted(*VARIANTS[name])
    assert run.frozen is not None
    for version in VERSIONS.values():
        written = version(run)
        assert written.findings() == []
        assert replace(written, tensors=None, frozen=None).findings() == []
        older = deepcopy(written.record)
        for lacking in ("stored", "head", "adapted", "model_bytes"):
            del older["parameters"][lacking]
        del older["backbone"]["parameters"]
        assert replace(written, record=older).findings() == []


@pytest.mark.parametrize("name", VARIANTS)
def test_the_file_says_what_did_not_train(name: str, reviews: Path) -> None:
    """In its header, by name: what neither requires a gradient nor is the head."""
    adapter, _ = built(*VARIANTS[name])
    data = adapter_bytes(adapter)
    frozen, state = frozen_in(data), adapter.tensors()
    assert tensors_in(data).keys() == state.keys()
    assert frozen == {name for name, tensor in state.items() if not tensor.requires_grad}


def test_the_same_tensors_are_the_same_file(reviews: Path) -> None:
    adapter, _ = built("peft=vera")
    data = adapter_bytes(adapter)
    assert all(adapter_bytes(adapter) == data for _ in range(20))
    read = safetensors.torch.load(data)
    assert read.keys() == adapter.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in adapter.state_dict().items())


def test_files_of_format_1_do_not_say_it() -> None:
    assert frozen_in(safetensors.torch.save({"model.x": torch.zeros(1)})) is None
    assert frozen_in(safetensors.torch.save({"model.x": torch.zeros(1)}, metadata={"format": "pt"})) is None


@pytest.mark.parametrize("said", ["", "x", '{"x": 1}', "[1]", '"x"'])
def test_what_is_not_said_as_it_should_be_is_refused(said: str) -> None:
    data = safetensors.torch.save({"x": torch.zeros(1)}, metadata={"frozen": said})
    with pytest.raises(RunError, match="frozen tensors is not as peftlab writes it"):
        frozen_in(data)


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
    (("parameters.added",), 8),
    (("parameters.added", "parameters.total"), 8),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overrides", ["lora", "full", "prompt_tuning", "adalora"])
def test_an_edited_count_is_named(overrides: str, version: str, reviews: Path) -> None:
    run = VERSIONS[version](counted(f"peft={overrides}"))
    assert run.findings() == []
    for names, by in EDITS:
        if "parameters.added" in names and "added" not in run.record["parameters"]:
            continue
        edited = deepcopy(run.record)
        for name in names:
            part, _, leaf = name.partition(".")
            edited[part][leaf] += by
        if overrides == "adalora" and names == ("parameters.stored",):
            continue  # stores more than what trains; the file itself is counted elsewhere
        assert replace(run, record=edited).findings(), names


def test_a_tensor_that_the_header_calls_frozen_or_trained_falsely_is_named(reviews: Path) -> None:
    run = counted("peft=vera")
    assert run.frozen
    assert run.tensors is not None
    training = min(run.tensors.keys() - run.frozen)
    for frozen in (run.frozen | {training}, run.frozen - {min(run.frozen)}):
        (finding,) = replace(run, frozen=frozen).findings()
        assert finding.about == "parameters.trainable"
        assert "of the numbers in adapter.safetensors" in finding.said


def test_of_methods_from_elsewhere_only_the_protocol_is_asked(reviews: Path) -> None:
    """Of their records without ``added``, and files without a header, no more than that counts do not decrease."""
    run = VERSIONS["format 1"](counted("peft=lora"))
    record = run.record
    record["config"]["peft"]["_target_"] = "my_methods.mine.Mine"
    record["parameters"]["total"] += 5000  # a frozen matrix that is drawn again from the seed
    assert run.findings() == []
    record["parameters"]["trainable"] += 1
    assert {finding.about for finding in run.findings()} == {"parameters.trainable", "parameters.stored"}


def test_of_methods_from_elsewhere_it_counts_what_record_and_file_say_themselves(reviews: Path) -> None:
    run = counted("peft=lora")
    run.record["config"]["peft"]["_target_"] = "my_methods.mine.Mine"
    assert run.findings() == []
    for part, leaf in (("parameters", "added"), ("parameters", "total"), ("backbone", "parameters")):
        edited = deepcopy(run.record)
        edited[part][leaf] += 8
        assert [finding.about for finding in replace(run, record=edited).findings()] == ["parameters.total"], leaf
    edited = deepcopy(run.record)
    for leaf in ("trainable", "trainable_without_head"):
        edited["parameters"][leaf] -= 8
    assert [finding.about for finding in replace(run, record=edited).findings()] == ["parameters.trainable"]
