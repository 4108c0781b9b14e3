"""``trainer.compile``: the same numbers under the same names, one program for all lengths."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.dora import DoRA
from peftlab.peft.lora import LoRA
from peftlab.training.compiled import compile_backbone, compiling

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 259,
        "intermediate_size": 32}  # fmt: skip
LLAMA = {**BERT, "model_type": "llama", "num_key_value_heads": 1}
SHAPES = [(16, True), (24, False), (31, True)]


def built(architecture: dict[str, Any], method: Any, pooling: Any = "model") -> Adapter:
    backbone = TransformerConfig(architecture=architecture, dropout=0.0, pooling=pooling).build(2, seed=0)
    return attach(backbone, method(rank=2), seed=0, train_head=True)


def losses_and_gradients(adapter: Adapter) -> list[Tensor]:
    """Of batches of several lengths, with and without padding."""
    found = []
    for number, (length, full) in enumerate(SHAPES):
        ids = torch.randint(5, 250, (3, length), generator=torch.Generator().manual_seed(number))
        mask = torch.ones_like(ids)
        if not full:
            mask[1, length // 2 :] = 0
        loss = torch.nn.functional.cross_entropy(adapter.backbone(ids, mask), torch.tensor([0, 1, 0]))
        found += [loss.detach(), *torch.autograd.grad(loss, adapter.parameters(beside=True))]
    return found


@pytest.mark.parametrize(("architecture", "method", "pooling"), [(BERT, DoRA, "mean"), (LLAMA, LoRA, "model")])
def test_one_program_computes_the_same(architecture: dict[str, Any], method: Any, pooling: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    expected = losses_and_gradients(built(architecture, method, pooling))
    adapter = built(architecture, method, pooling)
    names = list(adapter.backbone.state_dict())
    compile_backbone(adapter.backbone, deterministic=False, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its tracing
        found = losses_and_gradients(adapter)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert list(adapter.backbone.state_dict()) == names


def test_without_a_compiler_it_says_so() -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    torch._dynamo.reset()
    adapter = built(BERT, LoRA)
    adapter.backbone.network().compile(backend=fails)
    with (
        pytest.raises(PeftlabError, match=r"trainer\.compile=true: this bert .*compiler.*trainer\.compile=false"),
        compiling("this bert"),
    ):
        losses_and_gradients(adapter)
