"""Packed rows are worth what they are worth alone: loss, every gradient, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import masking_utils

from peftlab.backbones.isolation import require_isolation
from peftlab.backbones.transformer import TransformerConfig
from peftlab.data.batching import Collate, weight_of
from peftlab.data.packing import packed, shared_out
from peftlab.errors import BackboneError
from peftlab.objectives.base import objective
from peftlab.objectives.causal_lm import CausalLM
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from tests.backbones.tiny_backbones import ARCHITECTURES, shake
from tests.conftest import Peftlab, run_folder
from tests.objectives.languages import LANGUAGE, write_sums
from tests.objectives.test_causal_lm import TARGETS, rows

SLIDING = {"sliding_window": 4, "use_sliding_window": True}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": ARCHITECTURES["gpt2"],
    "llama": ARCHITECTURES["llama"],
    "qwen2": ARCHITECTURES["qwen2"] | SLIDING | {"max_window_layers": 1},
    "mistral": ARCHITECTURES["mistral"] | {"sliding_window": 4},
    "gemma2": ARCHITECTURES["gemma"] | {"sliding_window": 4, "final_logit_softcapping": 2.0},
}


def backbone_of(kind: str, attention: Any = "sdpa", dropout: float | None = None) -> Any:
    architecture = {"model_type": kind, **KINDS[kind]}
    config = TransformerConfig(architecture=architecture, attention=attention, dropout=dropout)
    backbone = config.build(0, seed=0, head="own").eval()
    shake(backbone)
    return backbone


def trained(backbone: Any, adapter: Any, batches: list[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
    """The loss over all targets of ``batches``, and its gradients."""
    learned, total = CausalLM(), sum(map(weight_of, batches))
    loss = torch.zeros(())
    for batch in batches:
        outputs = backbone(batch["input_ids"], batch["attention_mask"], **learned.asks(batch))
        loss = loss + learned.loss(outputs, batch["labels"]) * weight_of(batch) / total
    adapter.model.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in adapter.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [LoRA(rank=2, targets=[".*(c_attn|v_proj|q_proj|mlp.*proj)"]),
                                    PrefixTuning(length=3, hidden=8)])  # fmt: skip
def test_packed_rows_give_the_loss_and_gradients_of_rows_alone(kind: str, method: Any) -> None:
    backbone = backbone_of(kind, "eager" if kind == "gemma2" else "sdpa")  # it caps its attention scores
    adapter = attach(backbone, method, seed=0, train_head=False)
    backbone.eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    adapter.model.double()  # float32's rounding differs from processor to processor; logits are float32 still
    alone = [Collate(0, objective("causal_lm"))([row]) for row in rows()]
    loss, gradients = trained(backbone, adapter, alone)
    for at_most in (45, 16):  # all in one row; in rows of at most 16
        batch = Collate(0, objective("causal_lm"), packed_to=at_most)(rows())
        assert weight_of(batch) == sum(TARGETS)
        assert batch["input_ids"].shape[1] <= at_most
        assert int(batch["labels"].texts.sum()) == 7
        found, packed_gradients = trained(backbone, adapter, [batch])
        assert abs(found - loss) < 1e-6
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        for mine, theirs in zip(packed_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6 * max(1.0, norm), rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolation_is_asked_of_the_model(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of("llama", attention)
    require_isolation(backbone)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: None)
    with pytest.raises(BackboneError, match=r"reads texts that stand in front of another.*data.packing=false"):
        require_isolation(backbone)


def test_models_and_methods_that_cannot_pack_are_refused() -> None:
    bloom = TransformerConfig(
        architecture={"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300},
        attention="eager",
    )
    with pytest.raises(BackboneError, match=r"data.packing=true: this bloom"):
        require_isolation(bloom.build(0, seed=0, head="own"))
    prompted = backbone_of("llama")
    attach(prompted, PromptTuning(length=2), seed=0, train_head=False)
    with pytest.raises(BackboneError, match="soft prompt cannot stand in a row of several texts"):
        require_isolation(prompted)


def slowly(lengths: list[int], rows: int) -> int:
    """The longest of so many rows, of which the shortest always takes the longest text that is left."""
    filled = [0] * rows
    for length in sorted(lengths, reverse=True):
        filled[filled.index(min(filled))] += length
    return max(filled)


def test_rows_are_as_many_as_leave_the_fewest_places() -> None:
    assert len(shared_out([70] * 16, 256)) == 8  # as many places as 16 rows, and fewer rows
    assert len(shared_out([7, 7, 7, 7], 16)) == 2
    assert len(shared_out([10, 10, 10, 6, 4], 16)) == 4  # 4 × 10, and not 3 × 16


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5, 5], [16, 1, 1, 14, 9, 7, 3], [9, 9, 9], [1] * 40])
def test_nothing_is_split_lost_or_doubled(lengths: list[int]) -> None:
    shared = shared_out(lengths, 16)
    assert sorted(number for row in shared for number in row) == list(range(len(lengths)))
    filled = [sum(lengths[number] for number in row) for row in shared]
    assert max(filled) <= 16
    best = min(count * longest for count in range(1, len(lengths) + 1) if (longest := slowly(lengths, count)) <= 16)
    assert len(shared) * max(filled) == best
    made = packed([{"input_ids": [n] * n, "loss": [True] * n, "texts": 1} for n in lengths], 16)
    tokens = sorted(int(token) for row in made for token in row["input_ids"])
    assert tokens == sorted(n for n in lengths for _ in range(n))


def test_a_run_with_packed_rows_is_the_run_without(peftlab: Peftlab, scratch: Path) -> None:
    common = [*LANGUAGE, f"data.path={write_sums(scratch)}", "peft=lora", "data.group_by_length=false", "optim=sgd",
              "optim.lr=0.5", "trainer.max_epochs=2", "data.max_length=64"]  # fmt: skip
    for name, more in (("plain", []), ("packed", ["data.packing=true"])):
        done = peftlab("train", *common, f"name={name}", *more)
        assert done.status == 0, done.err
    plain, other = (json.loads((run_folder(name) / "record.json").read_text()) for name in ("plain", "packed"))
    for mine, theirs in zip(other["history"], plain["history"], strict=True):
        assert (mine["step"], mine["train_rows"]) == (theirs["step"], theirs["train_rows"])
        for figure in ("train/loss", "validation/loss", "train/token_accuracy"):
            assert abs(mine[figure] - theirs[figure]) < 1e-6
    weights = [load_file(run_folder(name) / "adapter.safetensors") for name in ("plain", "packed")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)
    refused = peftlab("train", *common, "data.packing=true", "trainer.compile=true")
    assert refused.status == 2
    assert "trainer.compile=true is not allowed beside data.packing=true" in refused.err
