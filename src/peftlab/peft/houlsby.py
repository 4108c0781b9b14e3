"""Houlsby adapters: Parameter-Efficient Transfer Learning for NLP (Houlsby et al. 2019, arXiv:1902.00751).

    h ← h + W_up f(W_down h + b_down) + b_up        (paper, figure 2)

Two adapters a layer: behind attention's output projection and behind the feed-forward's, before the residual
connection is added. W_up starts from zero, so the model starts as the backbone exactly; ``init: normal`` is
the paper's truncated N(0, 0.01²), which is near it.

f is GELU, as in the authors' code. Departures: the adapter stands directly behind the projection, before the
sub-layer's dropout (the authors' code has it behind that dropout); the normalisation layers stay frozen, which
the paper trains as well.

Trainable: 2L · (2 · d · m + d + m) for L layers of width d and bottlenecks of m. RoBERTa-large, m = 8: 835,968.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftlab.peft.base import Supports, Usual
from peftlab.peft.bottleneck import SeriesAdapters


@dataclass(kw_only=True)
class Houlsby(SeriesAdapters, name="houlsby"):
    """Bottleneck adapters behind attention and feed-forward:  h + W_up f(W_down h)."""

    supports = Supports()
    count = "2 · bottleneck · width + biases a target; two targets a layer"

    usual: ClassVar[Usual] = {
        "": {"targets": ("attention_output", "ffn_down")},
        "text_classifier": {"targets": ("hidden",)},
    }

    targets: list[str] | None = None
    """Roles, or regexes on module names, whose output is adapted; each must match something. null: what is usual for
    the backbone, attention_output and ffn_down of a transformer, the hidden layer of the text classifier."""
