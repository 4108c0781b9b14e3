"""An adapter on any layer is one function: trained, merged, in HF peft, and as a plain model with changed weights.

The plain model is the slow way: the same network, with W + s · B A written into its weight by the test.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from peftlab import LoRA, attach
from peftlab.backbones.base import Backbone
from peftlab.backbones.role_table import ROLES, RolePattern
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach as attach_to_backbone
from peftlab.peft.low_rank import LowRank
from peftlab.peft.surgery import is_conv1d
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny

TEXTS = ["a fine and moving film", "dull", "great acting, no story"]
PLACES = [
    (kind, role)
    for kind in sorted(ARCHITECTURES.keys() & ROLES.keys())
    for role, place in ROLES[kind].items()
    if isinstance(place, RolePattern) and (kind, role) != ("t5", "ffn_gate")  # of the gated layers of T5 1.1
]  # fmt: skip


def shaken(adapter: Adapter) -> None:
    """Random factors, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@torch.no_grad()
def plainly_changed(model: nn.Module, adapter: Adapter) -> nn.Module:
    """``model``, which is clean, with every update written into its own weights, each table once."""
    for placed in adapter.placed():
        assert isinstance(placed.delta, LowRank)
        layer = model.get_submodule(placed.name)
        update = placed.delta.scale * placed.delta.lora_B @ placed.delta.lora_A  # (out, in)
        weight: Any = layer.weight
        rows = placed.delta.rows or slice(None)
        if isinstance(layer, nn.Embedding):
            weight += update.T
        elif is_conv1d(layer):
            weight[:, rows] += update.T
        else:
            weight[rows] += update
    return model


def logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Of a ``transformers`` classifier."""
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, attention_mask=mask).logits
    return found


@pytest.mark.parametrize(("kind", "role"), PLACES)
def test_every_role_of_every_architecture(kind: str, role: str, scratch: Path) -> None:
    backbone: Backbone = tiny(kind)
    shake(backbone)
    ids, mask = batch(backbone, TEXTS)
    clean, theirs = copy.deepcopy(backbone.model), copy.deepcopy(backbone.model)
    start = logits(backbone.model, ids, mask)
    adapter = attach_to_backbone(backbone, LoRA(targets=[role], rank=2, alpha=4.0), seed=0)
    shaken(adapter)
    trained = logits(backbone.model, ids, mask)
    assert (trained - start).abs().max() > 1e-3, "the role's modules are called"
    close = {"rtol": 1e-4, "atol": 1e-5 * float(trained.abs().max())}
    torch.testing.assert_close(logits(plainly_changed(clean, adapter), ids, mask), trained, **close)
    adapter.save(scratch / "hf", format="hf_peft")
    in_hf_peft = PeftModel.from_pretrained(theirs, str(scratch / "hf"))
    torch.testing.assert_close(logits(in_hf_peft, ids, mask), trained, **close)
    adapter.merge()
    torch.testing.assert_close(logits(backbone.model, ids, mask), trained, **close)
    adapter.unmerge()
    adapter.remove()
    torch.testing.assert_close(logits(backbone.model, ids, mask), start, rtol=1e-6, atol=1e-6)


class Scaled(nn.Embedding):
    """As BART's: the factor is a plain number."""

    embed_scale = 3.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


class Clipped(nn.Linear):
    """Does something to its product that no weight stands for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-0.1, 0.1)


class Words(nn.Module):
    """Mean of word vectors, and a layer."""

    def __init__(self, table: nn.Embedding, layer: nn.Linear) -> None:
        super().__init__()
        self.table, self.layer = table, layer

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.layer(self.table(ids).mean(1))
        return out


def test_a_factor_that_is_a_number() -> None:
    model = Words(Scaled(9, 4, padding_idx=0), nn.Linear(4, 2)).eval()
    ids = torch.tensor([[1, 2, 0], [3, 8, 8]])
    clean = copy.deepcopy(model)
    adapter = attach(model, LoRA(targets=["table"], rank=2), seed=0)
    shaken(adapter)
    expected = plainly_changed(clean, adapter)(ids)
    torch.testing.assert_close(model(ids), expected)
    adapter.merge_and_remove()
    torch.testing.assert_close(model(ids), expected)
    assert type(model.table) is Scaled


def test_padding_gets_no_gradient() -> None:
    """As ``nn.Embedding``'s own row and HF peft's factor: what stands for nothing does not learn."""
    model = Words(nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2))
    adapter = attach(model, LoRA(targets=["table"], rank=2), seed=0)
    shaken(adapter)
    model(torch.tensor([[1, 2, 0]])).sum().backward()
    (delta,) = adapter.deltas()
    assert isinstance(delta, LowRank)
    gradient = delta.lora_A.grad
    assert gradient is not None
    assert gradient[:, 1].abs().sum() > 0
    assert gradient[:, 0].abs().sum() == 0


def test_what_does_more_than_its_product_is_refused() -> None:
    model = Words(nn.Embedding(9, 4), Clipped(4, 2))
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(PeftlabError, match=r"'layer' is a Clipped, which does more than a Linear's product"):
        attach(model, LoRA(targets=["layer"], rank=2), seed=0)
    assert [name for name, _ in model.named_modules()] == names


def test_tables_that_are_tied_to_others_are_not_merged() -> None:
    """A head that shares the table would change with it."""
    model = Words(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model.layer.weight = model.table.weight
    adapter = attach(model, LoRA(targets=["table"], rank=2), seed=0)
    with pytest.raises(PeftlabError, match="'table' shares its weight with 'layer'"):
        adapter.merge()
