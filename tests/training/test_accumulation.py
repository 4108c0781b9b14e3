"""An update is that of one batch of all its rows, however they are accumulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from peftlab.training.accumulation import WeightOfAStep
from tests.conftest import Peftlab, run_folder, write_reviews


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 4, 1], [4], [1, 4], [3, 2]])
def test_gradients_are_those_of_the_mean_over_all_rows(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 5, generator=generator), torch.randn(12, 1, generator=generator)
    rows, count = sum(sizes), 3  # of batches that Lightning divides by
    plain, layer = nn.Linear(5, 1), nn.Linear(5, 1)
    layer.load_state_dict(plain.state_dict())
    nn.functional.mse_loss(plain(inputs[:rows]), targets[:rows]).backward()
    step, optimizer = WeightOfAStep(), torch.optim.SGD(layer.parameters(), lr=1.0)
    start = 0
    for size in sizes:
        part = slice(start, start := start + size)
        (step.weighted(nn.functional.mse_loss(layer(inputs[part]), targets[part]), size) / count).backward()
    step.settle(optimizer, count)
    assert plain.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    assert step.weighted(torch.tensor(1.0), 2) == 1, "it has started anew"


@pytest.mark.parametrize(
    "batches", [[[4, 4], [4, 4]], [[3, 2]], [[1, 0]], [[4, 4], [1, 0]], [[2, 1, 1], [4, 4, 4], [1, 1, 0]]]
)
def test_gradients_on_several_processes_are_those_of_one(batches: list[list[int]]) -> None:
    """``batches[i][r]`` rows of batch i in process r; what DDP does is done by hand."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(24, 5, generator=generator), torch.randn(24, 1, generator=generator)
    rows, count, processes = sum(map(sum, batches)), 3, len(batches[0])
    plain = nn.Linear(5, 1)
    nn.functional.mse_loss(plain(inputs[:rows]), targets[:rows]).backward()
    layers = [nn.Linear(5, 1) for _ in range(processes)]
    steps = [WeightOfAStep() for _ in range(processes)]
    start = 0
    for batch in batches:
        for layer, step, size in zip(layers, steps, batch, strict=True):
            layer.load_state_dict(plain.state_dict())
            part = slice(start, start + size) if size else slice(0, 1)  # a stand-in
            loss = nn.functional.mse_loss(layer(inputs[part]), targets[part])
            (step.weighted(loss, size, sum(batch), processes) / count).backward()
            start += size
    mean = torch.stack([layer.weight.grad for layer in layers if layer.weight.grad is not None]).mean(dim=0)
    for layer, step in zip(layers, steps, strict=True):
        layer.weight.grad = mean.clone()
        step.settle(torch.optim.SGD(layer.parameters(), lr=1.0), count)
        torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def update(peftlab: Peftlab, reviews: Path, batch: int, accumulated: int, *more: str) -> torch.Tensor:
    """What one epoch has added to the head's weight, from where all runs begin."""
    common = (
        "backbone=tiny", "logger=none", "data=text_files", f"data.path={reviews}", "peft=head", "optim=sgd",
        "schedule=constant", "trainer.max_epochs=1", "trainer.gradient_clip_norm=0", "backbone.dropout=0",
        "data.max_length=32", "trainer.threads=1",
    )  # fmt: skip
    heads = []
    for rate in ("0.5", "1e-12"):
        name = f"b{batch}-{accumulated}-{rate}".replace(".", "_")
        size = (f"data.batch_size={batch}", f"trainer.accumulate_grad_batches={accumulated}")
        assert peftlab("train", *common, *size, *more, f"optim.lr={rate}", f"name={name}").status == 0
        tensors = safetensors.torch.load_file(run_folder(name) / "adapter.safetensors")
        heads.append(next(tensor for key, tensor in tensors.items() if key.endswith("classifier.weight")))
    return heads[0] - heads[1]


def test_a_whole_epoch_in_one_step(peftlab: Peftlab, scratch: Path) -> None:
    reviews = write_reviews(scratch, rows=60)
    whole = update(peftlab, reviews, 64, 1)
    record = json.loads((run_folder("b64-1-0_5") / "record.json").read_text(encoding="utf-8"))
    assert record["history"][0]["step"] == 1
    for batch, accumulated in ((8, 16), (16, 4)):
        torch.testing.assert_close(update(peftlab, reviews, batch, accumulated), whole, rtol=1e-4, atol=1e-6)
