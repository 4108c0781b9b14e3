"""Every value that a key lists runs, or is refused in one line before anything trains."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import MPSAccelerator
from safetensors.torch import load_file

from peftlab.audit.verify import verify
from peftlab.composition import checked
from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach, methods
from peftlab.records.folder import RunFolder, finished_run
from peftlab.runs.assemble import reassemble
from peftlab.runs.evaluate import evaluate, predict
from peftlab.runs.train import train
from peftlab.schema import import_class
from peftlab.shipped import config_folder
from peftlab.training.config import TrainerConfig
from peftlab.training.precision import into_precision
from tests.conftest import TINY
from tests.peft.tiny import batch, tiny


def listed_values(hint: Any) -> Iterator[str]:
    """Values of the ``Literal`` that ``hint`` is, or has in a union."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) not in (dict, list):
        for inner in get_args(hint):
            yield from listed_values(inner)


def declared(cls: type) -> Iterator[tuple[str, str, type]]:
    """Field, value and the class that declares the field, of every field of ``cls`` that lists its values."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        owner = next(one for one in reversed(cls.__mro__) if field.name in inspect.get_annotations(one))
        for value in listed_values(hints[field.name]):
            yield field.name, value, owner


def classes(group: str) -> dict[str, type]:
    """Option → class of every file in ``conf/<group>``."""
    files = sorted((config_folder() / group).glob("*.yaml"))
    targets = {path.stem: yaml.safe_load(path.read_text())["_target_"] for path in files}
    return {option: import_class(target, group) for option, target in targets.items()}


def once(group: str) -> list[tuple[str, str, str]]:
    """Option, field and value: each listed value once for the class that declares it."""
    found = {}
    for option, cls in classes(group).items():
        for field, value, owner in declared(cls):
            found.setdefault((owner, field, value), (option, field, value))
    return list(found.values())


TRAINER = [(field, value) for field, value, _ in declared(TrainerConfig)]


def config(reviews: Path, *words: str) -> RunConfig:
    short = ("peft=lora", "trainer.max_steps=1", "trainer.max_epochs=1", "trainer.progress_bar=false", "optim.eps=1e-4")
    return checked([*TINY, f"data.path={reviews}", "data.limit_train=8", "name=t", *short, *words])


def runs(of: RunConfig) -> dict[str, Any]:
    """Train to a record."""
    train(of, argv=[])
    _, _, record = finished_run(str(RunFolder.of(of).path))
    assert record["backbone"]["frozen_unchanged"]
    return record


def allowed_here(field: str, value: str) -> bool:
    gpu = torch.cuda.is_available()
    if field == "accelerator":
        return {"gpu": gpu or MPSAccelerator.is_available(), "cuda": gpu, "mps": MPSAccelerator.is_available()}.get(
            value, True
        )
    return value not in ("16", "16-mixed") or gpu or MPSAccelerator.is_available()


@pytest.mark.parametrize(("field", "value"), TRAINER)
def test_of_the_trainer(field: str, value: str, reviews: Path) -> None:
    of = config(reviews, f"trainer.{field}={value}")
    if allowed_here(field, value):
        runs(of)
        return
    with pytest.raises(PeftlabError, match=f"trainer.{field}={value}") as refused:
        train(of, argv=[])
    assert "\n" not in str(refused.value)
    assert not list(Path("outputs").glob("*/*"))


@pytest.mark.parametrize(("option", "field", "value"), [one for one in once("backbone") if one[1] != "quantize"])
def test_of_backbones(option: str, field: str, value: str, reviews: Path) -> None:
    runs(config(reviews, "backbone=tiny", f"backbone.{field}={value}"))


@pytest.mark.parametrize(("option", "field", "value"), once("data"))
def test_of_data(option: str, field: str, value: str, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that are here, or refused for want of them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if field == "truncation":
        runs(config(reviews, f"data.truncation={value}"))
        return
    if option == "multitask":
        tasks = ", ".join(f"{{task: {task}, name: text_files, path: {reviews}}}" for task in "ab")
        of = checked([*TINY[:2], "data=multitask", f"data.tasks=[{tasks}]", f"data.{field}={value}"])
        assert len(of.data.load().tasks) == 2
        return
    of = checked([f"data={option}", f"data.{field}={value}"])
    with pytest.raises(PeftlabError, match=r"data\.path"):
        of.data.load()


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("64-true", ("backbone=text_classifier", "peft.targets=[hidden]")),
        ("16-true", ("peft=vera",)),
        ("bf16-true", ("peft=bitfit",)),
        ("64", ("peft=full", "backbone.dtype=bfloat16")),
        ("bf16-true", ("backbone.quantize=nf4",)),
        ("64-true", ("backbone.quantize=int8",)),
    ],
)
def test_what_is_saved_is_what_was_tested(precision: str, words: tuple[str, ...], reviews: Path) -> None:
    """All floats have the type, the adapter's and the head's too, and predictions are of the model that was tested."""
    of = config(reviews, *words, f"trainer.precision={precision}")
    record = runs(of)
    folder, read, _ = finished_run(str(RunFolder.of(of).path))
    wanted = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float64)
    assert {tensor.dtype for tensor in load_file(folder.adapter).values()} == {wanted}
    again = evaluate(folder, read)["metrics"]
    assert again["loss"] == pytest.approx(record["metrics"]["test"]["loss"], rel=1e-6)
    assembled, facts = reassemble(folder, read)
    assert {p.dtype for p in assembled.backbone.parameters() if p.is_floating_point()} == {wanted}
    assert not verify(folder).differences
    splits = of.data.load()
    said = list(predict(assembled, facts, read, splits.test.texts))
    right = sum(one["label"] == splits.label_names[label] for one, label in zip(said, splits.test.labels, strict=True))
    assert right / len(said) == pytest.approx(record["metrics"]["test"]["accuracy"])


def test_adam_whose_eps_is_zero_in_16_bits_is_refused(reviews: Path) -> None:
    with pytest.raises(PeftlabError, match=r"optim\.eps=1e-08 is 0 in 16 bits"):
        train(config(reviews, "trainer.precision=16-true", "optim.eps=1e-8"), argv=[])
    assert not list(Path("outputs").glob("*/*"))


METHODS = [
    (name, field, value)
    for name, cls in methods()
    for field, value, _ in declared(cls)
    # of a folder: tests/interop; of an earlier run: tests/peft/test_multitask_prompt.py
    # that starts from data: tests/peft/test_lora_ga.py
    if name != "import" and field != "source_init" and value != "lora_ga"
]


@pytest.mark.parametrize(("name", "field", "value"), METHODS)
def test_of_methods(name: str, field: str, value: str) -> None:
    """A step, in which something moves."""
    needed = {"parameters": {"pattern": "bias"}}.get(name, {}) | ({"init_text": "a film"} if value == "text" else {})
    backbone = tiny("bert")
    cls: Any = dict(methods())[name]
    attach(backbone, cls(**needed, **{field: value}), seed=0)
    ids, mask = batch()
    before = backbone(ids, mask)
    torch.nn.functional.cross_entropy(before, torch.tensor([0, 1, 2, 0])).backward()
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5).step()
    after = backbone(ids, mask)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


ALONE = [name for name, _ in methods() if name != "import"]


@pytest.mark.parametrize("name", ALONE)
def test_a_method_in_bfloat16(name: str) -> None:
    backbone = in_type(name, "bf16-true")
    torch.nn.functional.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0])).backward()
    for full_name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.bfloat16, full_name
            assert parameter.grad is not None, full_name
            assert parameter.grad.isfinite().all(), full_name


@pytest.mark.parametrize("name", ALONE)
def test_a_method_in_double_precision(name: str) -> None:
    """Its gradient is the quotient of differences 1e-5 apart: a float32 inside would miss it by a hundredth."""
    backbone = in_type(name, "64-true", **({"detach_norm": False} if name == "dora" else {}))
    trained = [p for p in backbone.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    for parameter in trained:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained]

    def loss(step: float) -> torch.Tensor:
        for parameter, way in zip(trained, ways, strict=True):
            parameter.data += step * way
        return torch.nn.functional.cross_entropy(backbone(*batch()), torch.tensor([0, 1, 2, 0]))

    loss(0).backward()
    slope = sum(float((p.grad * way).sum()) for p, way in zip(trained, ways, strict=True) if p.grad is not None)
    with torch.no_grad():
        ahead, behind = float(loss(1e-5)), float(loss(-2e-5))
    assert (ahead - behind) / 2e-5 == pytest.approx(slope, rel=1e-5)


def in_type(name: str, precision: Any, **fields: Any) -> Any:
    backbone = tiny("bert")
    attach(backbone, dict(methods())[name](**fields), seed=0)
    into_precision(backbone, precision)
    return backbone.eval()
