"""``peftlab estimate``: memory from shapes is what real tensors take, and nothing is trained or left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.composition import checked
from peftlab.peft.base import attach
from peftlab.runs import estimate
from peftlab.runs.estimate import MIB, Work, memory_of
from tests.conftest import TINY, Peftlab

TINY_RUN = ("backbone=tiny", "data=imdb_packaged", "optim=adamw", "peft=lora")
WORK = Work(1, 0, 0, 0, largest=(8, 64), largest_evaluation=(16, 64))


def of(*overrides: str, work: Work = WORK) -> estimate.Memory:
    return memory_of(checked([*TINY_RUN, *overrides]), 2, work)


DROPOUT = ("backbone.dropout=0.1", "backbone.attention_dropout=0.1")


@pytest.mark.parametrize(
    "more",
    [(), DROPOUT, (*DROPOUT, "backbone.fast_dropout=true"), ("backbone.gradient_checkpointing=true",), ("peft=full",)],
)
def test_shapes_take_what_real_tensors_take(more: tuple[str, ...]) -> None:
    found = of(*more)
    config = checked([*TINY_RUN, *more])
    backbone = config.backbone.build(2, seed=0)
    adapter = attach(backbone, config.peft, seed=0)
    real: Any = [*backbone.parameters(), *backbone.buffers()]
    assert found.weights * MIB == sum(tensor.numel() * tensor.element_size() for tensor in real)
    trainable = sum(parameter.numel() for parameter in adapter.parameters(beside=True))
    assert found.gradients * MIB == 4 * trainable
    assert found.optimizer * MIB == pytest.approx(8 * trainable, abs=4 * len(adapter.parameters(beside=True)))
    live = estimate._Live()
    ids = torch.zeros(WORK.largest, dtype=torch.int64)
    mask = torch.ones_like(ids).index_put_((torch.tensor(0), torch.tensor(-1)), torch.tensor(0))  # some padding
    with live:
        backbone.train()(ids, mask).square().mean().backward()
    assert found.activations + found.gradients + found.optimizer == pytest.approx(
        live.peak / MIB + found.optimizer, rel=0.1
    )


def test_what_makes_it_more_and_less() -> None:
    usual = of()
    twice = of(work=Work(1, 0, 0, 0, largest=(16, 64), largest_evaluation=(16, 64)))
    assert twice.activations == pytest.approx(2 * usual.activations, rel=0.1)
    assert of("backbone.gradient_checkpointing=true").activations < usual.activations
    assert of("peft=head").activations < usual.activations
    quantized = of("backbone.quantize=nf4")
    linear = sum(
        module.weight.numel()
        for module in checked([*TINY_RUN]).backbone.build(2, seed=0).model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert usual.weights - quantized.weights == pytest.approx(linear * (4 - 0.5 - 1 / 16) / MIB, rel=0.05)


def test_the_command_says_it_and_leaves_nothing(peftlab: Peftlab, reviews: Path) -> None:
    done = peftlab("estimate", *TINY, f"data.path={reviews}", "trainer.max_epochs=2", "data.batch_size=8", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["work"]["steps"] == 22  # 86 rows
    assert found["work"]["largest"][0] == 8
    assert found["memory"]["total"] > found["memory"]["weights"] > 0
    assert found["measured"]["train_seconds"] > 0
    assert not Path("outputs").exists()
    words = peftlab("estimate", *TINY, f"data.path={reviews}", "--shapes")
    assert "MiB a device, from shapes" in words.out
    assert "measured" not in words.out
    assert peftlab("estimate", *TINY, "peft.rank=-1").status == 2
