"""LoRA-GA: what its factors start from, where it is refused, and runs that go on."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import preprocess_loraga
from torch import Tensor
from torch.nn import functional as F

from peftlab import Compose, LoRA, PeftlabError
from peftlab import attach as attach_to_model
from peftlab.errors import ConfigError
from peftlab.library.attaching import load_adapter
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.low_rank import LowRank
from peftlab.peft.surgery import is_conv1d, weight_matrix
from tests.conftest import Peftlab
from tests.library.models import Net, bert, ids
from tests.peft.tiny import batch, tiny
from tests.runs.small_runs import CLASSIFIER, record_of, train

LABELS = torch.tensor([0, 1, 2, 1])
GAMMA, RANK = 9.0, 3
SIZES = (3, 1)
"""Rows of the two batches: the mean over rows is not the mean of the batches' means."""


def losses_of(backbone: Any) -> Any:
    def losses(count: int) -> Iterator[tuple[Tensor, float]]:
        token_ids, mask = batch()
        for rows in torch.arange(4).split(list(SIZES))[:count]:
            yield F.cross_entropy(backbone(token_ids[rows], mask[rows]), LABELS[rows]), float(len(rows))

    return losses


def gradient(kind: str, name: str) -> Tensor:
    """∂L/∂W (out, in) of one layer of the clean model, all rows in one batch."""
    backbone = tiny(kind)
    backbone.requires_grad_(True)
    F.cross_entropy(backbone(*batch()), LABELS).backward()
    layer = backbone.model.get_submodule(name)
    found = layer.weight.grad
    assert isinstance(found, Tensor)
    return found.T if is_conv1d(layer) else found


def started(kind: str, **fields: Any) -> tuple[Any, Adapter]:
    backbone = tiny(kind)
    method = LoRA(**{"rank": RANK, "alpha": 5.0, "init": "lora_ga", "gamma": GAMMA, **fields})
    return backbone, attach(backbone, method, seed=0, batches=losses_of(backbone))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_the_first_step_is_the_gradient_cut_to_twice_the_rank(kind: str) -> None:
    """Theorem 3.1 of the paper, by numpy: B Bᵀ G + G Aᵀ A = c² · (the first 2r of Σ σᵢ uᵢ vᵢᵀ), c² = √out / γ."""
    _, adapter = started(kind)
    assert len(adapter.placed()) == 4
    for placed in adapter.placed():
        delta = placed.delta
        assert isinstance(delta, LowRank)
        G = gradient(kind, placed.name)[delta.rows or slice(None)].double()
        U, S, Vh = np.linalg.svd(G.numpy(), full_matrices=False)
        A, B = delta.lora_A.detach().double(), delta.lora_B.detach().double()
        size = len(G) ** 0.5 / GAMMA
        for found, chosen in (
            (G @ A.T @ A, slice(0, RANK)),
            (B @ B.T @ G, slice(RANK, 2 * RANK)),
        ):
            expected = torch.from_numpy((U[:, chosen] * S[chosen]) @ Vh[chosen]) * size
            torch.testing.assert_close(found, expected, atol=1e-4 * float(S[0]) * size, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_model_starts_as_the_backbone_and_nothing_is_left_behind(kind: str) -> None:
    backbone, adapter = started(kind)
    assert torch.equal(backbone(*batch()), tiny(kind)(*batch()))
    assert all(p.grad is None for p in backbone.parameters())
    owned = {id(p) for p in adapter.parameters(beside=True)}
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == owned
    assert not any(module.training for module in backbone.model.modules())
    assert backbone.train().training


def test_it_is_taken_in_evaluation_and_modes_are_restored() -> None:
    """Dropout would make another gradient each time."""
    factors = []
    for _ in range(2):
        backbone = tiny("bert", dropout=0.3).train()
        backbone.model.get_submodule("bert.pooler").eval()
        adapter = attach(backbone, LoRA(rank=2, init="lora_ga"), seed=0, batches=losses_of(backbone))
        assert backbone.model.training
        assert not backbone.model.get_submodule("bert.pooler").training
        factors.append(adapter.placed()[0].delta.lora_A.detach())
    assert torch.equal(*factors)


def test_only_as_many_batches_are_taken_as_are_asked_for() -> None:
    _, one = started("bert", gradient_batches=1)
    _, two = started("bert", gradient_batches=2)
    assert not torch.allclose(one.placed()[0].delta.lora_A, two.placed()[0].delta.lora_A, atol=1e-3)


def test_directions_are_those_of_hf_peft() -> None:
    """Of A, up to signs. HF peft scales B by the singular values besides: neither the paper nor its code does."""
    model = bert()
    oracle = copy.deepcopy(model)
    inputs = {**ids(), "labels": torch.tensor([0, 1, 1, 0])}
    adapter = attach_to_model(model, LoRA(rank=4, init="lora_ga", targets=["query", "value"]), batches=[inputs])
    config = peft.LoraConfig(
        r=4, target_modules=["query", "value"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )
    dropped = {m: m.p for m in oracle.modules() if isinstance(m, torch.nn.Dropout)}
    for module in dropped:  # HF peft takes them in training mode
        module.p = 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")  # HF peft counts batches by one
        preprocess_loraga(oracle, config, lambda: oracle(**inputs).loss.backward())
    theirs = peft.get_peft_model(oracle, config)
    for placed in adapter.placed():
        other = theirs.base_model.model.get_submodule(placed.name).lora_A["default"].weight
        mine = placed.delta.lora_A * (16.0**0.5 / 32**0.25)
        torch.testing.assert_close(mine.abs(), other.abs(), atol=1e-3, rtol=1e-3)


def test_a_saved_adapter_is_loaded_without_batches(tmp_path: Path) -> None:
    model = bert()
    inputs = {**ids(), "labels": torch.tensor([0, 1, 1, 0])}
    adapter = attach_to_model(
        model, LoRA(rank=4, init="lora_ga"), batches=(model(**inputs).loss for _ in range(3)), train=["classifier"]
    )
    with torch.no_grad():
        for parameter in adapter.parameters(beside=True):
            parameter += 0.1
    adapter.save(tmp_path / "saved")
    again = bert()
    load_adapter(again, tmp_path / "saved")
    assert torch.equal(again(**ids()).logits, model(**ids()).logits)
    assert adapter.save(tmp_path / "hf", format="hf_peft") == []
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "hf")
    torch.testing.assert_close(theirs(**ids()).logits, model(**ids()).logits, atol=1e-5, rtol=0)


def test_in_a_composition_it_starts_from_the_model_without_the_others() -> None:
    backbone = tiny("bert")
    methods = [{"name": "ia3", "targets": ["key"]}, {"name": "lora", "init": "lora_ga", "rank": RANK, "gamma": GAMMA}]
    composed = attach(backbone, Compose(methods=methods), seed=0, batches=losses_of(backbone))
    _, alone = started("bert", alpha=16.0)
    found = [placed.delta.lora_A for placed in composed.placed() if isinstance(placed.delta, LowRank)]
    for mine, placed in zip(found, alone.placed(), strict=True):
        torch.testing.assert_close(mine, placed.delta.lora_A)
    with pytest.raises(PeftlabError, match="peft=compose starts from gradients"):
        attach(tiny("bert"), Compose(methods=methods), seed=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rank": 17},
            r"takes 2 · rank singular vectors, and the gradient of '\S+query' has 32: peft.rank=17 is above 16",
        ),
        ({"targets": ["embedding"]}, "is an embedding, and LoRA-GA is a start of linear layers"),
        ({"quantize": "nf4"}, "keeps its weight in nf4, of which there is no gradient"),
    ],
)
def test_where_it_cannot_start(fields: dict[str, Any], said: str) -> None:
    backbone = tiny("bert", quantize=fields.pop("quantize", None))
    with pytest.raises(PeftlabError, match=said):
        attach(backbone, LoRA(init="lora_ga", **fields), seed=0, batches=losses_of(backbone))


def test_wrong_batches() -> None:
    method = LoRA(init="lora_ga", rank=2, targets=["up"])
    for batches, said in (
        (None, r"was given none\. In Python: attach\(model, method, batches="),
        ([], "there is no training batch"),
        ([{"x": torch.randn(2, 8)}], "batch 1 gives no loss"),
        ([torch.tensor(1.0)], r"the gradient of 'blocks\.0\.up' on the training batches is zero"),
    ):
        model = Net()
        with pytest.raises(PeftlabError, match=said):
            attach_to_model(model, method, batches=batches)
        assert not any("deltas" in name for name, _ in model.named_modules())
    with pytest.raises(ConfigError, match=r"peft\.gamma=4\.0 is of peft.init=lora_ga, and peft.init=kaiming"):
        LoRA(gamma=4.0)


def test_a_run_takes_its_first_batches_and_one_that_goes_on_takes_none(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(peftlab, reviews, "peft.init=lora_ga", "peft.gradient_batches=2")
    record, adapter = record_of(run), (run / "adapter.safetensors").read_bytes()
    assert record["metrics"]["test"] == json.loads(peftlab("evaluate", run, "--json").out)["metrics"]
    (run / "record.json").unlink()
    (run / "adapter.safetensors").unlink()

    def none(*_: Any) -> Any:
        raise AssertionError("what was drawn is in the checkpoint")

    monkeypatch.setattr("peftlab.runs.assemble.first_losses", none)
    words = (*CLASSIFIER, f"data.path={reviews}", "name=t", "peft.init=lora_ga", "peft.gradient_batches=2")
    again = peftlab("train", *words)
    assert again.status == 0, again.err
    assert "resuming from" in again.out
    assert (run / "adapter.safetensors").read_bytes() == adapter
    assert record_of(run)["metrics"] == record["metrics"]


def test_the_batches_are_the_first_of_the_run(reviews: Path) -> None:
    """The factors of a run are those of its first batches, as its loader gives them to training."""
    from peftlab.composition import composed
    from peftlab.config import check
    from peftlab.data.module import TextDataModule
    from peftlab.runs.assemble import assemble, build_backbone

    words = ["backbone=tiny", "data=text_files", f"data.path={reviews}", "data.batch_size=8", "peft.rank=2"]
    config = check(composed([*words, "peft.init=lora_ga", "peft.gradient_batches=2", "seed=3"]))
    splits = config.data.load()
    adapter = assemble(config, splits).adapter
    plain = build_backbone(config, splits.label_names, train_texts=splits.train.texts).eval()
    loader = iter(TextDataModule(config.data, splits, plain.tokenizer, 3).train_dataloader())
    first = [next(loader) for _ in range(2)]
    placed = adapter.placed()[0]
    weight = weight_matrix(plain.model.get_submodule(placed.name)).requires_grad_()
    total = sum(
        F.cross_entropy(plain(b["input_ids"], b["attention_mask"]), b["labels"], reduction="sum") for b in first
    )
    assert isinstance(total, Tensor)
    (G,) = torch.autograd.grad(total, weight)
    expected = torch.linalg.svd(G)[2][:2] * len(G) ** 0.25 / 4
    torch.testing.assert_close(placed.delta.lora_A.abs(), expected.abs(), atol=1e-4, rtol=1e-3)
