"""Bottleneck adapters written a second time, as hooks on an unchanged model: slow, plain, and independent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach
from tests.backbones.tiny_backbones import shake
from tests.peft.tiny import batch, tiny

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
}
Weights = dict[str, Tensor]
Hooks = Callable[[nn.Module, Callable[[str], Weights]], None]


def plain(x: Tensor, weights: Weights, *, activation: str, scale: float = 1.0) -> Tensor:
    """s · (W_up f(W_down LN(x) + b_down) + b_up) with the parts that ``weights`` has."""
    if "norm.weight" in weights:
        centred = x - x.mean(dim=-1, keepdim=True)
        x = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        x = x * weights["norm.weight"] + weights["norm.bias"]
    low = ACTIVATIONS[activation](x @ weights["down"].T + weights.get("down_bias", 0))
    return (low @ weights["up"].T + weights.get("up_bias", 0)) * weights.get("scale", scale)


def compare_with_plain(kind: str, strategy: PEFTStrategy, hooks: Hooks, *, padded: bool) -> None:
    """Logits, and the gradient of every tensor that trains, agree with ``hooks`` on the same backbone."""
    backbone = tiny(kind)
    shake(backbone)  # what goes through a fresh tiny model is too small for a bottleneck without biases to show
    model = copy.deepcopy(backbone.model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = attach(backbone, strategy, seed=0, train_head=False)
    generator = torch.Generator().manual_seed(5)
    ours = dict(adapter.named_parameters())
    assert len(ours) == sum(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        for parameter in ours.values():
            parameter.normal_(std=0.3, generator=generator)
    copies = {name: p.detach().clone().requires_grad_() for name, p in ours.items()}

    def weights(place: str) -> Weights:
        return {name.removeprefix(f"{place}."): t for name, t in copies.items() if name.startswith(f"{place}.")}

    ids, mask = batch()
    if not padded:
        mask = torch.ones_like(mask)
    with torch.no_grad():
        untouched = model(input_ids=ids, attention_mask=mask).logits
    hooks(model, weights)
    logits, expected = backbone(ids, mask), model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, untouched, atol=1e-3), "the adapters must matter"
    labels = torch.tensor([0, 1, 2, 1])
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, mine in ours.items():
        assert mine.grad is not None, name
        assert copies[name].grad is not None, f"the plain model does not use {name}"
        assert mine.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, copies[name].grad, atol=1e-5, rtol=0)


def behind(module: nn.Module, weights: Weights, rows: slice = slice(None), **settings: Any) -> None:
    """h ← h + a(h) on ``rows`` of what ``module`` returns."""

    def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        part = out[..., rows]
        before = rows.start or 0
        return out + F.pad(plain(part, weights, **settings), (before, out.shape[-1] - before - part.shape[-1]))

    module.register_forward_hook(hook)


def beside(first: nn.Module, last: nn.Module, weights: Weights, **settings: Any) -> None:
    """What ``last`` returns plus a(x), x what ``first`` was given."""
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    last.register_forward_hook(lambda _module, _inputs, out: out + plain(seen.pop(), weights, **settings))


def zero_parts(adapter: Adapter) -> set[str]:
    """Ends of the names of trainable tensors that are all zero."""
    return {n.rpartition(".")[2] for n, p in adapter.named_parameters() if not p.any()}
