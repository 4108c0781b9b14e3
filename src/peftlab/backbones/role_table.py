"""What the parts of each architecture are called, and how a method's targets become modules.

A *role* names what a projection does in a transformer layer, whatever the architecture calls it:

==================  ==========================================================================
``query`` ``key``   attention's input projections
``value``
``attention_output``  attention's output projection
``ffn_up``          feed-forward, widening
``ffn_gate``        feed-forward, the second widening projection of gated layers: the one whose
                    output goes through the activation
``ffn_down``        feed-forward, narrowing
``embedding``       token embeddings
==================  ==========================================================================

Where one projection computes several roles (GPT-2's ``c_attn``), a role is a slice of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

Slicer = Callable[[int, Any], slice]
"""Output features of the fused projection and the model's config -> the rows of one role."""


@dataclass(frozen=True)
class RolePattern:
    """Where a role lives: a regex on the end of qualified module names, and a slice if it is fused."""

    pattern: str
    rows: Slicer | None = None


@dataclass(frozen=True)
class Refusal:
    """A role that exists but cannot be adapted alone, with the reason and the way on."""

    reason: str


def _part(index: int, parts: int) -> Slicer:
    return lambda features, _: slice(index * features // parts, (index + 1) * features // parts)


def _grouped(role: str) -> Slicer:
    """Rows of ``[query | key | value]`` where key and value may have fewer heads than query."""

    def rows(features: int, config: Any) -> slice:
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        head = features // (heads + 2 * groups)
        bounds = {
            "query": (0, heads),
            "key": (heads, heads + groups),
            "value": (heads + groups, heads + 2 * groups),
        }
        return slice(bounds[role][0] * head, bounds[role][1] * head)

    return rows


def _names(**patterns: str) -> dict[str, RolePattern | Refusal]:
    return {role: RolePattern(pattern) for role, pattern in patterns.items()}


def _interleaved(pattern: str, module: str) -> dict[str, RolePattern | Refusal]:
    reason = (
        f"'{module}' holds query, key and value interleaved head by head, so that none of them is one "
        f"block of "
        f"its output. Adapt the three together: peft.targets=['{pattern}']"
    )
    return dict.fromkeys(("query", "key", "value"), Refusal(reason))


_BERT_FFN = {"ffn_up": r"intermediate\.dense", "ffn_down": r"layer\.\d+\.output\.dense"}
_BERT = _names(
    query=r"attention\.self\.query",
    key=r"attention\.self\.key",
    value=r"attention\.self\.value",
    attention_output=r"attention\.output\.dense",
    embedding=r"embeddings\.word_embeddings",
    **_BERT_FFN,
)
_LLAMA = _names(
    query=r"self_attn\.q_proj",
    key=r"self_attn\.k_proj",
    value=r"self_attn\.v_proj",
    attention_output=r"self_attn\.o_proj",
    ffn_up=r"mlp\.up_proj",
    ffn_gate=r"mlp\.gate_proj",
    ffn_down=r"mlp\.down_proj",
    embedding=r"embed_tokens",
)
_ALBERT = _names(
    query=r"attention\.query",
    key=r"attention\.key",
    value=r"attention\.value",
    attention_output=r"attention\.dense",
    ffn_up=r"ffn",
    ffn_down=r"ffn_output",
    embedding=r"embeddings\.word_embeddings",
)
_DISTILBERT = _names(
    query=r"attention\.q_lin",
    key=r"attention\.k_lin",
    value=r"attention\.v_lin",
    attention_output=r"attention\.out_lin",
    ffn_up=r"ffn\.lin1",
    ffn_down=r"ffn\.lin2",
    embedding=r"embeddings\.word_embeddings",
)
_DEBERTA = _interleaved("attention.self.in_proj", "in_proj") | _names(
    attention_output=r"attention\.output\.dense", embedding=r"embeddings\.word_embeddings", **_BERT_FFN
)
_DEBERTA_V2 = _names(
    query=r"attention\.self\.query_proj",
    key=r"attention\.self\.key_proj",
    value=r"attention\.self\.value_proj",
    attention_output=r"attention\.output\.dense",
    embedding=r"embeddings\.word_embeddings",
    **_BERT_FFN,
)
_MODERNBERT: dict[str, RolePattern | Refusal] = {
    "query": RolePattern(r"attn\.Wqkv", _part(0, 3)),
    "key": RolePattern(r"attn\.Wqkv", _part(1, 3)),
    "value": RolePattern(r"attn\.Wqkv", _part(2, 3)),
    "attention_output": RolePattern(r"attn\.Wo"),
    "ffn_gate": RolePattern(r"mlp\.Wi", _part(0, 2)),  # its source calls this half "input"; it is the activated one
    "ffn_up": RolePattern(r"mlp\.Wi", _part(1, 2)),
    "ffn_down": RolePattern(r"mlp\.Wo"),
    "embedding": RolePattern(r"embeddings\.tok_embeddings"),
}
_GPT2: dict[str, RolePattern | Refusal] = {
    "query": RolePattern(r"attn\.c_attn", _part(0, 3)),
    "key": RolePattern(r"attn\.c_attn", _part(1, 3)),
    "value": RolePattern(r"attn\.c_attn", _part(2, 3)),
    **_names(
        attention_output=r"attn\.c_proj",
        ffn_up=r"mlp\.c_fc",
        ffn_down=r"mlp\.c_proj",
        embedding=r"transformer\.wte",
    ),
}
_GPT_NEOX = _interleaved("attention.query_key_value", "query_key_value") | _names(
    attention_output=r"attention\.dense",
    ffn_up=r"mlp\.dense_h_to_4h",
    ffn_down=r"mlp\.dense_4h_to_h",
    embedding=r"embed_in",
)
_PHI3: dict[str, RolePattern | Refusal] = {
    "query": RolePattern(r"self_attn\.qkv_proj", _grouped("query")),
    "key": RolePattern(r"self_attn\.qkv_proj", _grouped("key")),
    "value": RolePattern(r"self_attn\.qkv_proj", _grouped("value")),
    "attention_output": RolePattern(r"self_attn\.o_proj"),
    "ffn_gate": RolePattern(r"mlp\.gate_up_proj", _part(0, 2)),
    "ffn_up": RolePattern(r"mlp\.gate_up_proj", _part(1, 2)),
    "ffn_down": RolePattern(r"mlp\.down_proj"),
    "embedding": RolePattern(r"embed_tokens"),
}
_T5 = _names(
    query=r"(?:SelfAttention|EncDecAttention)\.q",
    key=r"(?:SelfAttention|EncDecAttention)\.k",
    value=r"(?:SelfAttention|EncDecAttention)\.v",
    attention_output=r"(?:SelfAttention|EncDecAttention)\.o",
    ffn_up=r"DenseReluDense\.(?:wi|wi_1)",  # wi, or wi_1 beside wi_0 in the gated layers of T5 1.1
    ffn_gate=r"DenseReluDense\.wi_0",
    ffn_down=r"DenseReluDense\.wo",
    embedding=r"(?:encoder|decoder)\.embed_tokens",  # one table in both; ``shared`` only holds it
)
_XLNET_ATTENTION = Refusal(
    "XLNet's attention keeps its projections as parameters and multiplies by them itself, so that there is no layer to "
    "adapt. Adapt its feed-forward layers: peft.targets=[ffn_up, ffn_down]"
)
_XLNET: dict[str, RolePattern | Refusal] = {
    **dict.fromkeys(("query", "key", "value", "attention_output"), _XLNET_ATTENTION),
    **_names(ffn_up=r"ff\.layer_1", ffn_down=r"ff\.layer_2", embedding=r"word_embedding"),
}
_TEXT_CLASSIFIER = _names(hidden=r"hidden", embedding=r"embedding")

ROLES: Mapping[str, Mapping[str, RolePattern | Refusal]] = MappingProxyType(
    {
        "albert": _ALBERT,
        "bert": _BERT,
        "big_bird": _BERT,
        "deberta": _DEBERTA,
        "deberta-v2": _DEBERTA_V2,
        "distilbert": _DISTILBERT,
        "electra": _BERT,
        "gemma": _LLAMA,
        "gpt2": _GPT2,
        "gpt_neox": _GPT_NEOX,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "modernbert": _MODERNBERT,
        "phi3": _PHI3,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "roberta": _BERT,
        "t5": _T5,
        "text_classifier": _TEXT_CLASSIFIER,
        "xlm-roberta": _BERT,
        "xlnet": _XLNET,
    }
)
"""Architecture (``model_type`` of a transformers config) -> role -> where it is."""

ALL_ROLES = frozenset(role for places in ROLES.values() for role in places)


def output_features(module: nn.Module) -> int:
    """Size of the last dimension of what ``module`` (Linear, Conv1D or Embedding) returns."""
    for attribute in ("out_features", "nf", "embedding_dim"):
        value = getattr(module, attribute, None)
        if isinstance(value, int):
            return value
    raise TypeError(f"{type(module).__name__} is neither a linear layer nor an embedding")
