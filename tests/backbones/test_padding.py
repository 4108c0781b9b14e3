"""Who stands beside a text in a batch changes nothing of its answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones.padding import padded_left, require_padding_changes_nothing
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny

TEXTS = ["dull", "a fine and moving film", "so-so", "great acting, no story, wonderful"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_alone_and_in_any_batch(kind: str) -> None:
    backbone = tiny(kind)
    shake(backbone)
    require_padding_changes_nothing(backbone)
    with torch.no_grad():
        together = backbone(*batch(backbone, TEXTS))
        for row, text in enumerate(TEXTS):
            alone = backbone(*batch(backbone, [text]))
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5 * float(together.abs().max()))


def test_padding_moves_to_the_left() -> None:
    ids = torch.tensor([[5, 6, 0, 0], [1, 2, 3, 4], [9, 0, 0, 0]])
    mask = (ids > 0).long()
    moved, moved_mask = padded_left(ids, mask)
    assert moved.tolist() == [[0, 0, 5, 6], [1, 2, 3, 4], [0, 0, 0, 9]]
    assert torch.equal(moved_mask, (moved > 0).long())


class ReadsLast(nn.Module):
    """A classifier that takes the last place for the text's end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        out.logits = out.logits + input_ids[:, -1:].float()
        found: Tensor = out
        return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_reads_its_padding_is_refused(dtype: str) -> None:
    backbone: TransformerBackbone = tiny("distilbert", dtype=dtype)
    shake(backbone)
    training = {name: module.training for name, module in backbone.named_modules()}
    require_padding_changes_nothing(backbone)
    assert {name: module.training for name, module in backbone.named_modules()} == training
    backbone.model = ReadsLast(backbone.model)
    with pytest.raises(BackboneError, match="otherwise beside a longer text than alone"):
        require_padding_changes_nothing(backbone)


def test_weights_that_overflow_are_refused() -> None:
    backbone = tiny("bert")
    with torch.no_grad():
        backbone.model.get_parameter("classifier.weight").fill_(float("inf"))
    with pytest.raises(BackboneError, match="its weights overflow"):
        require_padding_changes_nothing(backbone)


class RoundsByShape(nn.Module):
    """A classifier whose sums come out otherwise in batches of other shapes, as kernels of GPUs do, by ``share``."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = model, share

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        largest = out.logits.abs().max()
        out.logits = out.logits + self.share * largest * (1 if input_ids.shape[0] > 1 else -1)
        found: Tensor = out
        return found


def test_rounding_that_depends_on_the_shape_is_no_padding_in_16_bits() -> None:
    backbone: TransformerBackbone = tiny("distilbert", dtype="bfloat16")
    shake(backbone)
    plain = backbone.model
    backbone.model = RoundsByShape(plain, 0.02)
    require_padding_changes_nothing(backbone)
    narrow: TransformerBackbone = tiny("distilbert")
    shake(narrow)
    narrow.model = RoundsByShape(narrow.model, 0.02)
    with pytest.raises(BackboneError, match="otherwise beside a longer text than alone"):
        require_padding_changes_nothing(narrow)


class RoundsByWidth(RoundsByShape):
    """The same where a row is padded, of which rows that are not say nothing."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        signs = torch.where(attention_mask.bool().all(dim=1, keepdim=True), 1, -1)
        out.logits = out.logits + self.share * out.logits.abs().max() * signs
        found: Tensor = out
        return found


def test_rounding_grows_with_the_root_of_the_blocks() -> None:
    backbone: TransformerBackbone = tiny("distilbert", dtype="bfloat16")
    shake(backbone)
    backbone.model = RoundsByWidth(backbone.model, 0.03)
    backbone.model.config = SimpleNamespace(num_hidden_layers=16)
    require_padding_changes_nothing(backbone)
    backbone.model.config.num_hidden_layers = 1
    with pytest.raises(BackboneError, match="otherwise beside a longer text than alone"):
        require_padding_changes_nothing(backbone)
