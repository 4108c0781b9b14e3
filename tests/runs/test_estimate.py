"""``peftlab estimate``: memory from shapes is what real tensors take, and nothing is trained or left."""

from __future__ import annotations

import ctypes
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.allocator import Room, keeping_memory
from peftlab.composition import checked
from peftlab.peft.base import attach
from peftlab.records.environment import resident_mib
from peftlab.runs.shapes import MIB, Live, Memory, Work, memory_of
from peftlab.training.trunk_cache import BATCH
from tests.conftest import TINY, Peftlab

TINY_RUN = ("backbone=tiny", "data=imdb_packaged", "optim=adamw", "peft=lora")
WORK = Work(1, 0, 0, 0, largest=(8, 64), largest_evaluation=(16, 64))


def of(*overrides: str, work: Work = WORK) -> Memory:
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
    live = Live(real)
    ids = torch.zeros(WORK.largest, dtype=torch.int64)
    mask = torch.ones_like(ids).index_put_((torch.tensor(0), torch.tensor(-1)), torch.tensor(0))  # some padding
    with live:
        backbone.train()(ids, mask).square().mean().backward()
    assert found.activations + found.gradients + found.optimizer == pytest.approx(
        live.peak / MIB + found.optimizer, rel=0.1
    )


def test_views_of_weights_are_no_memory() -> None:
    layer, given = torch.nn.Linear(64, 32), torch.zeros(8, 64)
    live = Live((*layer.parameters(), given))
    with live, torch.no_grad():
        out = layer(given)  # by a view of the weight
    assert live.now == out.nbytes == 8 * 32 * 4
    del out
    assert live.now == 0


def test_a_language_models_logits_are_those_in_front_of_targets() -> None:
    """Kept and in between: logits, their logarithms twice, and gradients, (N, V) float32 each; not (B, T, V)."""
    words = ("data=instructions", "data.train=x.jsonl", "backbone=tiny", "backbone.architecture.model_type=llama")
    vocabulary = 20_000
    config = checked([*words, "peft=lora", f"backbone.architecture.vocab_size={vocabulary}"])
    few, many = (
        memory_of(config, 1, Work(1, 0, 0, 0, (8, 64), (8, 64), targets=share)).activations for share in (0.25, 0.5)
    )
    more = 8 * 64 * 0.25 * vocabulary * 4 / MIB
    assert 3 * more <= many - few <= 6 * more


def test_frozen_blocks_that_are_computed_once_are_computed_in_batches_of_their_own() -> None:
    plain, once = (
        of("peft=last_layers", "peft.layers=1", f"backbone.cache_frozen={known}") for known in ("false", "true")
    )
    assert once.weights == plain.weights
    assert once.activations <= plain.activations
    rows = BATCH / WORK.largest_evaluation[0]  # of the same tokens, through one of two blocks
    assert plain.evaluation * 1.2 < once.evaluation < plain.evaluation * rows


def test_the_allocator_is_asked_and_nothing_is_written() -> None:
    room = Room.here()
    if room is None:
        pytest.skip("this system's allocator is not glibc's")
    before = resident_mib()
    with keeping_memory():
        for number in range(12):
            block, other = room.take((16 + number) * MIB), room.take(MIB)
            room.give(block)
            room.give(other)
    assert room.pages >= 28 * MIB, "the last two at once"
    assert resident_mib() - before < 16
    assert of().allocator >= 0
    assert memory_of(checked([*TINY_RUN]), 2, WORK, on_cpu=False).allocator == 0


def test_pages_are_counted_once() -> None:
    room, pages, seen = Room(ctypes.CDLL(None)), set(), random.Random(0)
    for _ in range(300):
        start = seen.randrange(2**22)
        end = start + seen.randrange(1, 2**14)
        room.count(start, end)
        pages |= set(range(start // 4096, (end - 1) // 4096 + 1))
        assert room.pages == 4096 * len(pages)


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
    memory = found["memory"]
    assert memory["total"] > memory["weights"] > 0
    assert memory["on_cpu"] == memory["total"] + memory["process"] + memory["allocator"]
    assert found["measured"]["train_seconds"] > 0
    assert not Path("outputs").exists()
    words = peftlab("estimate", *TINY, f"data.path={reviews}", "--shapes")
    assert "MiB a device, from shapes" in words.out
    assert "measured" not in words.out
    assert peftlab("estimate", *TINY, "peft.rank=-1").status == 2
