"""experiment=qlora: what its paper says, and that it trains."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from peftlab.composition import checked
from peftlab.peft.low_rank import LowRank
from peftlab.runs.assemble import assemble
from tests.conftest import Peftlab, run_folder

LLAMA = (
    "backbone.architecture={model_type: llama, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    "intermediate_size: 128, vocab_size: 259, max_position_embeddings: 512}"
)
TINY = ("backbone=tiny", LLAMA, "data.chat_template=none", "logger=none")
ON_A_CPU = ("optim=adamw", "trainer.accelerator=cpu")


def rows(folder: Path, count: int) -> str:
    file = folder / "sums.jsonl"
    asked = [{"prompt": f"What is {n} plus {n}?", "response": str(2 * n)} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return f"data.path={file}"


def test_it_says_what_the_paper_says(scratch: Path) -> None:
    """Appendix B and section 3, of 7B and 13B."""
    config = checked(["experiment=qlora", rows(scratch, 8)])
    said = json.loads(json.dumps(config.plain()))
    peft, trainer, backbone = said["peft"], said["trainer"], said["backbone"]
    assert (peft["rank"], peft["alpha"], peft["dropout"], peft["rank_stabilized"]) == (64, 16.0, 0.1, False)
    assert (said["optim"]["lr"], said["optim"]["beta2"], said["optim"]["weight_decay"]) == (2e-4, 0.999, 0.0)
    assert said["optim"]["_target_"].endswith("PagedAdamW")
    assert said["schedule"]["_target_"].endswith("Constant")
    assert said["schedule"]["warmup_fraction"] == 0
    assert (trainer["gradient_clip_norm"], trainer["precision"]) == (0.3, "bf16-mixed")
    assert (backbone["quantize"], backbone["dtype"]) == ("nf4", "bfloat16")
    assert backbone["name_or_path"] == "huggyllama/llama-7b"
    assert (said["data"]["batch_size"], said["data"]["group_by_length"], said["data"]["loss_on"]) == (
        16,
        True,
        "response",
    )


def test_every_linear_layer_of_a_block_is_in_4_bits_with_double_quantisation_and_adapted(scratch: Path) -> None:
    config = checked(["experiment=qlora", rows(scratch, 8), *TINY, *ON_A_CPU])
    adapter = assemble(config, config.data.load()).adapter
    adapted = {placed.name: placed for placed in adapter.placed()}
    blocks: dict[str, nn.Module] = {
        name.removesuffix(".base"): module
        for name, module in adapter.model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    assert len(blocks) == 2 * 7
    assert blocks.keys() == adapted.keys()
    for name, layer in blocks.items():
        weight, delta = layer.weight, adapted[name].delta
        state = weight.quant_state  # type: ignore[union-attr]
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.bfloat16)
        assert isinstance(delta, LowRank)
        assert (delta.rank, delta.scale) == (64, 0.25)


def test_it_trains_on_a_cpu_and_a_paged_optimizer_is_never_replaced(peftlab: Peftlab, scratch: Path) -> None:
    words = ("train", "experiment=qlora", rows(scratch, 16), *TINY, "trainer.max_epochs=1", "data.batch_size=4")
    refused = peftlab(*words, "trainer.accelerator=cpu")
    assert refused.status == 2
    assert "Set optim=adamw, which computes the same, or train on a GPU" in refused.err
    done = peftlab(*words, *ON_A_CPU)
    assert done.status == 0, done.err
    record = json.loads((run_folder("qlora") / "record.json").read_text())
    assert record["config"]["optim"]["lr"] == 2e-4
    assert record["status"] == "finished"
