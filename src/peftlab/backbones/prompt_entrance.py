"""A soft prompt in the forward pass of a plain ``transformers`` model, called as its users call it.

The prompt's ids (:mod:`peftlab.backbones.soft_prompt`) are put into ``input_ids`` by a hook before ``forward``, and
into whatever runs along with the tokens: ``attention_mask``, ``token_type_ids``, ``position_ids``, labels of tokens. A
hook behind it takes the prompt's places out of what comes back for each token: a caller sees the text that it gave.

A cache of keys and values that such a call has filled holds the prompt's too, and says so. A call that goes on from it,
as each step of ``generate`` does, gets no second prompt: its mask and positions are those of a text n tokens longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.soft_prompt import PromptPlacement
from peftlab.errors import BackboneError

_TOKEN_LABELS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForTokenClassification")
"""Ends of the names of classes whose labels are one a token."""
_BY_TOKEN = ("logits", "last_hidden_state", "hidden_states", "start_logits", "end_logits")
_IGNORED = -100
"""The label that losses leave out."""
_MARK = "_peftlab_prompt"
"""Attribute of a cache: the placement of the prompt that it holds."""


class PromptEntrance:
    """The two hooks."""

    def __init__(self, model: nn.Module, placement: PromptPlacement, limit: int | None) -> None:
        """``limit``: positions that the model has; None: as many as one likes."""
        self.model = model
        self.placement = placement
        self.limit = limit
        self.active = True
        self._inserted = False  # whether the call that runs has got the prompt
        forward: Callable[..., Any] = model.forward
        self._names = [
            name
            for name, parameter in inspect.signature(forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        config: Any = model.config
        kind = type(model).__name__
        self._two_stacks = bool(getattr(config, "is_encoder_decoder", False)) and not kind.endswith("EncoderModel")
        self._labels_of_tokens = kind.endswith(_TOKEN_LABELS)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _before(
        self, _model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.active:
            return None
        inputs: dict[str, Any] = {**dict(zip(self._names, given, strict=False)), **named}
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise BackboneError(
                "a soft prompt is put among a text's token ids, and this call gives none"
                f"{' but inputs_embeds' if inputs.get('inputs_embeds') is not None else ''}. Call the model with "
                "input_ids, or inside `with adapter.disabled():`."
            )
        past = inputs.get("past_key_values")
        before, mask = cached(past), inputs.get("attention_mask")
        if before and getattr(past, _MARK, None) != self.placement:
            raise BackboneError(
                "a soft prompt is read with the whole text, and the cache that this call goes on from "
                "(past_key_values) holds none: fill it by a call with the prompt, or generate without one, "
                "model.generate(…, use_cache=False)."
            )
        tokens = ids.shape[1] + max(0, before - self.placement.length)
        self._require_mask(mask, (ids.shape[0], tokens))
        self._require_room(tokens)
        self._inserted = not before
        if before:
            return (), inputs | self._further(inputs, mask)
        if past is not None:
            _mark(past, self.placement)
        seen = torch.ones_like(ids) if mask is None else mask
        changed = {"input_ids": self.placement.insert(ids, seen)[0]}
        if mask is not None:
            changed["attention_mask"] = self.placement.insert(ids, mask)[1]
        for name, value in inputs.items():
            if name not in changed and (new := self._along(name, value, ids, seen)) is not None:
                changed[name] = new
        return (), inputs | changed

    def _require_mask(self, mask: Any, shape: tuple[int, int]) -> None:
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != shape):
            raise BackboneError(
                "a soft prompt needs an attention_mask of one number a token, of the shape of input_ids, and of what a "
                f"cache holds in front of them, {shape}, not "
                f"{tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}."
            )

    def _require_room(self, tokens: int) -> None:
        if self.limit is not None and tokens + self.placement.length > self.limit:
            raise BackboneError(
                f"{tokens} tokens and the {self.placement.length} of the prompt are {tokens + self.placement.length} "
                f"together, more than the {self.limit} positions of the model. Cut the texts to "
                f"{self.limit - self.placement.length} tokens."
            )

    def _further(self, inputs: dict[str, Any], mask: Tensor | None) -> dict[str, Any]:
        """What changes where a cache holds the prompt: its places in the mask, and positions moved on by it."""
        changed: dict[str, Any] = {} if mask is None else {"attention_mask": self._spliced(mask, 1)}
        for name in ("position_ids", "cache_position"):
            if isinstance(inputs.get(name), Tensor):
                changed[name] = inputs[name] + self.placement.length
        return changed

    def _along(self, name: str, value: Any, ids: Tensor, seen: Tensor) -> Tensor | None:
        """``value`` with places for the prompt; None: it does not run along with the tokens."""
        if not isinstance(value, Tensor) or name.startswith("decoder_"):
            return None
        if name == "labels":
            if not self._labels_of_tokens or value.shape != ids.shape:
                return None
            return self._spliced(value, _IGNORED)
        if name == "cache_position":
            return torch.arange(ids.shape[1] + self.placement.length, device=ids.device)
        if name == "position_ids":
            return self._positions(value.expand(ids.shape), seen)
        if name == "token_type_ids":
            return self._spliced(value, 0)
        if value.shape[:2] == ids.shape or name in ("start_positions", "end_positions"):
            raise BackboneError(
                f"{name}= speaks of single tokens, and there is no rule for what it says of a soft prompt's. Leave it "
                "out, or choose a method that is no prompt."
            )
        return None

    def _spliced(self, value: Tensor, fill: int) -> Tensor:
        start = 1 if self.placement.position == "after_first" else 0
        between = value.new_full((value.shape[0], self.placement.length), fill)
        return torch.cat([value[:, :start], between, value[:, start:]], dim=1)

    def _positions(self, given: Tensor, seen: Tensor) -> Tensor:
        """Positions of the text moved on by the prompt, which has those from the text's first on."""
        n, start = self.placement.length, 1 if self.placement.position == "after_first" else 0
        none = torch.iinfo(given.dtype).max
        first = given.masked_fill(seen == 0, none).min(dim=1, keepdim=True).values  # (B, 1)
        prompt = first + start + torch.arange(n, device=given.device)
        return torch.cat([given[:, :start], prompt, given[:, start:] + n], dim=1)

    def _after(self, _model: nn.Module, _given: tuple[Any, ...], named: dict[str, Any], out: Any) -> Any:
        if not self.active or not self._inserted:
            return None
        if (made := getattr(out, "past_key_values", None)) is not None:
            _mark(made, self.placement)
        length = named["input_ids"].shape[1]
        if isinstance(out, tuple):
            return out if self._two_stacks else tuple(self._text(value, length) for value in out)
        for name in [name for name in out if not self._two_stacks or name.startswith("encoder_")]:
            if name.removeprefix("encoder_") in _BY_TOKEN:
                flat = name in ("start_logits", "end_logits")
                out[name] = self._text(out[name], length, dims=2 if flat else 3)
        return out

    def _text(self, value: Any, length: int, dims: int = 3) -> Any:
        """``value`` (B, n + T, …) without the prompt's places; others as they are."""
        if isinstance(value, tuple):
            return tuple(self._text(part, length, dims) for part in value)
        if not isinstance(value, Tensor) or value.dim() != dims or value.shape[1] != length:
            return value
        start = 1 if self.placement.position == "after_first" else 0
        return torch.cat([value[:, :start], value[:, start + self.placement.length :]], dim=1)


def cached(past: Any) -> int:
    """Tokens that a cache holds."""
    if past is None:
        return 0
    length = getattr(past, "get_seq_length", None)
    return int(length() if callable(length) else len(past))


def _mark(cache: Any, placement: PromptPlacement) -> None:
    """Say of ``cache`` that it holds the prompt; tuples of tensors, as old models give, take no mark."""
    if hasattr(cache, "__dict__"):
        setattr(cache, _MARK, placement)
