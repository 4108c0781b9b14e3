"""Extra keys and values inside attention, for every head and every query:

    Attention(Q, [K_p ; K], [V_p ; V])        K_p, V_p (H_kv, n, d_head), seen from every position

``transformers`` looks its attention up by name in a registry. The function registered here puts the extra keys
and values of a module (:func:`attach`) in front of its own, widens the mask by columns that are always
visible, and calls the attention that would have been called. Nothing passes through ``past_key_values``: positions
do not move, and a text may be as long as before. The extra keys are taken as they are: rotary position
embeddings turn the text's queries and keys only. T5's position bias is zero for them.

DeBERTa computes its scores itself. For DeBERTa-v2 and -v3 :class:`PrefixedDisentangledAttention` does the same:
the extra keys take part in content-to-content scores only.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from peftlab.backbones import fast_dropout
from peftlab.backbones.base import Backbone
from peftlab.errors import BackboneError, listed

KeysAndValues = Callable[[], tuple[Tensor, Tensor] | None]
"""Returns extra keys and values, each (H_kv, n, d_head), or None for none at present."""

_SLOT = "extra_keys_and_values"
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


def attention_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """The modules that extra keys and values can be attached to, by qualified name in model order.

    T5 has three kinds: self-attention of the encoder and of the decoder, and the decoder's cross-attention.
    A module that the model runs several times (ALBERT's one layer) is there once.

    Raises:
        BackboneError: if there are none.
    """
    found = {
        name: module
        for name, module in backbone.model.named_modules()
        if isinstance(module, DisentangledSelfAttention) or _uses_registry(module)
    }
    if isinstance(getattr(backbone.model, "base_model", None), nn.Module):
        reads_text = set(map(id, text_part(backbone.model).modules()))
        found = {name: module for name, module in found.items() if id(module) in reads_text}
    else:
        raise BackboneError(
            f"{backbone.architecture} has no attention that keys and values could be put into, and takes no "
            "prompts either. Choose a method that adapts its layers (peft=lora), or a transformer as backbone."
        )
    if not found:
        own = {type(module).__name__ for module in backbone.model.modules() if "Attention" in type(module).__name__}
        raise BackboneError(
            f"the attention of {backbone.architecture} ({listed(own)}) takes no keys and values beside its own: it is "
            "not among transformers' exchangeable attention functions. Choose another backbone, or a method that "
            "stays out of attention (peft=prompt_tuning, peft=lora)."
        )
    return found


def text_part(model: Any) -> nn.Module:
    """The trunk of a ``transformers`` model; of one for text and images (Gemma 3) the part that reads the text."""
    trunk: nn.Module = model.base_model
    text = model.config.get_text_config()
    if text is model.config or model.config.is_encoder_decoder:
        return trunk
    return next((module for module in trunk.modules() if getattr(module, "config", None) is text), trunk)


def _uses_registry(module: nn.Module) -> bool:
    source = sys.modules.get(type(module).__module__)
    return hasattr(module, "is_causal") and hasattr(source, "ALL_ATTENTION_FUNCTIONS")


def key_value_shape(module: Any) -> tuple[int, int]:
    """(H_kv, d_head): heads of keys and values, and their size."""
    size = next(int(getattr(module, name)) for name in _HEAD_SIZES if hasattr(module, name))
    if isinstance(module, DisentangledSelfAttention):
        return module.num_attention_heads, size
    return module.config.num_attention_heads // getattr(module, "num_key_value_groups", 1), size


def attach(backbone: Backbone, sources: dict[str, KeysAndValues]) -> None:
    """Let the attention modules named by ``sources`` attend to what these return, too.

    Raises:
        BackboneError: for an attention that nothing can be put into.
    """
    model: Any = backbone.model
    if getattr(model.config, "reorder_and_upcast_attn", False):
        raise BackboneError(
            f"this {backbone.architecture} computes attention in float32 with code of its own "
            "(reorder_and_upcast_attn), which takes no keys and values beside its own. Choose another backbone."
        )
    uses_registry = any(_uses_registry(model.get_submodule(name)) for name in sources)
    if uses_registry and model.config._attn_implementation not in _NAMES:
        raise BackboneError(
            f"the attention of this model is '{model.config._attn_implementation}', which takes no keys and values "
            f"beside its own. Load it with one of {listed(_NAMES)}: model.set_attn_implementation('sdpa')."
        )
    for name, source in sources.items():
        module = model.get_submodule(name)
        setattr(module, _SLOT, source)
        if isinstance(module, DisentangledSelfAttention):
            module.__class__ = PrefixedDisentangledAttention  # keeps the names of all weights
    if uses_registry:
        model.set_attn_implementation(_NAMES[model.config._attn_implementation])


def detach(backbone: Backbone, names: Iterable[str]) -> None:
    """Undo :func:`attach` for the attention modules of these names."""
    model: Any = backbone.model
    for name in names:
        module = model.get_submodule(name)
        delattr(module, _SLOT)
        if isinstance(module, PrefixedDisentangledAttention):
            module.__class__ = DisentangledSelfAttention  # type: ignore[assignment]
    plain = {prefixed: name for name, prefixed in _NAMES.items()}
    if model.config._attn_implementation in plain:
        model.set_attn_implementation(plain[model.config._attn_implementation])


def takes_a_cache(trunk: nn.Module) -> bool:
    """Whether the trunk can be given keys and values, and positions: only then HF peft can give it a prefix."""
    return {"past_key_values", "position_ids"} <= set(inspect.signature(trunk.forward).parameters)


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    return _with_extra(sdpa_attention_forward, module, query, key, value, mask, rest)


def _dropout_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> Any:
    return _with_extra(fast_dropout.attention, module, query, key, value, mask, rest)


def _with_extra(
    attend: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rest: dict[str, Any],
) -> Any:
    extra = _extra(module)
    if extra is None:
        return attend(module, query, key, value, mask, **rest)
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and causal and query.shape[2] > 1:
        # Without a mask sdpa would be causal by its flag, which would hide extra keys from the first queries.
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()[None, None]
    return attend(module, query, *_extended(extra, key, value, mask, rest), **rest)


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    plain = sys.modules[type(module).__module__].eager_attention_forward  # each architecture has its own
    extra = _extra(module)
    if extra is None:
        return plain(module, query, key, value, mask, **rest)
    return plain(module, query, *_extended(extra, key, value, mask, rest), **rest)


def _extra(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    source: KeysAndValues | None = getattr(module, _SLOT, None)
    if source is None:
        return None
    seen, again = _SEEN.get() or ({}, False)
    if not again:
        seen[id(module)] = source()
    return seen[id(module)]


_Seen = dict[int, tuple[Tensor, Tensor] | None]
_SEEN: ContextVar[tuple[_Seen, bool] | None] = ContextVar("extra keys and values of a block", default=None)


def seen_twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Two contexts: what is computed inside the second sees the extra keys and values that the first has seen.

    For a block that is computed once more in backward, when the forward pass which its prefix came from is over.
    """
    seen: _Seen = {}
    return _seeing(seen, again=False), _seeing(seen, again=True)


@contextmanager
def _seeing(seen: _Seen, *, again: bool) -> Iterator[None]:
    token = _SEEN.set((seen, again))
    try:
        yield
    finally:
        _SEEN.reset(token)


def _extended(
    extra: tuple[Tensor, Tensor], key: Tensor, value: Tensor, mask: Tensor | None, rest: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B, H_kv, n + S, d_head) and the mask (…, T, n + S); T5's bias changes in ``rest``."""
    extra_key, extra_value = (part.to(key.dtype).expand(key.shape[0], -1, -1, -1) for part in extra)
    n, length = extra_key.shape[2], key.shape[2]
    if mask is not None:
        visible = True if mask.dtype == torch.bool else 0.0
        mask = F.pad(mask[..., :length], (n, 0), value=visible)
    if rest.get("position_bias") is not None:
        rest["position_bias"] = F.pad(rest["position_bias"], (n, 0))
    return torch.cat([extra_key, key], dim=2), torch.cat([extra_value, value], dim=2), mask


# The mask functions are those of the attention underneath: boolean for sdpa, additive for eager.
_NAMES = {
    "sdpa": "peftlab_prefixed_sdpa",
    fast_dropout.NAME: "peftlab_prefixed_dropout_sdpa",
    "eager": "peftlab_prefixed_eager",
}
ALL_ATTENTION_FUNCTIONS.register(_NAMES["sdpa"], _sdpa)
ALL_ATTENTION_FUNCTIONS.register(_NAMES[fast_dropout.NAME], _dropout_sdpa)
ALL_ATTENTION_FUNCTIONS.register(_NAMES["eager"], _eager)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAMES["sdpa"], sdpa_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAMES[fast_dropout.NAME], sdpa_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAMES["eager"], eager_mask)


class PrefixedDisentangledAttention(DisentangledSelfAttention):
    """DeBERTa-v2's attention (He et al. 2020, arXiv:2006.03654, eq. 4) with extra keys and values.

    Scores of content on content, content on position and position on content, divided by √(kinds · d_head).
    The extra keys have no position: their scores are of the first kind only.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, d) and mask (B, 1, T, T) to context (B, T, d) and, if asked for, the weights."""
        extra = _extra(self)
        if extra is None:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = super().forward
            return plain(hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
        heads: int = self.num_attention_heads
        batch, length, _ = hidden_states.shape
        asking = hidden_states if query_states is None else query_states
        query = self.transpose_for_scores(self.query_proj(asking), heads)  # (B·H, T, d_head)
        key = self.transpose_for_scores(self.key_proj(hidden_states), heads)
        value = self.transpose_for_scores(self.value_proj(hidden_states), heads)
        extra_key, extra_value = (part.to(key.dtype).repeat(batch, 1, 1) for part in extra)  # (B·H, n, d_head)

        kinds = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = math.sqrt(query.shape[-1] * kinds)
        scores = query @ key.mT / scale  # (B·H, T, T)
        if self.relative_attention:
            bias: Callable[..., Tensor] = self.disentangled_attention_bias
            scores = scores + bias(query, key, relative_pos, self.pos_dropout(rel_embeddings), kinds)
        scores = torch.cat([query @ extra_key.mT / scale, scores], dim=-1)  # (B·H, T, n + T)
        scores = scores.view(batch, heads, length, -1)
        visible = F.pad(attention_mask.bool(), (extra_key.shape[1], 0), value=True)
        weights = self.dropout(scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1))
        values = torch.cat([extra_value, value], dim=1).view(batch, heads, -1, value.shape[-1])
        context = (weights @ values).transpose(1, 2).reshape(batch, length, -1)
        return context, weights if output_attentions else None
