"""Frozen weights cut over two processes: every architecture computes and learns what it does whole."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from peftlab.backbones.base import Backbone
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.bitfit import BitFit
from peftlab.peft.lora import LoRA
from peftlab.peft.vera import VeRA
from peftlab.sweeps.processes import PRELOADED
from peftlab.training.sharding import ShardedStrategy, fingerprint_of_parts, shard
from tests.backbones.tiny_backbones import batch, tiny
from tests.conftest import TINY, Peftlab, run_folder
from tests.forked import peftlab_forked

KINDS = ("albert", "bert", "deberta-v2", "gpt2", "llama", "t5", "xlnet")
"""One layer that is called several times, positions beside the layers, tied embeddings, …"""
CASES: dict[str, tuple[str, PEFTStrategy, dict[str, Any]]] = {
    **{kind: (kind, LoRA(targets=["ffn_down"], dropout=0), {}) for kind in KINDS},
    "embedding": ("t5", LoRA(targets=["embedding"], dropout=0), {}),
    "nf4": ("bert", LoRA(dropout=0), {"quantize": "nf4"}),
    "frozen matrices": ("bert", VeRA(), {}),
    "own tensors": ("gpt2", BitFit(), {}),
    "own tensors in 16 bits": ("gpt2", BitFit(), {"dtype": "bfloat16"}),
}
WITHIN = {"own tensors in 16 bits": 1e-3}
"""Where products are rounded to 16 bits; else 1e-6."""
PROCESSES, ROWS, STEPS = 2, 6, 2


def steps(adapter: Adapter, rows: slice, processes: int) -> list[float]:
    """Loss of each step over all rows, by the plainest way to average gradients."""
    backbone, losses = adapter.backbone.eval(), []
    optimizer = torch.optim.SGD(adapter.param_groups(0.1))
    for step in range(STEPS):
        texts = [f"text {step} of {number}: {'xyz'[number % 3] * 4}" for number in range(ROWS)]
        ids, mask = (whole[rows] for whole in batch(backbone, texts))
        loss = F.cross_entropy(backbone(ids, mask), (torch.arange(ROWS) % 3)[rows])
        loss.backward()
        parts = [loss.detach(), *(p.grad for p in adapter.parameters(beside=True) if p.grad is not None)]
        for part in parts if processes > 1 else ():
            dist.all_reduce(part)
            part /= processes
        losses.append(float(parts[0]))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def built(case: str) -> Adapter:
    kind, method, more = CASES[case]
    return attach(tiny(kind, **more), method, seed=0)


def held(backbone: Backbone) -> int:
    """Numbers of parameters in this process."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in backbone.parameters())


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    for case in CASES:
        alone, cut = built(case), built(case)
        saved = set(cut.state_dict())
        shard(cut, torch.device("cpu"), PROCESSES)
        before = fingerprint_of_parts(cut)
        sizes = [held(alone.backbone), held(cut.backbone), sum(t.numel() for t in cut.tensors().values())]
        losses = [steps(alone, slice(None), 1), steps(cut, slice(rank, None, PROCESSES), PROCESSES)]
        assert before == fingerprint_of_parts(cut), case
        assert saved == set(cut.state_dict())
        assert not any(isinstance(tensor, DTensor) for tensor in cut.state_dict().values())
        torch.testing.assert_close(cut.state_dict(), alone.state_dict(), rtol=0, atol=2 * WITHIN.get(case, 1e-6))
        if rank == 0:
            (folder / f"{case}.json").write_text(json.dumps({"losses": losses, "sizes": sizes}))
    (folder / f"changed-{rank}").write_text(str(notices_a_change_in_one_process(cut, rank)))
    dist.destroy_process_group()


def notices_a_change_in_one_process(adapter: Adapter, rank: int) -> list[bool]:
    strategy = ShardedStrategy(adapter, parallel_devices=[torch.device("cpu")] * PROCESSES)
    strategy._parts = fingerprint_of_parts(adapter)
    found = [strategy.unchanged()]
    frozen = next(p for p in adapter.backbone.parameters() if isinstance(p, DTensor) and p.to_local().numel())
    if rank == 1:
        frozen.to_local().flatten()[-1] += 1
    return [*found, strategy.unchanged()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    context = multiprocessing.get_context("forkserver")  # warm, as that of a sweep's jobs
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=process, args=(rank, folder), daemon=True) for rank in range(PROCESSES)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(timeout=240)
    assert [one.exitcode for one in processes] == [0] * PROCESSES
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_computes_and_learns_what_it_does_whole(results: Path, case: str) -> None:
    found = json.loads((results / f"{case}.json").read_text())
    alone, cut = found["losses"]
    assert cut == pytest.approx(alone, abs=WITHIN.get(case, 1e-6))
    whole, part, stays = found["sizes"]
    assert part < stays + 0.6 * (whole - stays)  # a half, and what padding and scales of the last part add


@pytest.mark.slow
def test_a_frozen_weight_that_changes_in_one_process_is_noticed_in_all(results: Path) -> None:
    assert [(results / f"changed-{rank}").read_text() for rank in range(PROCESSES)] == ["[True, False]"] * PROCESSES


def test_a_run_is_that_of_ddp_to_the_bit(peftlab: Peftlab, reviews: Path) -> None:
    """Saved, evaluated in one process and merged, as any run is."""
    for strategy in ("ddp", "fsdp"):
        peftlab_forked(
            "train", *TINY, f"data.path={reviews}", f"name={strategy}", "trainer.max_epochs=1", "trainer.devices=2",
            f"trainer.strategy={strategy}", "trainer.accelerator=cpu", "trainer.threads=1", "data.batch_size=4",
            "backbone.quantize=nf4",
        )  # fmt: skip
    ddp, fsdp = run_folder("ddp"), run_folder("fsdp")
    for name in ("adapter.safetensors", "predictions.parquet"):
        assert (ddp / name).read_bytes() == (fsdp / name).read_bytes(), name
    records = [json.loads((run / "record.json").read_text()) for run in (ddp, fsdp)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["parameters"] == records[1]["parameters"]
    assert records[0]["key"] != records[1]["key"]
    again = json.loads(peftlab("evaluate", fsdp, "--json").out)
    assert again["metrics"]["accuracy"] == records[1]["metrics"]["test"]["accuracy"]
    assert peftlab("export", fsdp, "--to", "merged", "--merged").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peft=full"], "peft=full trains the backbone's weights"),
        (["peft=last_layers"], "peft=last_layers trains the backbone's weights"),
        (["peft=compose", "peft.methods=[last_layers, lora]"], "peft=compose trains the backbone's weights"),
        (["backbone.quantize=int8"], "backbone.quantize=int8 keeps scales in its weights"),
        (["backbone.from_run=RUN", "measure_forgetting=true"], "measure_forgetting=true tests in one process"),
        (["trainer.accelerator=mps"], "trainer.accelerator=mps has no collectives"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_loads(peftlab: Peftlab, words: list[str], said: str) -> None:
    found = peftlab("train", *TINY, "data.path=absent.csv", "trainer.strategy=fsdp", *words)
    assert found.status == 2
    assert f"trainer.strategy=fsdp: {said}" in found.err
    assert "Choose trainer.strategy=ddp" in found.err or "Set trainer.strategy=auto" in found.err
