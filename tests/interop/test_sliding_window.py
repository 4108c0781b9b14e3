"""A prefix beside a sliding window: HF peft's cache loses it, so only what fits into the window is exchanged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import PeftlabError
from peftlab.interop.export import adapter_files
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.hf.prefix import sliding_window
from peftlab.peft.imported import ImportedAdapter
from peftlab.peft.p_tuning_v2 import PTuningV2
from tests.backbones.tiny_backbones import ARCHITECTURES, shake, tiny
from tests.interop.exchange import TOLERANCE, N, logits_of, peft_logits, randomise, write

WINDOW = 16
ROOM = WINDOW - N


def with_window(kind: str = "mistral", **more: Any) -> TransformerBackbone:
    settings = {"sliding_window": WINDOW, **more}
    backbone = tiny(kind, architecture={"model_type": kind, **ARCHITECTURES[kind], **settings})
    shake(backbone)
    return backbone


def trained() -> tuple[Adapter, Any]:
    """A prefix in ours, and the plain model."""
    backbone = with_window()
    plain = copy.deepcopy(backbone.model)
    adapter = attach(backbone, PTuningV2(length=N), seed=1)
    randomise(backbone)
    backbone.eval()
    return adapter, plain


def test_what_fits_into_the_window_computes_the_same(scratch: Path) -> None:
    prefix, plain = trained()
    ids = torch.arange(5, 5 + 2 * (ROOM + 1)).view(2, -1)
    write(prefix, scratch / "adapter", longest=ROOM)
    theirs = peft.PeftModel.from_pretrained(plain, scratch / "adapter").eval()
    differences = []
    for length in (ROOM, ROOM + 1):
        text, mask = ids[:, :length], torch.ones(2, length, dtype=torch.long)
        difference = logits_of(prefix.backbone, text, mask) - peft_logits(theirs, text, mask, {})
        differences.append(float(difference.abs().max()))
    assert differences[0] < TOLERANCE
    assert differences[1] > 1e-3, "one token more is another computation"


def test_a_run_with_longer_texts_is_not_exported() -> None:
    prefix, _ = trained()
    adapter, _ = adapter_files(prefix, longest=ROOM)
    assert f"behind the first {ROOM} tokens" in adapter.notes[0]
    words = rf"{N} keys and texts of up to {ROOM + 1} tokens .*window of {WINDOW}.*data\.max_length to at most {ROOM}"
    with pytest.raises(PeftlabError, match=words) as caught:
        adapter_files(prefix, longest=ROOM + 1)
    assert "\n" not in str(caught.value)


def test_nor_is_a_prefix_imported_for_longer_texts(scratch: Path) -> None:
    prefix, _ = trained()
    write(prefix, scratch / "adapter")
    for longest in (ROOM, ROOM + 1):
        again, imported = with_window(), ImportedAdapter(path=str(scratch / "adapter"))
        again.check_length(longest, extra_tokens=imported.extra_tokens())
        if longest == ROOM:
            attach(again, imported, seed=0)
        else:
            with pytest.raises(PeftlabError, match=rf"peft\.path=.* window of {WINDOW}"):
                attach(again, imported, seed=0)


def test_which_models_have_a_window() -> None:
    assert sliding_window(with_window()) == WINDOW
    assert sliding_window(with_window(sliding_window=None)) is None
    assert sliding_window(with_window("qwen2")) is None, "off unless use_sliding_window"
    assert sliding_window(with_window("qwen2", use_sliding_window=True, max_window_layers=1)) == WINDOW
    assert sliding_window(with_window("phi3")) == WINDOW
    assert sliding_window(tiny("llama")) is None
