"""``peft=hf_peft`` as a folder: HF peft loads it, computes the same, and would have written the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.hf.any import TYPES
from peftlab.peft.hf.codec import written
from peftlab.peft.hf_peft import HFPeft
from tests.interop.exchange import (
    TOLERANCE,
    base_model,
    logits_of,
    peft_loads,
    peft_logits,
    tensors_of,
    texts,
    trained,
    we_import,
    write,
)

QUERY: dict[str, Any] = {"target_modules": ["query"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4, **QUERY},
    "C3A": {"block_size": 8, **QUERY},
    "DELORA": {"r": 4, **QUERY},
    "FOURIERFT": {"n_frequency": 50, "target_modules": ["query", "value"]},
    "GRALORA": {"r": 4, **QUERY},
    "HIRA": {"r": 4, **QUERY},
    "HRA": {"r": 2, "target_modules": ["query", "output.dense"]},
    "IA3": {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "LOHA": {"r": 2, "target_modules": ["query", "value"], "layers_to_transform": [1]},
    "LOKR": {"r": 2, "target_modules": r".*\.(query|value)"},
    "LORA": {"r": 4, "rank_pattern": {"value": 2}, "target_modules": ["query", "value"], "bias": "lora_only"},
    "MISS": {"r": 4, **QUERY},
    "OFT": {"oft_block_size": 16, "target_modules": "all-linear", "exclude_modules": ["key"]},
    "ROAD": {"group_size": 16, **QUERY},
    "SHIRA": {"r": 2, **QUERY},
    "WAVEFT": {"n_frequency": 50, **QUERY},
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: ("bert", name, options) for name, options in OPTIONS.items()},
    "OFT of Llama": ("llama", "OFT", {"oft_block_size": 8, "target_modules": "all-linear"}),
    "DoRA of a Conv1D": ("gpt2", "LORA", {"r": 2, "use_dora": True, "target_modules": ["c_attn"]}),
}


def test_every_type_that_is_written_is_tried() -> None:
    assert set(OPTIONS) == TYPES


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", CASES)
def test_peft_loads_what_is_its_own(name: str, scratch: Path) -> None:
    kind, peft_type, options = CASES[name]
    adapter = trained(kind, HFPeft(peft_type=peft_type, options=options))
    ids, mask = texts(kind, "")
    mine = logits_of(adapter.backbone, ids, mask)
    folder = write(adapter, scratch / "adapter")
    model = peft_loads(kind, folder)
    torch.testing.assert_close(peft_logits(model, ids, mask, {}), mine, atol=TOLERANCE, rtol=0)
    assert (mine - logits_of(base_model(kind), ids, mask)).abs().max() > 1e-2, "the adapter must matter"
    model.save_pretrained(scratch / "again")
    ours, theirs = tensors_of(folder), tensors_of(scratch / "again")
    assert {key: (t.shape, t.dtype) for key, t in ours.items()} == {k: (t.shape, t.dtype) for k, t in theirs.items()}
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_lora_of_hf_peft_can_be_imported(scratch: Path) -> None:
    adapter = trained("bert", HFPeft(peft_type="LORA", options=OPTIONS["LORA"]))
    ids, mask = texts("bert", "")
    mine = logits_of(adapter.backbone, ids, mask)
    again, _ = we_import("bert", write(adapter, scratch / "adapter"))
    torch.testing.assert_close(logits_of(again.backbone, ids, mask), mine, atol=TOLERANCE, rtol=0)


def test_the_trunk_alone(scratch: Path) -> None:
    adapter = trained("bert", HFPeft(peft_type="OFT", options=OPTIONS["OFT"]))
    ids, mask = texts("bert", "")
    folder = write(adapter, scratch / "adapter", trunk_only=True)
    theirs = peft.PeftModel.from_pretrained(base_model("bert").model.base_model, folder).eval()
    model: Any = adapter.model
    with torch.no_grad():
        mine = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        found = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, mine, atol=TOLERANCE, rtol=0)


CANNOT: dict[str, tuple[HFPeft, str]] = {
    "a type that was not tried": (
        HFPeft(peft_type="RANDLORA", options={"r": 4, **QUERY}),
        "peft_type=RANDLORA is not written .* OFT, .*--merged",
    ),
    "a changed backbone": (
        HFPeft(peft_type="LORA", options={"r": 4, "init_lora_weights": "pissa", **QUERY}),
        "init_lora_weights=pissa changes the backbone's own weights.*--merged",
    ),
    "tokens": (
        HFPeft(peft_type="LORA", options={"r": 4, "trainable_token_indices": [1], **QUERY}),
        "trainable_token_indices reaches further.*--merged",
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_folder_would_not_hold_is_refused(name: str) -> None:
    strategy, words = CANNOT[name]
    adapter = attach(base_model("bert"), strategy, seed=1)
    with pytest.raises(PeftlabError, match=words) as caught:
        written(adapter)
    assert "\n" not in str(caught.value)
