"""Every target weighs the same: in a batch, a step of several, on several processes, in every figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peftlab.data.batching import Collate, weight_of
from peftlab.objectives.base import objective
from peftlab.objectives.causal_lm import NAMES, CausalLM, perplexity
from peftlab.objectives.parts.split import KeptOutputs, SplitMetrics
from peftlab.training.accumulation import WeightOfAStep
from tests.backbones.tiny_backbones import shake, tiny_config
from tests.conftest import Peftlab, run_folder
from tests.forked import peftlab_forked
from tests.objectives.languages import LANGUAGE, write_sums

# ids and places under loss; the second and fourth have a loss on their first token, which is no target
ROWS = [
    ([5, 17, 9, 22, 31, 4, 19, 2], [7]),
    ([7, 7, 12, 3, 28, 11, 2, 30, 41], range(9)),
    ([33, 8, 14, 21], [2, 3]),
    ([6, 25, 25, 6, 18, 39], range(6)),
    ([1, 44, 13], [2]),
    ([20, 16, 35, 27, 27, 8, 3, 46, 10, 29], range(1, 10)),
    ([9, 2, 40, 15, 36], [3, 4]),
]
TARGETS = [1, 8, 2, 5, 1, 9, 2]


def rows() -> list[dict[str, Any]]:
    return [
        {"input_ids": np.array(ids, dtype=np.int32), "loss": np.array([i in set(under) for i in range(len(ids))]),
         "label": None, "texts": 1} for ids, under in ROWS
    ]  # fmt: skip


def model() -> Any:
    backbone = tiny_config("llama").build(0, seed=0, head="own").eval()
    shake(backbone)
    return backbone


def by_hand(backbone: Any, part: list[int]) -> tuple[torch.Tensor, int]:
    """The sum of -log p of each row by itself, target by target, and how many there are."""
    total, count = torch.zeros(()), 0
    for number in part:
        ids, under = ROWS[number]
        logp = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in under:
            if place > 0:
                total, count = total - logp[place - 1, ids[place]], count + 1
    return total, count


def gradients(backbone: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in backbone.model.named_parameters() if p.grad is not None}


def batched(part: list[int], multiple: int | None = None) -> dict[str, Any]:
    return Collate(0, objective("causal_lm"), multiple_of=multiple)([rows()[number] for number in part])


def computed(backbone: Any, batch: dict[str, Any]) -> torch.Tensor:
    learned = CausalLM()
    outputs = backbone(batch["input_ids"], batch["attention_mask"], **learned.asks(batch))
    return learned.loss(outputs, batch["labels"])


WAYS: dict[str, list[list[list[int]]]] = {  # batches of a step, and in each the rows of every process
    "at once": [[[0, 1, 2, 3, 4, 5, 6]]],
    "one by one": [[[n]] for n in range(7)],
    "two by two": [[[0, 1]], [[2, 3]], [[4, 5]], [[6]]],
    "four, then the rest": [[[0, 1, 2, 3]], [[4, 5, 6]]],
    "two processes": [[[0, 2], [1, 3]], [[4, 6], [5]]],
    "two processes, one of them without rows": [[[0, 1, 2, 3], [4, 5]], [[6], []]],
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_of_a_step_are_those_of_all_its_targets(way: str) -> None:
    plain = model()
    total, count = by_hand(plain, list(range(7)))
    (total / count).backward()
    right, wanted = gradients(plain), (total / count).item()
    batches, processes = WAYS[way], len(WAYS[way][0])
    found: list[dict[str, torch.Tensor]] = []
    steps = [WeightOfAStep() for _ in range(processes)]
    models = [model() for _ in range(processes)]
    metrics = SplitMetrics(CausalLM(), NAMES)
    for batch in batches:
        together = sum(sum(TARGETS[number] for number in part) for part in batch)
        for rank, part in enumerate(batch):
            made = batched(part or [0], multiple=4 if rank else None)
            if not part:
                made["stand_in"] = True
            assert weight_of(made) == sum(TARGETS[number] for number in part)
            loss = computed(models[rank], made)
            weighted = steps[rank].weighted(loss, weight_of(made), together, processes)
            (weighted / len(batches)).backward()  # as Lightning divides
            if part:
                with torch.no_grad():
                    outputs = models[rank](made["input_ids"], made["attention_mask"], **CausalLM().asks(made))
                    metrics.update(outputs, made["labels"], loss.detach(), weight_of(made))
    mean = {name: sum(gradients(one)[name] for one in models) / processes for name in right}  # as DDP does
    for one, step in zip(models, steps, strict=True):
        for name, parameter in one.model.named_parameters():
            parameter.grad = mean[name].clone()
        assert step.settle(torch.optim.SGD(one.model.parameters(), lr=1.0), len(batches))
        found.append(gradients(one))
    for name, gradient in right.items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-6, rtol=1e-5)
    figures = metrics.compute()
    assert figures["tokens"] == count == sum(TARGETS)
    assert figures["rows"] == 7
    assert math.isclose(figures["loss"], wanted, rel_tol=1e-6)
    assert math.isclose(figures["perplexity"], math.exp(wanted), rel_tol=1e-6)


def test_what_is_kept_of_a_row_is_its_own() -> None:
    backbone, learned = model(), CausalLM()
    batch = batched(list(range(7)))
    with torch.no_grad():
        outputs = backbone(batch["input_ids"], batch["attention_mask"], **learned.asks(batch))
        kept = learned.of_rows(outputs, batch["labels"])
        for number in range(7):
            total, count = by_hand(backbone, [number])
            assert kept[number, 1] == count == TARGETS[number]
            assert math.isclose(kept[number, 0].item(), total.item(), rel_tol=1e-5)
            [alone] = learned.of_rows(
                backbone(**{name: batched([number])[name] for name in ("input_ids", "attention_mask")},
                         **learned.asks(batched([number]))), batched([number])["labels"]
            )  # fmt: skip
            torch.testing.assert_close(kept[number], alone, atol=1e-4, rtol=0)


def test_windows_of_one_text_are_added_up() -> None:
    kept = KeptOutputs(2)
    kept.update([1, 0], torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    kept.update([1, 1], torch.tensor([[3.0, 30.0], [5.0, 50.0]]))
    assert kept.compute().tolist() == [[2.0, 20.0], [9.0, 90.0]]


def test_a_step_without_a_target_is_none() -> None:
    """Neither momentum nor weight decay moves anything in it."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = layer.weight.clone()
    empty = [{"input_ids": np.array([4]), "loss": np.array([True]), "label": None, "texts": 1}] * 2
    batch = Collate(0, objective("causal_lm"))(empty)
    assert weight_of(batch) == 0
    step = WeightOfAStep()
    optimizer.zero_grad()
    loss = computed(model(), batch)
    assert loss.item() == 0
    (step.weighted(loss + layer(torch.ones(1, 2)).sum(), weight_of(batch), 0)).backward()
    assert not step.settle(optimizer, 1)
    optimizer.step()
    assert torch.equal(layer.weight, before)
    figures = CausalLM().compute({"sums": torch.zeros(4)})
    assert figures["perplexity"] is None
    assert figures["undefined"]["perplexity"] == "undefined: there is no target"
    assert perplexity(1e4) == math.inf


def test_steps_cut_into_batches_and_processes_end_alike(peftlab: Peftlab, scratch: Path) -> None:
    """The same steps of 8 rows: in one batch, in four, and on two processes."""
    sums = write_sums(scratch)
    common = [
        *LANGUAGE, f"data.path={sums}", "data.global_batch_size=8", "peft=lora", "optim=sgd", "optim.lr=0.5",
        "schedule=constant", "trainer.max_epochs=1", "trainer.accelerator=cpu",
    ]  # fmt: skip
    for size in (8, 2):
        done = peftlab("train", *common, f"data.batch_size={size}", f"name=of{size}")
        assert done.status == 0, done.err
    peftlab_forked("train", *common, "data.batch_size=2", "name=ddp", "trainer.devices=2", "trainer.strategy=ddp")
    names = ("of8", "of2", "ddp")
    records = [json.loads((run_folder(name) / "record.json").read_text()) for name in names]
    weights = [load_file(run_folder(name) / "adapter.safetensors") for name in names]
    for record, adapter in zip(records[1:], weights[1:], strict=True):
        for mine, theirs in zip(record["history"], records[0]["history"], strict=True):
            assert mine["step"] == theirs["step"]
            for figure in ("train/loss", "validation/loss"):
                assert abs(mine[figure] - theirs[figure]) < 1e-6
        for name, tensor in weights[0].items():
            torch.testing.assert_close(adapter[name], tensor, rtol=0, atol=1e-6)
    tokens = records[0]["data"]["tokens"]
    answers = [json.loads(line)["response"] for line in sums.read_text().splitlines()]
    assert sum(of["targets"] for of in tokens.values()) == sum(len(answer) + 1 for answer in answers), "an end each"
    assert records[0]["metrics"]["test"]["tokens"] == tokens["test"]["targets"]
    moved = any(
        tensor.abs().max() > 1e-3 for name, tensor in weights[0].items() if "lora_B" in name or name.endswith("B")
    )
    assert moved
    assert "1 as recorded" in peftlab("verify", run_folder("of8"), "--data", "--rerun-eval").out
    assert "the same" in peftlab("evaluate", run_folder("of8")).out
    assert peftlab("predict", run_folder("of8"), "--text", "1 + 1 = ").status == 0
