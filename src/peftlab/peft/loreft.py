"""LoReFT: ReFT, Representation Finetuning for Language Models (Wu et al. 2024, arXiv:2404.03592).

    h ← h + Rᵀ (W h + b − R h)        (paper, eq. 3)        R (r, d) with orthonormal rows, W (r, d), b (r)

h (d) is what a transformer block passes on, the residual stream, at the chosen places of the chosen ``layers``: the
``first`` and the ``last`` tokens of the prompt. Each layer has an R, W and b of its own for the first and for the last
places, or with ``tied`` one for both. R starts orthonormal at random, W and b as those of a linear layer: the model
does not start as the backbone. Not tied, those of the last block learn nothing where the head reads no such place: an
encoder's reads its first token, a decoder's the last one.

The prompt is the text, where texts are classified. Of a language model it is what stands in front of the first token
under loss, or all that ``generate`` is given: what is written is computed as the backbone would, from what the prompt's
changed places have left behind. Where every token is learned there is no prompt, and it is refused; of a conversation
in one row the first answer ends it. Padding counts nowhere, whichever side it is on; of packed texts each has its own
places. A prompt of n tokens has min(first, ⌊n/2⌋) first and min(last, ⌊n/2⌋) last places, as in the authors' code: one
of a single token has none.

Departures: R is kept orthonormal by a QR of its parameter (the authors' code: Householder reflections, with a d × d
matrix beside it). ``dropout`` is, as in their code, on the changed h as a whole.

Trainable: 2 · r · d + r a layer, twice that if it has first and last places that are not tied.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.backbones.floats import at_least_single
from peftlab.backbones.prompt_entrance import cached
from peftlab.errors import PeftlabError
from peftlab.fields import NonNegativeInt, PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.last_layers import transformer_blocks
from peftlab.peft.soft_prompt import fresh_linear
from peftlab.peft.surgery import adapter_generator

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

CHILD = "loreft"
"""Name, in a block, of what trains there."""


@dataclass(kw_only=True)
class LoReFT(PEFTStrategy, name="loreft"):
    """Low-rank edits of the residual stream at a prompt's first and last tokens: h + Rᵀ(W h + b − R h)."""

    supports = Supports(identity_at_start=False, sharded=False)
    count = "2 · rank · width + rank a layer; twice that where first and last are not tied"

    rank: PositiveInt = 4
    """Rank r of the subspace, at most the model's width."""
    layers: list[NonNegativeInt] | None = None
    """Blocks behind which the stream is edited, from 0; null: all."""
    first: NonNegativeInt = 4
    """How many tokens at the prompt's beginning are edited."""
    last: NonNegativeInt = 4
    """How many tokens at the prompt's end are edited."""
    tied: bool = True
    """One R, W and b a layer for first and last tokens together; false: one for each."""
    dropout: Probability = 0.0
    """Dropout on the edited stream."""

    def __post_init__(self) -> None:
        """Raise ValueError where there is no place or no layer."""
        if self.first == 0 and self.last == 0:
            raise ValueError("peft.first=0 and peft.last=0 leave no token to edit. Set one of them to 1 or more.")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"peft.layers={self.layers} must name one layer or more, and each once; null is all.")

    def select(self, backbone: Backbone) -> Selection:
        """The one place for it; raises PeftlabError for a model without blocks, layers that are not there."""
        _, width = self._blocks(backbone)
        if self.rank > width:
            raise PeftlabError(f"peft.rank={self.rank} is above the width of the model, {width}. Lower it.")
        return Selection(backbone, slots=[CHILD])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> LoReFTAdapter:
        """Put an intervention behind every chosen block."""
        backbone = selection.backbone
        blocks, width = self._blocks(backbone)
        adapter = LoReFTAdapter(self, backbone, Places(backbone, self.first, self.last))
        device = next(backbone.model.parameters()).device
        for name, block in blocks.items():
            made = {
                places: Intervention(width, self.rank, self.dropout, adapter_generator(seed, f"{name}/{places}"))
                for places in self._kinds()
            }
            edits = nn.ModuleDict(made).to(device).train(block.training)
            block.add_module(CHILD, edits)
            adapter.own_module(f"{name}.{CHILD}", edits)
            adapter.hold(block.register_forward_hook(partial(_edit, edits, adapter.places)))
        adapter.hold(adapter.places)
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """See the head of the file."""
        blocks, width = self._blocks(backbone)
        return len(blocks) * len(self._kinds()) * (2 * self.rank * width + self.rank)

    def acts_on_prompts(self) -> bool:
        """It does."""
        return True

    def _kinds(self) -> list[str]:
        """Which places have edits of their own."""
        kinds = [name for name in ("first", "last") if getattr(self, name)]
        return ["both"] if self.tied or len(kinds) == 1 else kinds

    def _blocks(self, backbone: Backbone) -> tuple[dict[str, nn.Module], int]:
        """The chosen blocks by name, and the width of the stream."""
        config = getattr(backbone.model, "config", None)
        width = getattr(config, "hidden_size", None)
        if not isinstance(width, int) or not hasattr(backbone.model, "base_model"):
            raise PeftlabError(
                f"peft=loreft edits what the blocks of a transformer pass on, and this {backbone.architecture} is no "
                "transformer that it knows. Choose a method that adapts layers (peft=lora)."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise PeftlabError(
                f"peft=loreft is made for encoders and decoders, and this {backbone.architecture} is both: its text "
                "has two streams. Choose a method that adapts layers (peft=lora)."
            )
        if backbone.reads_first_alone:
            raise PeftlabError(
                "peft=loreft edits tokens behind each block, and backbone.skip_unread=true leaves one of them behind "
                "the last. Set backbone.skip_unread=false."
            )
        place, blocks = transformer_blocks(backbone, "loreft")
        chosen = range(len(blocks)) if self.layers is None else self.layers
        if (most := max(chosen)) >= len(blocks):
            raise PeftlabError(
                f"peft.layers has {most}, and this {backbone.architecture} has {len(blocks)} blocks, 0 to "
                f"{len(blocks) - 1} ('{place}')."
            )
        return {f"{place}.{index}": blocks[index] for index in chosen}, width


class LoReFTAdapter(Adapter):
    """Interventions in a model."""

    def __init__(self, strategy: LoReFT, backbone: Backbone, places: Places) -> None:
        super().__init__(strategy, backbone)
        self.places = places

    def _require_mergeable(self) -> None:
        raise PeftlabError(
            "'loreft' cannot be merged: it edits what the model computes at some places of a text, and no weight of "
            "the backbone stands for it. Use the model with its adapter."
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, nothing is edited."""
        self.places.active = False
        try:
            yield
        finally:
            self.places.active = True


class Intervention(nn.Module):
    """h + Rᵀ (W h + b − R h)."""

    def __init__(self, width: int, rank: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        # fp32 whatever the backbone's dtype, as every adapter.
        self.rotation = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width), generator=generator))  # (r, d)
        self.source = fresh_linear(width, rank, generator)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def R(self) -> Tensor:
        """Orthonormal rows (r, d) that span what ``rotation`` spans: it itself while its rows are orthonormal."""
        Q, upper = torch.linalg.qr(at_least_single(self.rotation).T)
        R: Tensor = (Q * upper.diagonal().sign()).T
        return R

    def forward(self, h: Tensor) -> Tensor:
        """(…, d), edited, in float32."""
        with torch.autocast(h.device.type, enabled=False):
            h = at_least_single(h)
            R = self.R()
            W, b = at_least_single(self.source.weight), at_least_single(self.source.bias)
            edited: Tensor = self.dropout(h + (nn.functional.linear(h, W, b) - h @ R.T) @ R)
            return edited

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rotation.shape[0]}"


def _edit(edits: nn.ModuleDict, places: Places, _block: nn.Module, _given: Any, out: Any) -> Any:
    """A block's hook: its output with the edits in their places."""
    chosen = places.of_call
    if chosen is None:
        return None
    stream: Tensor = out[0] if isinstance(out, tuple) else out
    h = stream.transpose(0, 1) if places.in_columns else stream  # (B, T or more, d)
    if h.dim() != 3:
        raise PeftlabError(
            f"peft=loreft needs a block's output for every token of every text, not {tuple(h.shape)}: this attention "
            "leaves padding out. Set backbone.attention=sdpa."
        )
    for name, edit in edits.items():
        at = chosen[name][..., None]
        at = nn.functional.pad(at, (0, 0, 0, h.shape[1] - at.shape[1]))  # behind what a model pads to itself
        h = torch.where(at, edit(h).to(h.dtype), h)
    h = h.transpose(0, 1) if places.in_columns else h
    return (h, *out[1:]) if isinstance(out, tuple) else h


class Places:
    """Where the texts of a call are edited, seen before the model's blocks run."""

    def __init__(self, backbone: Backbone, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.active = True
        self.of_call: dict[str, Tensor] | None = None
        """``first``, ``last`` and ``both`` (B, T) bool, of the call that runs; None: nothing is edited."""
        self.in_columns = backbone.architecture == "xlnet"  # its blocks hold a text in a column, (T, B, d)
        self._model = backbone.model
        self._asked: dict[str, Any] = {}  # what the backbone was asked for
        self._in_front: Tensor | None = None  # of targets, by the labels that a language model is given
        self._generates = False
        self._prompt: Tensor | None = None  # of the texts that ``generate`` was given
        trunk: Any = self._model.base_model
        self._names = {module: list(inspect.signature(module.forward).parameters) for module in (self._model, trunk)}
        self._handles = [
            backbone.register_forward_pre_hook(self._ask, with_kwargs=True),
            backbone.register_forward_hook(self._forget, always_call=True),
            trunk.register_forward_pre_hook(self._look, with_kwargs=True),
        ]
        if trunk is not self._model and type(self._model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            self._handles.append(self._model.register_forward_pre_hook(self._read_labels, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(self._forget_labels, always_call=True))
            vars(self._model)["generate"] = self.generate

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        vars(self._model).pop("generate", None)

    def generate(self, *given: Any, **named: Any) -> Any:
        """The model's own ``generate``: without a cache every call reads what was written, which is no prompt."""
        own: Callable[..., Any] = type(self._model).generate  # type: ignore[attr-defined]
        self._generates, self._prompt = True, None
        try:
            return own(self._model, *given, **named)
        finally:
            self._generates, self._prompt = False, None

    def _ask(self, _backbone: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = given[1] if len(given) > 1 else named.get("attention_mask")
        self._asked = {name: named[name] for name in ("at", "position_ids") if named.get(name) is not None}
        self._asked["mask"] = mask

    def _forget(self, *_: Any) -> None:
        self._asked = {}

    def _read_labels(self, model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        labels = {**dict(zip(self._names[model], given, strict=False)), **named}.get("labels")
        if isinstance(labels, Tensor) and labels.dim() == 2:
            self._in_front = nn.functional.pad(labels[:, 1:] != -100, (0, 1))

    def _forget_labels(self, *_: Any) -> None:
        self._in_front = None

    def _look(self, trunk: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.of_call = None
        if not self.active:
            return
        inputs = {**dict(zip(self._names[trunk], given, strict=False)), **named}
        if cached(inputs.get("past_key_values")):  # the prompt has been read
            return
        prompt, ranks = self._prompt_of(inputs)
        first, last = _first_and_last(prompt, ranks, self.first, self.last)
        self.of_call = {"first": first, "last": last, "both": first | last}

    def _prompt_of(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens (B, T) are of a prompt, and the number of each in its text, from 0."""
        tokens = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        assert isinstance(tokens, Tensor)
        positions = self._asked.get("position_ids")
        mask = inputs.get("attention_mask") if positions is None else self._asked["mask"]
        if mask is None:
            mask = torch.ones(tokens.shape[:2], device=tokens.device, dtype=torch.int64)
        if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
            raise PeftlabError(
                "peft=loreft needs an attention_mask of one number a token, (texts, tokens), to know where a prompt "
                f"begins and ends, not {tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}."
            )
        text = mask.bool()
        if self._prompt is not None:
            text = nn.functional.pad(self._prompt, (0, tokens.shape[1] - self._prompt.shape[1]))
        elif self._generates:
            self._prompt = text
        ranks = text.long().cumsum(dim=1) - 1 if positions is None else positions
        at = self._asked.get("at", self._in_front)
        if at is not None:
            at = nn.functional.pad(at, (tokens.shape[1] - at.shape[1], 0))  # behind a soft prompt
            text = text & ~_behind(at, ranks)
        return text, ranks


def _behind(at: Tensor, ranks: Tensor) -> Tensor:
    """(B, T) bool: behind the first place of ``at`` of the same text, of texts that begin where ``ranks`` is 0."""
    before = at.long().cumsum(dim=1) - at.long()  # places of ``at`` in front of each token, in its row
    begins = torch.where(ranks == 0, before, 0).cummax(dim=1).values  # the same, in front of its text
    return before > begins


def _first_and_last(prompt: Tensor, ranks: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """(B, T) bool each: the first and the last tokens of every prompt."""
    width = prompt.shape[1]
    places = torch.arange(width, device=prompt.device).expand_as(prompt)
    goes_on = torch.zeros_like(prompt)
    goes_on[:, :-1] = prompt[:, 1:] & (ranks[:, 1:] == ranks[:, :-1] + 1)
    ends = torch.where(prompt & ~goes_on, places, width)
    left = ends.flip(1).cummin(dim=1).values.flip(1) - places  # tokens of the prompt behind this one
    half = (ranks + left + 1) // 2
    until, since = half.clamp(max=first), half.clamp(max=last)
    return prompt & (ranks < until), prompt & (left < since)
