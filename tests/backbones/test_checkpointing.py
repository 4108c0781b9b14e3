"""``backbone.gradient_checkpointing``: blocks are computed twice, and every gradient is what it is without."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from peftlab.errors import BackboneError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.head import HeadOnly
from peftlab.peft.houlsby import Houlsby
from peftlab.peft.lora import LoRA
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from tests.backbones.tiny_backbones import batch, tiny

PREFIX = PrefixTuning(length=3, hidden=8, dropout=0.3)
TEXTS = ["a fine film", "a dull and much too long film", "so so"]
CELLS: list[tuple[str, PEFTStrategy, dict[str, Any]]] = [
    *((name, LoRA(rank=2, targets=[".*(query|query_proj|in_proj|q_lin|c_attn|q_proj|Wqkv|q)"], dropout=0.2), {})
      for name in ("bert", "deberta", "deberta-v2", "distilbert", "gpt2", "llama", "modernbert", "t5")),
    *((name, PREFIX, {}) for name in ("bert", "llama", "t5", "deberta-v2", "gpt2")),
    ("roberta", PTuningV2(length=3, position_shift=True), {}),
    ("bert", PromptTuning(length=3), {}),
    ("bert", Houlsby(reduction_factor=8), {}),
    ("bert", PREFIX, {"fast_dropout": True}),
    ("bert", LoRA(rank=2), {"attention": "eager", "pooling": "mean"}),
]  # fmt: skip


def gradients(adapter: Adapter, passes: int = 2) -> list[Tensor]:
    """Of what trains, after two batches: their loss is one, so that both passes are there before any is gone back."""
    torch.manual_seed(7)
    batches = [batch(adapter.backbone, TEXTS[first:]) for first in range(passes)]
    loss = sum(adapter.backbone(*one).square().sum() for one in batches)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, adapter.parameters(beside=True)))


def built(name: str, method: PEFTStrategy, **more: Any) -> Adapter:
    return attach(tiny(name, **more).train(), method, seed=0)


@pytest.mark.parametrize(("name", "method", "more"), CELLS, ids=lambda value: getattr(value, "name", str(value)))
def test_the_gradients_are_those_without(name: str, method: PEFTStrategy, more: dict[str, Any]) -> None:
    usual = built(name, method, **more)
    saving = built(name, method, gradient_checkpointing=True, **more)
    calls: list[bool] = []
    # of what is inside a block, so that it is called again where the block is computed again
    inside = [module for module in saving.model.modules() if "Attention" in type(module).__name__][-1]
    inside.register_forward_hook(lambda *_: calls.append(True))
    for a, b in zip(gradients(usual), gradients(saving), strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-6)
    assert len(calls) >= 4, "twice of each of two batches"


def test_nothing_is_kept_or_computed_twice_where_nothing_trains_below() -> None:
    adapter = built("bert", HeadOnly(), gradient_checkpointing=True)
    calls: list[bool] = []
    adapter.model.get_submodule("bert.encoder.layer.0.attention").register_forward_hook(lambda *_: calls.append(True))
    gradients(adapter)
    assert len(calls) == 2


def test_a_model_of_ones_own_that_checkpoints_keeps_its_prefix() -> None:
    """The dropout of the prefix would otherwise be drawn once more: torch's own way, without our key."""
    expected = gradients(built("bert", PREFIX), passes=1)
    adapter = built("bert", PREFIX)
    adapter.model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))  # type: ignore[operator]
    for a, b in zip(expected, gradients(adapter, passes=1), strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-6)


def test_a_model_with_a_prefix_can_be_copied_after_a_step() -> None:
    adapter = built("bert", PREFIX)
    gradients(adapter)
    copied = copy.deepcopy(adapter.backbone).eval()
    given = batch(adapter.backbone, TEXTS)
    assert torch.equal(copied(*given), adapter.backbone.eval()(*given))


def test_evaluation_computes_once() -> None:
    usual, saving = built("bert", PREFIX), built("bert", PREFIX, gradient_checkpointing=True)
    given = batch(usual.backbone, TEXTS)
    assert torch.equal(usual.backbone.eval()(*given), saving.backbone.eval()(*given))


def test_a_model_that_cannot() -> None:
    with pytest.raises(BackboneError, match=r"gradient_checkpointing=true: xlnet cannot .* Set it to false"):
        tiny("xlnet", gradient_checkpointing=True)
