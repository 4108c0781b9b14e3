"""``backbone.fast_dropout``: on CPUs, dropout from random bytes, and attention with it in blocks that fit the cache.

torch draws a number for each element, one after the other, and with dropout leaves its fused attention for one that
writes scores, weights and masks of all heads to memory. Here a byte b decides an element, which is kept if
b < k, k = round(256 (1 - p)), and then scaled by 256 / k: the rate is p to 1/512, and the expectation exact. Attention

    O = (M ⊙ softmax(Q Kᵀ / √d + mask)) V · 256 / k        M (B, H, T, T) of zeros and ones

goes over a few heads at a time; backward computes the weights once more instead of keeping them. Memory for a layer's
attention is a byte a weight.

It acts where a model is in training, on a CPU and in float32, on ``nn.Dropout`` modules and on attention that
``transformers`` looks up as ``sdpa``; anywhere else the plain code runs. Bytes come from SFC64 (Doty-Humphrey; numpy's
``random_raw``, which is six times as fast as torch's generator and the same in all versions), which torch's generator
seeds for each mask, so that a step's seed decides them, whatever the number of threads. Masks are kept as bytes, and
become float32 where they multiply, which takes half as long as a choice by truth values.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "peftlab_dropout_sdpa"
"""Of the attention, in transformers' registry."""
BLOCK = 2**20
"""Bytes of the scores of one block: what a core's own cache holds."""


def use_fast_dropout(model: Any) -> None:
    """Let ``model`` (of ``transformers``) drop by bytes: its modules stay what they are, under their names."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = ByteDropout
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(NAME)


def kept(p: float) -> int:
    """k of 256 bytes for which an element is kept, where it is dropped with probability ``p``: 1 … 256."""
    return max(1, round(256 * (1 - p)))


def keep_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Whether each element is kept, bool: eight are drawn at once, from a seed of torch's generator of the CPU."""
    size, most = torch.Size(shape).numel(), kept(p)
    words, seed = -(-size // 8), torch.randint(2**63 - 1, (1,), dtype=torch.int64)
    if isinstance(seed, FakeTensor):  # an estimate asks what it takes
        return (torch.empty(words, dtype=torch.int64).view(torch.uint8)[:size] < most).view(shape)
    drawn = np.random.SFC64(int(seed)).random_raw(words).view(np.uint8)[:size]
    return torch.from_numpy(drawn <= np.uint8(most - 1)).view(shape)


class ByteDropout(nn.Dropout):
    """``nn.Dropout``, drawn by bytes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, with elements that are dropped and others that are scaled, in training."""
        if not (self.training and self.p > 0 and applies(x)):
            return super().forward(x)
        dropped: Tensor = _Dropped.apply(x, keep_mask(tuple(x.shape), self.p), 256 / kept(self.p))  # type: ignore[no-untyped-call]
        return dropped


def applies(x: Tensor) -> bool:
    """Whether the fast code is for this tensor."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return _times(keep, scale, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return _times(keep, ctx.scale, gradients[0]), None, None


def _times(keep: Tensor, scale: float, x: Tensor) -> Tensor:
    """``x`` times 0 or ``scale``: with factors, in half the time that a choice by truth values takes."""
    factors = keep.view(torch.uint8).to(torch.float32)
    nothing = torch.full((), -0.0)  # what is added to zeros of either sign leaves them theirs
    return torch.addcmul(nothing, factors, x, value=scale, out=factors)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As ``transformers``' ``sdpa_attention_forward``: (B, H, T, d) each to (B, T, H, d)."""
    if dropout == 0 or not applies(query) or rest.get("position_bias") is not None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
        return plain
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keep = keep_mask((*query.shape[:3], key.shape[2]), dropout)
    return blockwise(query, key, value, attention_mask, keep, 256 / kept(dropout), scale), None


def blockwise(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keep: Tensor, factor: float, scale: float
) -> Tensor:
    """Attention with the weights that ``keep`` keeps, times ``factor``.

    Args:
        query: (B, H, T, d).
        key: (B, H, S, d).
        value: (B, H, S, d).
        mask: broadcast to (B, H, T, S): bool, true where there is something to attend to; or float, that is added.
        keep: (B, H, T, S) bool.
        factor: of weights that are kept.
        scale: of scores.

    Returns:
        (B, T, H, d), contiguous.
    """
    added = _to_add(mask, query.dtype)
    out: Tensor = _Attention.apply(query, key, value, added, keep, factor, scale)  # type: ignore[no-untyped-call]
    return out


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keep: Tensor, factor: float, scale: float
) -> Tensor:
    """What :func:`blockwise` computes, by its formula."""
    scores = query @ key.mT * scale
    added = _to_add(mask, query.dtype)
    weights = (scores if added is None else scores + added).softmax(dim=-1)
    return ((weights * keep * factor) @ value).transpose(1, 2)


def _to_add(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to scores, four-dimensional; its rows once, if they are all the same."""
    if mask is None:
        return None
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, keep: Tensor, factor: float, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, keep)
        ctx.factor, ctx.scale, ctx.at_once = factor, scale, _heads_at_once(q, k)
        ctx.added = _added_to_blocks(added, len(q), q.shape[1], ctx.at_once)
        out = _laid_out_as_tokens(q, v.shape[-1])
        given = (_scaled(q, scale), k, v, keep.view(torch.uint8), out)
        blocks = (_blocks(one, ctx.at_once) for one in given)
        rooms = _rooms(2, ctx.at_once, keep, q.dtype)
        for q_, k_, v_, keep_, out_, added_ in zip(*blocks, ctx.added, strict=True):
            weights, kept_ = (room[: len(keep_)] for room in rooms)
            _weights(q_, k_, added_, weights).mul_(kept_.copy_(keep_))
            torch.bmm(weights, v_, out=out_)
        return out.mul_(factor).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        q, k, v, keep = ctx.saved_tensors
        scaled, outer = _scaled(q, ctx.scale), _scaled(gradients[0].transpose(1, 2), ctx.factor)  # (B, H, T, d)
        dq, dk, dv = (_laid_out_as_tokens(one, one.shape[-1]) for one in (q, k, v))
        of_keys = ctx.needs_input_grad[1]  # not below the lowest layer that trains, where keys are frozen
        given = (scaled, k, v, keep.view(torch.uint8), outer, dq, dk, dv)
        blocks = (_blocks(one, ctx.at_once) for one in given)
        rooms = _rooms(3, ctx.at_once, keep, q.dtype)
        for q_, k_, v_, keep_, outer_, dq_, dk_, dv_, added_ in zip(*blocks, ctx.added, strict=True):
            weights, kept_, d_weights = (room[: len(keep_)] for room in rooms)
            _weights(q_, k_, added_, weights)
            kept_.copy_(keep_)
            torch.bmm(outer_, v_.mT, out=d_weights).mul_(kept_)
            torch.bmm(kept_.mul_(weights).mT, outer_, out=dv_)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype, grad_input=kept_)
            torch.bmm(d_scores, k_, out=dq_)
            if of_keys:
                torch.bmm(d_scores.mT, q_, out=dk_)
        return dq.mul_(ctx.scale), dk if of_keys else None, dv, None, None, None, None


def _scaled(x: Tensor, scale: float) -> Tensor:
    """``x`` (B, H, T, d) times ``scale``, in memory as it is written here: products read it faster than as tokens."""
    return torch.mul(x, scale, out=x.new_empty(x.shape))


def _rooms(count: int, at_once: int, keep: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Room for the weights of a block (h, T, S), that each of them writes to: it stays in the cache."""
    return [torch.empty(at_once, *keep.shape[2:], dtype=dtype) for _ in range(count)]


def _heads_at_once(q: Tensor, k: Tensor) -> int:
    """How many heads of a row of the batch make a block."""
    return max(1, min(q.shape[1], BLOCK // (q.element_size() * q.shape[2] * k.shape[2])))


def _blocks(of: Tensor, at_once: int) -> list[Tensor]:
    """Views (h, …) of (B, H, …): some heads of each row of the batch, then the next heads of each."""
    return [row for heads in torch.split(of, at_once, dim=1) for row in heads.unbind()]


def _added_to_blocks(added: Tensor | None, batch: int, heads: int, at_once: int) -> list[Tensor | None]:
    """What is added to the scores of each block; None: nothing, as to those of a text without padding."""
    if added is None:
        return [None] * (batch * -(-heads // at_once))
    some = [True] * len(added) if isinstance(added, FakeTensor) else added.flatten(1).any(dim=1).tolist()
    some = some * (batch // len(some))
    rows = zip(_blocks(added.expand(batch, heads, -1, -1), at_once), cycle(some), strict=False)
    return [row if there else None for row, there in rows]


def _laid_out_as_tokens(like: Tensor, width: int) -> Tensor:
    """Empty (B, H, T, ``width``) for ``like`` (B, H, T, d); in memory (B, T, H, ``width``), as models read it."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def _weights(scaled: Tensor, k: Tensor, added: Tensor | None, out: Tensor) -> Tensor:
    """softmax(Q Kᵀ · scale + mask) of one block, (h, T, S), from its ``scaled`` Q (h, T, d) and its K (h, S, d)."""
    torch.bmm(scaled, k.mT, out=out)
    if added is not None:
        out.add_(added)
    return torch._softmax(out, -1, False, out=out)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
