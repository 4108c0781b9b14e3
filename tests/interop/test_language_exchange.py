"""Adapters of language models through HF peft's files: ours to peft, peft's to us; logits, and the tokens written."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import GenerationConfig

from peftlab.backbones.language_model import LanguageModelBackbone
from peftlab.peft.base import attach
from peftlab.peft.imported import ImportedAdapter
from tests.backbones.tiny_backbones import shake, tiny_config
from tests.interop.exchange import METHODS, TOLERANCE, change_config, randomise, write

NEW, END = 6, 2
IDS = torch.randint(3, 259, (3, 7), generator=torch.Generator().manual_seed(3))
CASES = [(name, "llama") for name in METHODS if name != "multitask"]
CASES += [(name, "gpt2") for name in ("LoRA", "DoRA", "prompt", "prefix")]


@cache
def _template(kind: str) -> LanguageModelBackbone:
    backbone = tiny_config(kind).build(0, seed=0, head="own").eval()
    assert isinstance(backbone, LanguageModelBackbone)
    shake(backbone, scale=0.2)
    return backbone


def plain(kind: str) -> LanguageModelBackbone:
    return copy.deepcopy(_template(kind))


def said(backbone: LanguageModelBackbone) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of every token, and what is written behind the texts."""
    with torch.no_grad():
        logits = backbone(IDS, torch.ones_like(IDS))
    return logits, backbone.written(IDS.tolist(), max_new_tokens=NEW, stop_ids=[END])


def peft_says(model: Any) -> tuple[torch.Tensor, list[list[int]]]:
    """The same of peft's model."""
    mask = torch.ones_like(IDS)
    model.config.use_cache = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        logits = model(input_ids=IDS, attention_mask=mask).logits[:, -IDS.shape[1] :]
        how = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=END, use_cache=True)
        out = model.generate(input_ids=IDS, attention_mask=mask, generation_config=how)
    rows = out[:, IDS.shape[1] :].tolist()
    return logits, [row[: row.index(END) + 1] if END in row else row for row in rows]


def require_same(mine: tuple[torch.Tensor, Any], theirs: tuple[torch.Tensor, Any], kind: str) -> None:
    assert (mine[0] - theirs[0]).abs().max() < TOLERANCE * max(1.0, float(theirs[0].abs().max()))
    assert mine[1] == theirs[1]
    assert (mine[0] - said(plain(kind))[0]).abs().max() > 1e-2, "the adapter must matter"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_peft_loads_ours_and_writes_the_same(name: str, kind: str, scratch: Path) -> None:
    adapter = attach(plain(kind), METHODS[name].ours(kind), seed=1, train_head=False)
    randomise(adapter.backbone)
    adapter.backbone.eval()
    mine = said(adapter.backbone)  # type: ignore[arg-type]
    write(adapter, scratch / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on Conv1D
        theirs = peft.PeftModel.from_pretrained(plain(kind).model, scratch / "adapter").eval()
    assert theirs.peft_config["default"].task_type == "CAUSAL_LM"
    require_same(mine, peft_says(theirs), kind)


@pytest.mark.parametrize("name", ["LoRA", "IA3", "prompt", "all-linear"])
def test_we_load_pefts_and_write_the_same(name: str, scratch: Path) -> None:
    whole = peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear")
    made = METHODS[name].theirs if name in METHODS else None
    config = whole if made is None else made("llama")
    config.task_type = "CAUSAL_LM"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(0)
        theirs: Any = peft.get_peft_model(plain("llama").model, config)
    randomise(theirs)
    theirs.eval().save_pretrained(scratch / "adapter")
    if made is None:
        change_config(scratch / "adapter", target_modules="all-linear")
    adapter = attach(plain("llama"), ImportedAdapter(path=str(scratch / "adapter")), seed=9, train_head=False)
    adapter.backbone.eval()
    require_same(said(adapter.backbone), peft_says(theirs), "llama")  # type: ignore[arg-type]
