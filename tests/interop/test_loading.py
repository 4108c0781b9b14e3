"""The code in an adapter's README.md does what it says: it loads the folder, and computes what the run computed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.backbones.quantize import quantize
from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.interop.loading import how_to_load
from peftlab.objectives.base import objective
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from tests.backbones.tiny_backbones import ARCHITECTURES, shake, tiny, tiny_config
from tests.interop.exchange import logits_of, randomise, write
from tests.peft.tiny import batch

LABELS = ["bad", "fair", "good"]


def exported(kind: str, scratch: Path, **more: Any) -> tuple[TransformerBackbone, str]:
    """A model with an adapter, whose base has no padding id; and the code of its card."""
    config = tiny_config(kind, **more)
    float_backbone = replace(config, quantize=None).build(len(LABELS), seed=0)
    shake(float_backbone)
    model: Any = float_backbone.model
    model.config.pad_token_id = None
    model.save_pretrained(scratch / "base")
    model.config.pad_token_id = float_backbone.tokenizer.pad_id
    if config.quantize is not None:
        quantize(model, config.quantize, keep=float_backbone.head_modules(), device=torch.device("cpu"))
    adapter = attach(float_backbone, LoRA(rank=4), seed=1)
    randomise(float_backbone)
    write(adapter, scratch / "adapter", base=str(scratch / "base"))
    code = how_to_load(
        "adapter", str(scratch / "base"), float_backbone, objective("classification").hf_config(LABELS), config
    )
    return float_backbone.eval(), code.replace("FOLDER", str(scratch / "adapter"))


# transformers keeps bitsandbytes' blocks of 64 weights, which have to divide a row.
_WIDE_BERT = ARCHITECTURES["bert"] | {"model_type": "bert", "hidden_size": 64}
_WIDE_GPT2 = ARCHITECTURES["gpt2"] | {"model_type": "gpt2", "n_embd": 64}

CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "a decoder without a padding id": ("gpt2", {}, 1e-5),
    "another": ("llama", {}, 1e-5),
    "an encoder": ("bert", {}, 1e-5),
    "bf16": ("bert", {"dtype": "bfloat16"}, 0.1),
    "nf4": ("bert", {"quantize": "nf4", "architecture": _WIDE_BERT}, 1e-5),
    "fp4, Conv1D": ("gpt2", {"quantize": "fp4", "architecture": _WIDE_GPT2}, 1e-5),
    "int8": ("bert", {"quantize": "int8"}, 1e-5),
}


@pytest.mark.parametrize("name", CASES)
def test_the_code_loads_what_was_exported(name: str, scratch: Path) -> None:
    kind, more, tolerance = CASES[name]
    backbone, code = exported(kind, scratch, **more)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on Conv1D, transformers on a head that it starts anew
        exec(code, found)
    model, (ids, mask) = found["model"], batch()
    ids = ids * mask
    for module in model.modules():  # bitsandbytes' kernel for some CPUs computes in bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).logits.float()
    torch.testing.assert_close(theirs, logits_of(backbone, ids, mask), atol=tolerance, rtol=0)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert ("pad_token_id" in code) == (kind in ("gpt2", "llama"))
    if "dtype" in more:
        assert model.base_model.model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


def test_the_weights_of_a_hub_id_are_those_of_the_run() -> None:
    backbone = tiny("bert")
    config = replace(tiny_config("bert"), architecture=None, name_or_path="owner/name", revision="main")
    assert "revision='main'" in how_to_load(
        "adapter", "owner/name", backbone, objective("classification").hf_config(LABELS), config
    )
    backbone.provenance["commit"] = "0123abc"
    assert "revision='0123abc'" in how_to_load(
        "trunk", "owner/name", backbone, objective("classification").hf_config(LABELS), config
    )
    assert "revision" not in how_to_load(
        "adapter", "/base", backbone, objective("classification").hf_config(LABELS), config, written=True
    )


def test_a_merged_model_names_no_tokenizer_that_is_not_there() -> None:
    backbone = tiny("bert")
    assert isinstance(backbone.tokenizer, ByteTokenizer)
    config = tiny_config("bert")
    assert "AutoTokenizer" not in how_to_load(
        "merged", None, backbone, objective("classification").hf_config(LABELS), config
    )
