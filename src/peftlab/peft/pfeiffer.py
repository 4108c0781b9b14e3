"""Pfeiffer adapters: MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer (Pfeiffer et al.
2020, arXiv:2005.00052); AdapterFusion: Non-Destructive Task Composition (Pfeiffer et al. 2020, arXiv:2005.00247).

    h ← h + W_up f(W_down h + b_down) + b_up

One adapter a layer, behind the feed-forward: half of Houlsby's. W_up starts from zero, so the model starts as
the backbone. With ``layer_norm`` it is Adapter-L (Lin, Madotto & Fung 2020, arXiv:2004.03829), as the LoRA
paper counts it for GPT-2.

Departures: the adapter stands directly behind the feed-forward's output projection, before dropout, residual
and normalisation. MAD-X puts it behind the sub-layer's residual and LayerNorm, and normalises once more behind
it, a place that decoders do not have. The count is the same. f is GELU unless ``activation: relu`` is given,
which the paper has: a narrow bottleneck of ReLUs may start with none of them active, and then never trains.

Trainable: L · (2 · d · m + d + m) for L layers of width d and bottlenecks of m. RoBERTa-base, m = 16: 304,320.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peftlab.peft.base import Supports
from peftlab.peft.bottleneck import SeriesAdapters


@dataclass(kw_only=True)
class Pfeiffer(SeriesAdapters, name="pfeiffer"):
    """One bottleneck adapter a layer, behind the feed-forward:  h + W_up f(W_down h)."""

    supports = Supports()
    count = "2 · bottleneck · width + biases a target; one target a layer"

    targets: list[str] = field(default_factory=lambda: ["ffn_down"])
    """Roles, or regexes on module names, whose output is adapted. Each entry must match something."""
