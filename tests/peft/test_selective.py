"""Training the backbone's own tensors: float32 copies of 16-bit ones, saving, and layers of bitsandbytes."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.bitfit import BitFit
from peftlab.peft.last_layers import LastLayers
from peftlab.peft.layernorm import LayerNormTuning
from peftlab.peft.parameters import NamedParameters
from tests.backbones.tiny_backbones import batch as texts_batch
from tests.peft.tiny import batch, tiny

METHODS: list[PEFTStrategy] = [BitFit(), LayerNormTuning(), LastLayers(), NamedParameters()]
LABELS = torch.tensor([0, 1, 2, 0])


def train(backbone, steps: int = 2, lr: float = 1e-3):  # type: ignore[no-untyped-def]
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone(*batch()), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("strategy", METHODS, ids=lambda strategy: strategy.name)
def test_in_bfloat16_it_starts_as_the_backbone_and_small_steps_count(strategy: PEFTStrategy) -> None:
    """A step of 1e-3 on a weight of 1 is lost in bfloat16; the float32 copy keeps it."""
    backbone = tiny("bert", dtype="bfloat16")
    backbone.requires_grad_(False)
    before = backbone(*batch())
    adapter = attach(backbone, strategy, seed=0, train_head=False)
    assert torch.equal(before, backbone(*batch()))
    tensors = adapter.tensors()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    train(backbone)
    assert all(not torch.equal(tensor, start[name]) for name, tensor in tensors.items())
    assert backbone.model.bert.encoder.layer[1].output.LayerNorm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("strategy", METHODS, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_tensors_have_the_backbones_names_and_restore_it(strategy: PEFTStrategy, dtype: str) -> None:
    backbone, other = tiny("bert", dtype=dtype), tiny("bert", dtype=dtype)
    names = {name for name, _ in backbone.model.named_parameters()}
    adapter = attach(backbone, strategy, seed=0)
    train(backbone, lr=0.01)
    state = adapter.state_dict()
    assert state.keys() <= names
    another = attach(other, strategy, seed=99)
    assert not torch.equal(backbone(*batch()), other(*batch()))
    another.load_state_dict(state)
    assert torch.equal(backbone(*batch()), other(*batch()))
    train(backbone)
    train(other)
    assert torch.equal(backbone(*batch()), other(*batch())), "the restored model does not train on in the same way"


def test_tied_weights_stay_tied() -> None:
    """T5's encoder and decoder read the same embedding; its float32 copy has to serve both."""
    strategy = NamedParameters(patterns=["shared.weight"])
    backbone = tiny("t5", dtype="bfloat16")
    ids, mask = texts_batch(backbone, ["a fine film", "dull"])
    before = backbone(ids, mask)
    attach(backbone, strategy, seed=0, train_head=False)
    (copy,) = [p for p in backbone.parameters() if p.requires_grad]
    with torch.no_grad():
        copy.mul_(1.5)
    model = backbone.model.transformer
    assert torch.equal(model.shared.weight, model.encoder.embed_tokens.weight)
    assert torch.equal(model.shared.weight, model.decoder.embed_tokens.weight)
    assert not torch.equal(before, backbone(ids, mask))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_biases_of_quantised_layers_keep_their_type_under_autocast(kind: str) -> None:
    """bitsandbytes casts its biases in place to the activations' type: not those that train."""
    backbone = tiny("bert", quantize=kind)
    adapter = attach(backbone, BitFit(), seed=0, train_head=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(backbone(*batch()), LABELS)
    loss.backward()
    for name, tensor in adapter.tensors().items():
        assert tensor.dtype == torch.float32, name
        assert tensor.grad is not None, name
        assert tensor.grad.dtype == torch.float32, name


@pytest.mark.parametrize("strategy", METHODS, ids=lambda strategy: strategy.name)
def test_there_is_nothing_to_merge(strategy: PEFTStrategy) -> None:
    adapter = attach(tiny("bert"), strategy, seed=0)
    for call in (adapter.merge, adapter.unmerge):
        with pytest.raises(PeftlabError, match="there is nothing to merge"):
            call()
