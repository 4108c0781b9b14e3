"""A layer's product, W x + b, and what the layer does to it afterwards.

Deltas change the product, since that is what merging changes. Most layers are their product. An embedding may scale
what it looks up (Gemma by √d, BART by ``embed_scale``); a delta's change is then scaled with it, in training as after
merging.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.errors import PeftlabError


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b (…, out) of ``layer``; of an embedding the rows of its table."""
    if isinstance(layer, nn.Embedding) and _factor(layer) is not None:
        return nn.Embedding.forward(layer, x)
    out: Tensor = layer(x)
    return out


def after(layer: nn.Module, out: Tensor) -> Tensor:
    """What ``layer`` returns where its product is ``out`` (…, out)."""
    factor = _factor(layer) if isinstance(layer, nn.Embedding) else None
    if factor is None:
        return out
    return out * (factor.to(out.dtype) if isinstance(factor, Tensor) else factor)


def _factor(layer: nn.Embedding) -> Tensor | float | None:
    """What the embedding multiplies its rows by, under the name that transformers' models have for it."""
    factor = getattr(layer, "embed_scale", None)
    return factor if isinstance(factor, Tensor | float | int) else None


def require_product(name: str, layer: nn.Module) -> None:
    """Look whether a linear layer or embedding of a class of its own returns its product, scaled or not.

    Raises:
        PeftlabError: naming the module ``name``, if it does something else with it.
    """
    if not isinstance(layer, nn.Linear | nn.Embedding) or layer.weight.device.type == "meta":
        return
    own = nn.Embedding if isinstance(layer, nn.Embedding) else nn.Linear
    if type(layer).forward is own.forward or not layer.weight.is_floating_point():  # 4 and 8 bits: bitsandbytes' own
        return
    if not _is_its_product(layer):
        raise PeftlabError(
            f"peft.targets: '{name}' is a {type(layer).__name__}, which does more than a {own.__name__}'s product: "
            "what an adapter adds to it would be something else once it is merged. Leave it out of peft.targets."
        )


@torch.no_grad()
def _is_its_product(layer: nn.Linear | nn.Embedding) -> bool:
    """Tried on two rows, in evaluation."""
    weight, training = layer.weight, layer.training
    x: Tensor
    if isinstance(layer, nn.Embedding):
        x = torch.arange(min(2, layer.num_embeddings), device=weight.device)
        expected = after(layer, F.embedding(x, weight))
    else:
        x = torch.linspace(-1, 1, 2 * layer.in_features, device=weight.device, dtype=weight.dtype).view(2, -1)
        expected = F.linear(x, weight, layer.bias)
    try:
        found = layer.eval()(x)
    except Exception:  # whatever it wants to be given, it is more than x
        return False
    finally:
        layer.train(training)
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3)
