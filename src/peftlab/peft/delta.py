"""What a method changes of one layer, and the layer that carries it.

A layer that a method adapts is an :class:`AdaptedLayer`: the frozen layer, and the deltas on it. A delta
(:class:`Delta`) is what one method changes of one layer, or of a slice of its output. What a delta registers is what is
saved of it: its parameters, trained or frozen, and its persistent buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.product import after, product
from peftlab.peft.surgery import weight_matrix


class NotMergeable(PeftlabError):
    """A delta that no change of the layer's weight stands for; the message is the reason, without its beginning."""


class Delta(nn.Module):
    """What a method changes of one layer, or of a slice of its output.

    It changes the layer's *product*, W x + b (:mod:`peftlab.peft.product`). The frozen layer is an argument of its
    methods and no child, so that it is saved once and under its own name.
    """

    rows: slice | None = None
    """The outputs that it changes; None: all of them. Set by :meth:`Adapter.put`."""

    def before(self, x: Tensor) -> Tensor:
        """What the layer reads instead of ``x`` (…, in)."""
        return x

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """The changed output.

        Args:
            x: (…, in) what the layer reads, or ids (…) for an embedding.
            out: (…, rows) the layer's product with it, of the delta's own rows.
            base: the frozen layer.

        Returns:
            (…, rows), of the type of ``out``.
        """
        return out

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (rows, in) and bias (rows,) under which the layer alone computes what it computes with the delta.

        Called under ``no_grad``; must not write into its arguments.

        Raises:
            NotMergeable: with the reason, if there are none.
        """
        raise NotMergeable

    def update(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """ΔW (rows, in) beside the frozen ``weight``, or two factors (rows, k) and (k, in) whose product it is.

        Raises:
            NotMergeable: if it is no change of the weight.
        """
        return self.folded(weight, None)[0] - weight


class AdaptedLayer(nn.Module):
    """A frozen layer and the deltas on it: the one wrapper that there is.

    Rows of several deltas are disjoint (``compose`` sees to it, and so does each method's choice of targets), so that
    each of them reads what the frozen layer returns. The one exception adds up: a parallel adapter around a whole
    sub-layer and another beside the sub-layer's last layer.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.deltas = nn.ModuleDict()
        self.stands_for: dict[str, nn.Module] = {}
        """Names in the clean model → the modules that stood there; set by :meth:`Adapter.put`."""
        self._off: frozenset[str] = frozenset()
        self._merged: frozenset[str] = frozenset()
        self._originals: tuple[Tensor, Tensor | None] | None = None
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at its type."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        bias = getattr(self.base, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), or ids (…) → (…, dim)."""
        deltas = [delta for key, delta in self._named() if self.acts(key)]
        for delta in deltas:
            x = delta.before(x)
        base_out = product(self.base, x)
        out = base_out
        sliced = [delta for delta in deltas if delta.rows is not None]
        if sliced:
            out = base_out.clone()  # what a delta has read must not change under autograd's feet
            for delta in sliced:
                out[..., delta.rows] = delta(x, base_out[..., delta.rows], self.base)
        for delta in deltas:
            if delta.rows is None:
                out = delta(x, out, self.base)
        return after(self.base, out)

    def _named(self) -> Iterator[tuple[str, Delta]]:
        return iter(self.deltas.items())  # type: ignore[arg-type]

    @property
    def merged(self) -> frozenset[str]:
        """Keys of the deltas that are folded into the weight."""
        return self._merged

    def acts(self, key: str) -> bool:
        """Whether the delta of ``key`` is neither folded nor switched off."""
        return key not in self._merged and key not in self._off

    @torch.no_grad()
    def fold(self, keys: frozenset[str]) -> None:
        """Let exactly the deltas of ``keys`` be folded into the frozen weight, and none where there are none.

        They are always folded into the original weight, of which a copy is kept on the CPU, so that its very bits can
        be put back.

        Raises:
            NotMergeable: if one of them cannot be folded; the weight is then as it was.
        """
        if keys == self._merged:
            return
        weight, bias = weight_matrix(self.base), self._stored_bias()  # (out, in), a view
        originals = self._originals
        if originals is None:
            originals = weight.to("cpu", copy=True), None if bias is None else bias.to("cpu", copy=True)
        new_weight, new_bias = originals[0].to(weight.device), None if bias is None else originals[1]
        new_bias = None if bias is None or new_bias is None else new_bias.to(bias.device)
        for key, delta in self._named():
            if key in keys:
                new_weight, new_bias = folded(delta, new_weight, new_bias)
        weight.copy_(new_weight)
        if bias is not None and new_bias is not None:
            bias.copy_(new_bias)
        self._merged, self._originals = keys, originals if keys else None

    def _stored_bias(self) -> Tensor | None:
        """The bias to write into: where a float32 copy of it trains, that copy."""
        copies: Any = getattr(self.base, "parametrizations", {})
        return copies["bias"].original if "bias" in copies else self.bias

    def drop(self, key: str) -> None:
        """Take the delta of ``key`` away; where it is folded, its change stays in the weight for good."""
        rest = self._merged - {key}
        if key in self._merged:
            self.fold(frozenset({key}))
            self._originals, self._merged = None, frozenset()
        del self.deltas[key]
        self.fold(rest)

    @contextmanager
    def without(self, keys: frozenset[str]) -> Iterator[None]:
        """Inside, the deltas of ``keys`` change nothing."""
        off, merged = self._off, self._merged
        self.fold(merged - keys)
        self._off = off | keys
        try:
            yield
        finally:
            self._off = off
            self.fold(merged)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"merged={sorted(self._merged)}" if self._merged else ""


def folded(delta: Delta, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The whole weight (out, in) and bias (out,) with ``delta`` folded into its rows, in their own types."""
    rows = slice(None) if delta.rows is None else delta.rows
    new_weight, new_bias = delta.folded(weight[rows], None if bias is None else bias[rows])
    if delta.rows is None:
        return new_weight.to(weight.dtype), None if bias is None or new_bias is None else new_bias.to(bias.dtype)
    weight = weight.clone()
    weight[rows] = new_weight.to(weight.dtype)
    if bias is not None and new_bias is not None:
        bias = bias.clone()
        bias[rows] = new_bias.to(bias.dtype)
    return weight, bias
