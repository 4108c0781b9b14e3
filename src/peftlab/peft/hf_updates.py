"""ΔW of HF peft's layers, whose own code says it in a different way for each type.

A layer that can be merged is affine: it computes f(x) = (W + ΔW) x + b + Δb. So the columns of ΔW are what it makes of
the unit vectors, less what its base makes of them and less what both make of zero. The base stands in as a float32
copy, for 16 bits would round ΔW and packed weights can be read only so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.surgery import is_conv1d, is_quantized, weight_matrix
from peftlab.peft.weight_update import WeightUpdate


def weight_updates(peft_type: str, layers: Iterable[tuple[str, Any]]) -> Iterator[WeightUpdate]:
    """The update of each of HF peft's ``layers`` that stands around a matrix.

    Raises:
        PeftlabError: for a layer that is not affine.
    """
    for name, layer in layers:
        base = layer.base_layer
        if not (isinstance(base, nn.Linear | nn.Embedding) or is_conv1d(base)):
            continue
        update = _update(layer, base)
        if update is None:
            raise PeftlabError(
                f"peft.peft_type={peft_type}: the layer at '{name}' is not linear: what it changes is no matrix "
                "that could be measured. Inspect a run of OFT, LOHA, LORA, …"
            )
        yield WeightUpdate(name, weight_matrix(base).float(), update)


@torch.no_grad()
def _update(layer: Any, base: Any) -> Tensor | None:
    """ΔW (out, in) of ``layer``; None if it is not affine."""
    plain = _in_float32(base)
    device, training = base.weight.device, layer.training

    def change(x: Tensor) -> Tensor:
        outputs: Tensor = layer(x) - plain(x)
        return outputs

    layer._modules["base_layer"] = plain
    layer.eval()
    try:
        if isinstance(base, nn.Embedding):
            return change(torch.arange(base.num_embeddings, device=device)).T
        unit = torch.eye(weight_matrix(base).shape[1], device=device)
        constant = change(torch.zeros_like(unit[:1]))
        update, opposite = change(unit) - constant, change(-unit) - constant
    finally:
        layer._modules["base_layer"] = base
        layer.train(training)
    return update.T if torch.allclose(update, -opposite, rtol=1e-3, atol=1e-5) else None


def _in_float32(base: Any) -> nn.Module:
    if not is_quantized(base):
        floats: nn.Module = copy.deepcopy(base).float()
        return floats
    weight = weight_matrix(base).float()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain
