"""What no gradient reaches is named in the first step and judged after the first epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from peftlab import LoRA, attach
from peftlab.errors import PeftlabError
from peftlab.training.reached import RequireGradients
from tests.conftest import TINY, Peftlab

T5 = (
    "~backbone.architecture",
    "+backbone.architecture={model_type: t5, d_model: 16, num_layers: 1, num_heads: 2, d_ff: 32, d_kv: 8,"
    " vocab_size: 259}",
)


class Trainer:
    """As far as the callback asks."""

    is_global_zero = True


class Attention(nn.Module):
    """torch's own attention multiplies by ``out_proj.weight`` without calling ``out_proj``; one expert rests."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor, expert: int) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return self.experts[expert](out)


def judged(targets: list[str], experts: list[int], train: list[str] | None = None) -> None:
    """An epoch of steps, each through one expert."""
    model = Attention()
    adapter = attach(model, LoRA(targets=targets, rank=2), seed=0, train=train or [])
    callback = RequireGradients(adapter)
    callback.on_train_start(Trainer(), None)  # type: ignore[arg-type]
    for expert in experts:
        model(torch.randn(3, 1, 8), expert).sum().backward()
        callback.on_after_backward(Trainer(), None)  # type: ignore[arg-type]
        model.zero_grad()
    callback.on_train_epoch_end(Trainer(), None)  # type: ignore[arg-type]


def test_a_layer_that_is_read_and_not_called(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        PeftlabError, match=r"no gradient in a whole epoch for attention\.out_proj\.deltas\.all\.lora_A, attention"
    ):
        judged(["out_proj", "experts.0"], [0, 0])
    assert "no gradient in the first step: attention.out_proj.deltas" in capfd.readouterr().err


def test_an_expert_that_rests_for_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    judged(["experts.0", "experts.1"], [0, 1])
    assert "no gradient in the first step: experts.1" in capfd.readouterr().err


def test_an_expert_that_rests_for_an_epoch() -> None:
    with pytest.raises(
        PeftlabError, match=r"experts\.1\.deltas\.all\.lora_A, experts\.1\.deltas\.all\.lora_B \(32 numbers\)"
    ):
        judged(["experts.0", "experts.1"], [0, 0])


def test_what_trains_beside_it_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    judged(["experts.0"], [0, 0], train=["experts.1"])
    assert (
        "stay as they are though they are counted among what trains: experts.1.bias, experts.1.weight (72 numbers)"
        in (capfd.readouterr().err)
    )


def test_a_table_that_only_holds(peftlab: Peftlab, reviews: Path) -> None:
    """T5's ``shared`` is never called; where its weight is, the message says."""
    common = ("train", *TINY, *T5, f"data.path={reviews}", "trainer.max_epochs=1", "data.limit_train=16")
    result = peftlab(*common, "peft.targets=[shared]")
    assert result.status == 2
    assert "the model never calls the layer" in result.err
    assert "transformer.encoder.embed_tokens" in result.err
    assert peftlab(*common, "peft.targets=[embedding]").status == 0


def test_a_pooler_that_is_not_read(peftlab: Peftlab, reviews: Path) -> None:
    result = peftlab(
        "train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "peft=full", "backbone.pooling=mean"
    )
    assert result.status == 0
    assert result.err.count("bert.pooler.dense.weight") == 2
