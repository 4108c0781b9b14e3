"""What prefix tuning and P-tuning v2 share: trained keys and values in front of those of every layer.

    Attention(Q, [P_K ; K], [P_V ; V])        P_K, P_V (H_kv, n, d_head), for each attention module

They go straight into attention (:mod:`peftlab.backbones.attention`): positions do not move and the text keeps all of
them. HF peft passes them as a cache, which moves the text n positions on; a prefix trained there has seen the
text in other places (absolute positions), or from n positions further away (rotary ones). ``position_shift`` does
the same, so that such a prefix can be imported, and one trained here exported for any model that peft can run.

One table (n, 2 · Σ H_kv · d_head) holds everything, the keys and the values of one module beside each other, then
the next module's: for decoders and encoders of L layers (n, 2·L·d), as HF peft saves it. It is trained as it
is, or comes out of a small network:

    table = tanh(E W₁ + b₁) W₂ + b₂        E (n, H_kv·d_head)        reparameterize=true

Keys and values may have fewer heads than queries; the prefix has as many as they. ALBERT runs one layer many times,
and so has one prefix. T5 has a prefix in the self-attention of its encoder and its decoder, and in cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftlab.errors import PeftlabError
from peftlab.fields import PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.soft_prompt import copy_tensors, fresh_linear
from peftlab.peft.surgery import adapter_generator

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

CHILD = "key_value_prefix"
"""The model's child that holds the prefix."""
_DEFAULT_HIDDEN = 512


@dataclass(kw_only=True)
class KeyValuePrefix(PEFTStrategy):
    """Base of the methods that train keys and values in every layer."""

    supports = Supports(identity_at_start=False)

    length: PositiveInt = 20
    """Keys and values n in front of those of each layer; they take no position from the text."""
    reparameterize: bool = False
    """Let a network of two linear layers make the keys and values, which trains more smoothly."""
    hidden: PositiveInt | None = None
    """Width of the network of ``reparameterize``; null: 512."""
    dropout: Probability = 0.0
    """Dropout on the prefix's keys and values."""
    position_shift: bool = False
    """Let the text's positions begin behind the prefix, as HF peft does; they are then missing at a text's end."""

    def __post_init__(self) -> None:
        """Raise ValueError for a network's width without the network."""
        if self.hidden is not None and not self.reparameterize:
            raise ValueError(
                f"peft.hidden={self.hidden} is the width of a network that peft.reparameterize=false leaves out. Set "
                "peft.hidden=null, or peft.reparameterize=true."
            )

    def select(self, backbone: Backbone) -> Selection:
        """The one place for a prefix; raises PeftlabError if the model has no attention that takes one."""
        _shapes(backbone)
        if self.position_shift:
            _require_positions(backbone)
        return Selection(backbone, slots=[CHILD])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> PrefixAdapter:
        """Put the prefix into the model and attach its parts to the attention modules."""
        from peftlab.backbones.attention import attach

        backbone = selection.backbone
        if hasattr(backbone.model, CHILD):
            raise PeftlabError("this backbone has a prefix already; build it anew for another one.")
        shapes = _shapes(backbone)
        hidden = (self.hidden or _DEFAULT_HIDDEN) if self.reparameterize else None
        prefix = Prefix(list(shapes.values()), self.length, hidden, self.dropout, adapter_generator(seed, CHILD))
        adapter = PrefixAdapter(self, backbone, prefix, list(shapes))
        trunk: nn.Module = backbone.model.base_model  # type: ignore[assignment]
        if self.position_shift:
            adapter.hold(self._shift_positions(trunk, prefix))
        attach(backbone, {name: partial(prefix.part, index) for index, name in enumerate(shapes)})
        # The table is computed once for all layers, and let go of when the trunk is through.
        adapter.hold(
            trunk.register_forward_pre_hook(partial(_compute, prefix)),
            trunk.register_forward_hook(partial(_release, prefix), always_call=True),
        )
        adapter.add(CHILD, prefix.to(next(backbone.model.parameters()).device))
        return adapter

    def extra_tokens(self) -> int:
        """Positions that the text cannot have: none, or the prefix's length."""
        return self.length if self.position_shift else 0

    def _shift_positions(self, trunk: nn.Module, prefix: Prefix) -> RemovableHandle:
        # RoBERTa and kin count positions from behind the padding id.
        paddings = [
            int(padding)
            for name, module in trunk.named_modules()
            if name.endswith("position_embeddings") and (padding := getattr(module, "padding_idx", None)) is not None
        ]
        start = paddings[0] + 1 if paddings else 0
        return trunk.register_forward_pre_hook(partial(_positions_behind, self.length, start, prefix), with_kwargs=True)

    def closed_form(self, backbone: Backbone) -> int:
        """Trainable parameters without the head, by the formulas of the method's file."""
        sizes = [heads * size for heads, size in _shapes(backbone).values()]
        table = 2 * sum(sizes)
        if not self.reparameterize:
            return self.length * table
        hidden = self.hidden or _DEFAULT_HIDDEN
        return self.length * sizes[0] + (sizes[0] + 1) * hidden + (hidden + 1) * table


class PrefixAdapter(Adapter):
    """A prefix in a model."""

    def __init__(self, strategy: KeyValuePrefix, backbone: Backbone, prefix: Prefix, attention: list[str]) -> None:
        super().__init__(strategy, backbone)
        self.prefix = prefix
        self._attention = attention

    def inference_prompt(self) -> dict[str, Tensor]:
        """The table, which is all that is needed after training: ``prompt_embeddings`` (n, 2 · Σ H_kv · d_head)."""
        with torch.no_grad():
            return {"prompt_embeddings": self.prefix.table().clone()}

    def load_inference_prompt(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`inference_prompt` returned.

        Raises:
            PeftlabError: if it does not fit, or this prefix comes out of a network.
        """
        if self.prefix.network is not None:
            raise PeftlabError(
                "the network of a prefix cannot be found from the keys and values that it made. Use them, and train "
                f"them on, with peft={self.strategy.name} peft.reparameterize=false."
            )
        copy_tensors({"prompt_embeddings": self.prefix.embedding}, tensors)

    def _require_mergeable(self) -> None:
        raise PeftlabError(
            f"'{self.strategy.name}' cannot be merged: attention reads its keys and values beside the text's own, and "
            "no weight of the backbone stands for them. Use the model with its adapter."
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, attention reads the text's keys and values alone."""
        self.prefix.active = False
        try:
            yield
        finally:
            self.prefix.active = True

    def remove(self) -> None:
        """Take the prefix out of the model; its attention computes what it computed before."""
        from peftlab.backbones.attention import detach

        detach(self.backbone, self._attention)
        super().remove()


class Prefix(nn.Module):
    """The keys and values of all attention modules."""

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        length: int,
        hidden: int | None,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        """``shapes``: (H_kv, d_head) of each attention module; ``hidden``: None for no network."""
        super().__init__()
        self.shapes = shapes
        self.sizes = [heads * size for heads, size in shapes for _ in ("key", "value")]
        width = sum(self.sizes) if hidden is None else self.sizes[0]
        self.embedding = nn.Parameter(torch.randn(length, width, generator=generator))
        self.network = (
            None
            if hidden is None
            else nn.Sequential(
                fresh_linear(width, hidden, generator), nn.Tanh(), fresh_linear(hidden, sum(self.sizes), generator)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.active = True
        self.current: list[Tensor] | None = None
        self.last: list[Tensor] | None = None

    def table(self) -> Tensor:
        """(n, 2 · Σ H_kv · d_head)."""
        table: Tensor = self.embedding if self.network is None else self.network(self.embedding)
        return table

    def parts(self) -> list[Tensor]:
        """Keys, values, keys, … of the modules in order, each (H_kv, n, d_head)."""
        heads = [head for head, _ in self.shapes for _ in ("key", "value")]
        columns = self.dropout(self.table()).split(self.sizes, dim=1)
        return [part.unflatten(1, (head, -1)).transpose(0, 1) for part, head in zip(columns, heads, strict=True)]

    def part(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the module at ``index``; None while the prefix is switched off."""
        if not self.active:
            return None
        parts = self.current
        if parts is None and _in_backward():  # a block that is checkpointed, computed once more
            parts = self.last
        if parts is None:  # outside of a forward pass of the whole trunk (one layer run by itself)
            parts = self.parts()
        return parts[2 * index], parts[2 * index + 1]

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of a past forward pass cannot be copied, and nobody needs them in a copy.
        return self.__dict__ | {"current": None, "last": None}


def _require_positions(backbone: Backbone) -> None:
    from peftlab.backbones.attention import takes_a_cache

    if not takes_a_cache(backbone.model.base_model):  # type: ignore[arg-type]
        raise PeftlabError(
            f"peft.position_shift=true: {backbone.architecture} takes neither positions nor a cache, so HF peft "
            "cannot run a prefix in it either. Set peft.position_shift=false."
        )


def _shapes(backbone: Backbone) -> dict[str, tuple[int, int]]:
    from peftlab.backbones.attention import attention_modules, key_value_shape

    return {name: key_value_shape(module) for name, module in attention_modules(backbone).items()}


def _compute(prefix: Prefix, *_: Any) -> None:
    prefix.current = prefix.parts()


def _positions_behind(
    length: int, start: int, prefix: Prefix, _trunk: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positions moved on by the prefix: those that are given, or those from ``start`` and what a cache holds on."""
    if not prefix.active:
        return None
    if (said := named.get("position_ids")) is not None:
        return given, named | {"position_ids": said + length}
    past = getattr(named.get("past_key_values"), "get_seq_length", lambda: 0)()
    first = length + start + past
    ids = next(x for x in (*given[:1], named.get("input_ids"), named.get("inputs_embeds")) if x is not None)
    positions = torch.arange(first, first + ids.shape[1], device=ids.device)
    return given, named | {"position_ids": positions.expand(ids.shape[0], -1)}  # (B, T)


def _release(prefix: Prefix, *_: Any) -> None:
    prefix.last, prefix.current = prefix.current if torch.is_grad_enabled() else None, None


def _in_backward() -> bool:
    """Whether autograd is at work in this thread: torch's own checkpointing asks it so."""
    running: int = torch._C._current_graph_task_id()
    return running != -1
