"""``backbone.skip_unread``: the last layer computed for the one position that the head reads.

An encoder of BERT's kind classifies from its first position alone, and nobody reads what its last layer makes of the
others. Of that layer then only keys and values are computed for all T positions; what asks, is projected, normalised
and fed forward is position 0 (Goyal et al. 2020, PoWER-BERT, arXiv:2001.08950, leave words out in every layer; in the
last one nothing is lost by it):

    o₀ = softmax(q₀ Kᵀ / √d + mask₀) V

Five sixths of the layer's products and nearly all of its attention fall away, forward and backward, in training and in
evaluation. Outputs are those of the whole layer but for the last bits; dropout draws masks for one position.

Attention and blocks stay the modules that they are, under their names: their class becomes a child of it.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftlab.errors import BackboneError, listed

BERT_LIKE = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")
"""Model types whose layers are BERT's, to the letter."""
DISTILBERT = "distilbert"


def skip_unread(model: Any, key: str) -> None:
    """Let the last layer of ``model`` (a sequence classifier of ``transformers``) compute its first position alone.

    Args:
        model: it hands on (B, 1, d) from then on, in the place of (B, T, d).
        key: of the config, that says which model it is.

    Raises:
        BackboneError: if its head reads more, or its layers are not known.
    """
    kind = model.config.model_type
    if kind == DISTILBERT:
        block = model.base_model.transformer.layer[-1]
        _become(block, _DistilBlock)
        _become(block.attention, _DistilAttention)
        return
    if kind not in BERT_LIKE or model.config.is_decoder:
        known = listed(sorted((*BERT_LIKE, DISTILBERT)))
        raise BackboneError(
            f"backbone.skip_unread=true is for encoders of BERT's kind ({known}), whose head reads the first position; "
            f"{key} is a {kind}{', as a decoder' if kind in BERT_LIKE else ''}. Set backbone.skip_unread=false."
        )
    attention = model.base_model.encoder.layer[-1].attention
    _become(attention, _BertAttention)
    _become(attention.self, _BertSelfAttention)


def _become(module: nn.Module, how: type) -> None:
    module.__class__ = _child(how, type(module))  # type: ignore[arg-type]


@cache
def _child(how: type, of: type) -> type:
    """``of`` with the forward pass of ``how``; it goes by the name and the module of ``of``, which others ask for."""
    return type(of.__name__, (how, of), {"__module__": of.__module__, "__doc__": how.__doc__})


def _attend(module: Any, projections: tuple[nn.Module, ...], hidden: Tensor, mask: Tensor | None, rest: Any) -> Any:
    """Context (B, 1, d) of the first position among ``hidden`` (B, T, d), and the weights, if they are known."""
    cached = rest.pop("past_key_values", None)
    states = [hidden[:, :1], hidden, hidden]
    query, key, value = (
        projection(part).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)
        for projection, part in zip(projections, states, strict=True)
    )  # (B, H, 1 or T, d_head)
    if cached is not None:  # keys and values that HF peft's prefixes bring along
        own = getattr(cached, "self_attention_cache", cached)
        key, value = own.update(key, value, module.layer_idx)
    plain = sys.modules[type(module).__module__].eager_attention_forward  # each architecture has its own
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, plain)
    mask = None if mask is None else mask[..., :1, :]
    rate = module.dropout.p if module.training else 0.0
    context, weights = attend(module, query, key, value, mask, dropout=rate, scaling=module.scaling, **rest)
    return context.flatten(2), weights


class _BertSelfAttention:
    """Its first position alone asks."""

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        return _attend(self, (self.query, self.key, self.value), hidden_states, attention_mask, rest)


class _BertAttention:
    """Its first position alone is handed on."""

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        context, weights = self.self(hidden_states, attention_mask=attention_mask, **rest)
        return self.output(context, hidden_states[:, :1]), weights


class _DistilAttention:
    """Its first position alone asks."""

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        projections = (self.q_lin, self.k_lin, self.v_lin)
        context, weights = _attend(self, projections, hidden_states, attention_mask, rest)
        return self.out_lin(context), weights


class _DistilBlock:
    """Its first position alone is handed on."""

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        context, _ = self.attention(hidden_states, attention_mask=attention_mask, **rest)
        attended = self.sa_layer_norm(context + hidden_states[:, :1])
        return self.output_layer_norm(self.ffn(attended) + attended)
