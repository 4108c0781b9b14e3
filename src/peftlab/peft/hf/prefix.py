"""Prefixes in HF peft's format: one tensor ``prompt_embeddings``, and the sizes of the model.

Peft passes a prefix as a cache, which moves the text n positions on, while ours leaves it in place
(``position_shift=false``):

- rotary positions: a query at position t + n meets the prefix's keys as they are. With R(n) the rotation by n
  positions, q(t + n) · R(n) k = q(t) · k, so that rotated keys give the very same attention.
- absolute positions: the text itself is another one at other positions, so only a prefix that was trained with
  ``position_shift=true`` can be had there.
- a sliding window: what lies in a cache drops out of it, while our prefix is always visible. The two are the same as
  long as prefix and text fit into the window together.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from peftlab.backbones.attention import takes_a_cache, text_part
from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import PROMPT, HFAdapter, HFFolder, plain_float
from peftlab.peft.hf.prompt import prompt_length
from peftlab.peft.key_value_prefix import KeyValuePrefix, PrefixAdapter

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotations that are the same for texts of all lengths."""


class PrefixCodec(Codec):
    """PREFIX_TUNING: the keys and values themselves, with the text's positions behind them."""

    methods = ("prefix_tuning", "p_tuning_v2")

    def write(self, adapter: Adapter) -> HFAdapter:
        """The table; its keys are turned on by n positions where the model's positions are rotary and not shifted."""
        method = adapter.strategy
        assert isinstance(adapter, PrefixAdapter)
        assert isinstance(method, KeyValuePrefix)
        table = adapter.inference_prompt()[PROMPT]
        return prefix_adapter(adapter.backbone, table, adapter.prefix.shapes, shifted=method.position_shift)

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "PREFIX_TUNING":
            return None
        return "prefix_tuning", {"length": prompt_length(folder), "reparameterize": False, "position_shift": True}

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """The table, which is trained on as it is."""
        assert isinstance(adapter, PrefixAdapter)
        folder.copy(PROMPT, adapter.prefix.embedding, adapter.backbone)


def prefix_adapter(backbone: Backbone, table: Tensor, shapes: list[tuple[int, int]], *, shifted: bool) -> HFAdapter:
    """A prefix.

    Args:
        backbone: the model that it was trained in.
        table: (n, 2 · Σ H_kv · d_head), keys and values of each attention module beside each other.
        shapes: (H_kv, d_head) of each attention module.
        shifted: whether it was trained with the text at positions n, n + 1, …

    Raises:
        PeftlabError: if peft would compute something else with it.
    """
    trunk: Any = backbone.model.base_model
    if not takes_a_cache(trunk) or len(set(shapes)) != 1 or trunk.config.is_encoder_decoder:
        raise PeftlabError(
            f"a prefix of {backbone.architecture} cannot be written in the format of HF peft: peft passes it as a "
            "cache of equal layers, and this model takes none. Use peft=lora, or a backbone such as BERT, GPT-2 or "
            "Llama."
        )
    heads, size = shapes[0]
    length = table.shape[0]
    if not shifted:
        parts = table.view(length, len(shapes), 2, heads, size).clone()
        parts[:, :, 0] = _rotated(backbone, parts[:, :, 0], length)
        table = parts.view(length, -1)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * size,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": len(shapes),
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }
    notes = []
    if window := sliding_window(backbone):
        notes.append(
            f"Attention sees a window of {window} tokens. In HF peft the prefix drops out of it behind the first "
            f"{max(window - length, 0)} tokens of a text: give it no longer ones."
        )
    return HFAdapter(config, {PROMPT: plain_float(table)}, notes)


def sliding_window(backbone: Backbone) -> int | None:
    """Tokens that a token attends to in the layers that see the fewest; None if they all see the whole text."""
    model: Any = backbone.model
    config = model.config.get_text_config()
    sizes: dict[str, int | None] = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    if getattr(config, "use_sliding_window", None) is False:  # Qwen's switch
        del sizes["sliding_attention"]
    kinds = getattr(config, "layer_types", None)  # without it all layers are of the one kind
    return min((size for kind, size in sizes.items() if size and (kinds is None or kind in kinds)), default=None)


def require_in_window(backbone: Backbone, length: int, longest: int, given: str) -> None:
    """Refuse a prefix that HF peft's cache would lose out of the model's sliding window.

    Args:
        backbone: the model.
        length: keys of the prefix.
        longest: tokens of the longest text.
        given: what begins the message, and ends in a verb.

    Raises:
        PeftlabError: if both together are longer than the window.
    """
    window = sliding_window(backbone)
    if window is None or length + longest <= window:
        return
    room = window - length
    way_out = f"Set data.max_length to at most {room}" if room > 0 else f"Take a prefix of fewer than {window} keys"
    raise PeftlabError(
        f"{given} a prefix of {length} keys and texts of up to {longest} tokens (data.max_length), {length + longest} "
        f"together, and {backbone.architecture} attends to a sliding window of {window}: in HF peft the prefix drops "
        f"out of the window, here it is always visible. {way_out}, or take a backbone without a window."
    )


def _rotated(backbone: Backbone, keys: Tensor, places: int) -> Tensor:
    """Keys (…, H_kv, d_head) turned on by ``places`` positions.

    Raises:
        PeftlabError: if the model's positions are no rotations, or change with the length of a text.
    """
    trunk: Any = text_part(backbone.model)
    source: Any = sys.modules[type(trunk).__module__]
    rotary = getattr(trunk, "rotary_emb", None)
    if rotary is None or not hasattr(source, "apply_rotary_pos_emb"):
        raise PeftlabError(
            f"this prefix was trained with the text at its own positions. HF peft moves the text by the prefix's "
            f"length, and {backbone.architecture} learnt its positions one by one, so that it would read another text. "
            "Train it with peft.position_shift=true to export it."
        )
    kind = getattr(rotary, "rope_type", "default")
    if kind not in _ROPE_TYPES or list(inspect.signature(rotary.forward).parameters)[1:] != ["position_ids"]:
        raise PeftlabError(
            f"HF peft moves the text by the prefix's length, and the rotary positions of this {backbone.architecture} "
            f"({kind}) are not the same for all lengths or layers. Train with peft.position_shift=true to export it."
        )
    flat = keys.reshape(1, -1, 1, keys.shape[-1]).float()  # (1, many, 1 place, d_head)
    cos, sin = rotary(flat, torch.tensor([[places]], device=flat.device))
    strength = getattr(rotary, "attention_scaling", 1.0)  # belongs to the product, not to the rotation
    turn, keep = flat[..., : cos.shape[-1]], flat[..., cos.shape[-1] :]  # Phi turns the first half of a head
    _, turned = source.apply_rotary_pos_emb(turn, turn, cos / strength, sin / strength)
    return torch.cat([turned, keep], dim=-1).view(keys.shape)
