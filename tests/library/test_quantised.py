"""Adapters in a model that its user has quantised with bitsandbytes: train, save, load, switch off, refuse to merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from peftlab import IA3, DoRA, LoRA, PeftlabError, attach, load_adapter

METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoRA(rank=4),
    "dora": lambda: DoRA(rank=4),
    "ia3": IA3,
}
IDS = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


def quantised(folder: Path, kind: str) -> Any:
    """The same small Llama each time, in 4 or 8 bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    pytest.importorskip("accelerate", reason="transformers quantises with accelerate")
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    how = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=True,
        )
    )  # fmt: skip
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=how, device_map="cpu", dtype=torch.float32
        )
        with torch.no_grad():
            model.train()(IDS)  # trained with, never evaluated: nothing is repacked
    except (RuntimeError, NotImplementedError, ImportError) as error:
        pytest.skip(f"bitsandbytes has no {kind} on this machine: {str(error).splitlines()[0]}")
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model.eval()(IDS).logits.clone()
    return out


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_in_a_quantised_model(scratch: Path, kind: str, name: str) -> None:
    model = quantised(scratch / "llama", kind)
    stored = {key: value.clone() for key, value in model.state_dict().items() if "weight" in key and value.dim()}
    adapter = attach(model, METHODS[name]())
    with adapter.disabled():
        before = logits(model)
    assert torch.equal(logits(model), before) or name == "dora", "it starts as the model was"
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    trained = logits(model)
    assert (trained - before).abs().max() > 0.1
    with adapter.disabled():
        assert torch.equal(logits(model), before)
    adapter.save("saved")
    other = quantised(scratch / "llama", kind)
    load_adapter(other, "saved")
    assert torch.equal(logits(other), trained)
    with pytest.raises(PeftlabError, match="keeps its weight in 4 or 8 bits: merging would round"):
        adapter.merge()
    assert torch.equal(logits(model), trained), "the refusal has changed nothing"
    adapter.remove()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in stored.items()), "the stored bits are as they were"


def test_a_model_that_was_evaluated_before_is_refused_where_that_repacks_it(scratch: Path) -> None:
    model = quantised(scratch / "llama", "nf4")
    logits(model)
    if not any(hasattr(getattr(m.weight, "quant_state", None), "original_qshape")
               for m in model.modules() if type(m).__name__ == "Linear4bit"):  # fmt: skip
        attach(model, LoRA(rank=2))  # a CPU without bfloat16 instructions
        return
    for call in (lambda: attach(model, LoRA(rank=2)), lambda: load_adapter(model, scratch)):
        with pytest.raises(PeftlabError, match=r"has repacked the 4-bit weights of 'model\.layers\.0") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_after_removing_it_is_the_users_model_again(scratch: Path) -> None:
    model = quantised(scratch / "llama", "nf4")
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    were = [layer.support_avx512bf16_for_cpu for layer in layers]
    adapter = attach(model, LoRA(rank=2))
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    adapter.remove()
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == were
