"""Bottleneck adapters: what houlsby, pfeiffer and parallel_adapter share.

    a(x) = s · (W_up f(W_down x + b_down) + b_up)        W_down (bottleneck, in), W_up (out, bottleneck)

With ``layer_norm`` the input is normalised first (Bapna & Firat 2019, arXiv:1909.08478; "Adapter-L" of Lin,
Madotto & Fung 2020, arXiv:2004.03829). Trainable: bottleneck · (in + out), with biases + bottleneck + out, with
``layer_norm`` + 2 · in, an adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection
from peftlab.peft.delta import Delta, NotMergeable
from peftlab.peft.surgery import adapter_generator, require_linear, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
)


@dataclass(kw_only=True)
class BottleneckMethod(PEFTStrategy):
    """The fields of every bottleneck adapter, and how one is made."""

    targets: list[str] | None = None
    """Where adapters are put; null: where it is usual for the backbone."""
    bottleneck: PositiveInt | None = None
    """Width of the adapters; null: by ``reduction_factor``."""
    reduction_factor: PositiveFloat | None = 16.0
    """The width is the smaller of a layer's input and output divided by this; null: by ``bottleneck``."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """The non-linearity f. A narrow bottleneck of ReLUs may start with none of them active, and then never trains."""
    bias: bool = True
    """Whether both projections have biases."""
    layer_norm: bool = False
    """Normalise the adapter's input by a LayerNorm of its own, which trains."""
    dropout: Probability = 0.0
    """Dropout on the activations of the bottleneck."""
    init: Literal["zero", "normal"] = "zero"
    """How the adapters start: ``zero``, W_up from zero, so that the model starts as the backbone; ``normal``, W_up and
    W_down from Houlsby's truncated N(0, 0.01²)."""

    def __post_init__(self) -> None:
        """Raise ValueError unless exactly one field gives the width, and there is a target."""
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise ValueError(
                f"peft.bottleneck={self.bottleneck} and peft.reduction_factor={self.reduction_factor:g} both give the "
                "adapters' width. Set one of them to null (peft.reduction_factor=null)."
            )
        if self.bottleneck is None and self.reduction_factor is None:
            raise ValueError("peft.bottleneck and peft.reduction_factor are both null: set one of them.")
        if self.targets is not None and not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [ffn_down].")

    def width(self, in_features: int, out_features: int) -> int:
        """Width of the bottleneck of an adapter from ``in_features`` to ``out_features``."""
        if self.bottleneck is not None:
            return self.bottleneck
        assert self.reduction_factor is not None
        return max(1, int(min(in_features, out_features) / self.reduction_factor))

    def size(self, in_features: int, out_features: int) -> int:
        """Trainable parameters of such an adapter."""
        width = self.width(in_features, out_features)
        biases = width + out_features if self.bias else 0
        return width * (in_features + out_features) + biases + (2 * in_features if self.layer_norm else 0)

    def require_width(self, in_features: int, out_features: int, name: str) -> None:
        """Raise PeftlabError if the bottleneck of the adapter at ``name`` is wider than what goes in and comes out."""
        largest = max(in_features, out_features)
        if self.width(in_features, out_features) > largest:
            key = "bottleneck" if self.bottleneck is not None else "reduction_factor"
            raise PeftlabError(
                f"peft.{key}={getattr(self, key):g} makes the adapter at '{name}' ({in_features} → {out_features}) "
                f"{self.width(in_features, out_features)} wide: a bottleneck may have at most {largest}. "
                + ("Lower it." if key == "bottleneck" else "Raise it.")
            )

    def options(self, seed: int, place: str) -> dict[str, Any]:
        """Arguments of the adapter at ``place``, which is drawn from ``seed`` and that name."""
        return {
            "activation": self.activation,
            "bias": self.bias,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "zero": self.init == "zero",
            "generator": adapter_generator(seed, place),
        }


@dataclass(kw_only=True)
class SeriesAdapters(BottleneckMethod):
    """Adapters behind linear layers, each reading what its layer returns:  h ← h + a(h)."""

    def select(self, backbone: Backbone) -> Selection:
        """The targets; raises PeftlabError for one that is narrower than the bottleneck."""
        targets = find_targets(backbone, self.places("targets", backbone.architecture))
        require_linear(targets)
        for target in targets:
            _, features = target_features(target)
            self.require_width(features, features, target.name)
        return Selection(backbone, targets=targets)

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put an adapter behind every target."""
        adapter = Adapter(self, selection.backbone)
        for target in selection.targets:
            _, features = target_features(target)
            options = self.options(seed, f"{target.name}/{target.role or ''}")
            adapter.put(target, SeriesDelta(features, features, self.width(features, features), **options))
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """The size of an adapter for each target."""
        outputs = [target_features(target)[1] for target in self.select(backbone).targets]
        return sum(self.size(features, features) for features in outputs)


class Bottleneck(Delta):
    """a(x) = s · (W_up f(W_down x + b_down) + b_up); subclasses say what x is."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        *,
        activation: str,
        bias: bool,
        layer_norm: bool,
        dropout: float,
        zero: bool,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.norm = nn.LayerNorm(in_features) if layer_norm else None
        self.scale: float | nn.Parameter = scale
        # fp32 whatever the backbone's dtype, as every adapter.
        down, up = torch.zeros(width, in_features), torch.zeros(out_features, width)
        if zero:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        else:  # Houlsby et al. 2019: a standard deviation of 0.01, cut at two of them
            for matrix in (down, up):
                nn.init.trunc_normal_(matrix, std=0.01, a=-0.02, b=0.02, generator=generator)
        self.down = nn.Parameter(down)  # (width, in)
        self.up = nn.Parameter(up)  # (out, width)
        self.down_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def learn_scale(self) -> None:
        """Make the scale s train, from where it is."""
        value = float(self.scale)
        del self.scale
        self.scale = nn.Parameter(torch.tensor(value, device=self.down.device))

    def adapted(self, x: Tensor) -> Tensor:
        """a(x), (…, in) → (…, out), in float32 outside autocast."""
        x = x.to(self.down.dtype)
        if self.norm is not None:
            x = self.norm(x)
        low = _ACTIVATIONS[self.activation](F.linear(x, self.down, self.down_bias))  # (…, width)
        return F.linear(self.dropout(low), self.up, self.up_bias) * self.scale

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Not possible."""
        raise NotMergeable(
            f"its adapters are not linear ({self.activation} stands between their projections). Methods that merge: "
            "peft=lora, peft=ia3, peft=vera."
        )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        width, in_features = self.down.shape
        scale = "learned" if isinstance(self.scale, nn.Parameter) else f"{self.scale:g}"
        return f"{in_features} → {width} → {len(self.up)}, {self.activation}, scale={scale}"


class SeriesDelta(Bottleneck):
    """h ← h + a(h), for all outputs of a layer or a slice of them."""

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and what the adapter makes of it."""
        return out + self.adapted(out).to(out.dtype)
