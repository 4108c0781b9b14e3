"""Parallel adapters: Towards a Unified View of Parameter-Efficient Transfer Learning (He et al. 2021,
arXiv:2110.04366).

    h ← F(x) + s · (W_up f(W_down x + b_down) + b_up)        (paper, table 1)

F is a sub-layer (``targets: [ffn]`` or ``[attention]``) or a single linear layer (a role or a regex, as Hu et
al. 2023, LLM-Adapters, arXiv:2304.01933 have it). The adapter reads what F reads and is added to what F
returns. s = 4 is the paper's scaled parallel adapter; ``learned_scale`` lets s train from there, one a place.
W_up starts from zero, so the model starts as the backbone.

Departures: F's output is that of its last projection, before the sub-layer's dropout. Where a model normalises
before a sub-layer (GPT-2, Llama) the adapter reads the normalised states, as a LoRA in the same place does. f is
GELU unless ``activation: relu`` is given, which the paper has: a narrow bottleneck of ReLUs may start with none
of them active, and then never trains.

Trainable: bottleneck · (in + out) + biases a place. LLaMA-7B, ffn_up and ffn_down, 256 without biases:
247,463,936.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from peftlab.backbones.base import Target
from peftlab.backbones.role_table import ROLES, Refusal, RolePattern
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Selection, Supports, Usual
from peftlab.peft.bottleneck import Bottleneck, BottleneckMethod
from peftlab.peft.delta import AdaptedLayer
from peftlab.peft.surgery import require_linear, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

SUB_LAYER = "sub_layer"
"""Key of the delta that adapts a whole sub-layer, in the sub-layer's last layer."""

D = TypeVar("D", bound=Bottleneck)

_SUB_LAYERS = {"ffn": ("ffn_up", "ffn_down"), "attention": ("query", "attention_output")}
"""Sub-layer -> the role that reads its input, the role that returns its output."""


@dataclass(kw_only=True)
class ParallelAdapter(BottleneckMethod, name="parallel_adapter"):
    """Bottleneck adapters beside a sub-layer or a linear layer:  F(x) + s · W_up f(W_down x)."""

    supports = Supports()
    count = "bottleneck · (in + out) + biases a place; one place a layer"

    usual: ClassVar[Usual] = {"": {"targets": ("ffn",)}, "text_classifier": {"targets": ("hidden",)}}

    targets: list[str] | None = None
    """``ffn`` or ``attention`` for the whole sub-layer, or roles and regexes for adapters beside linear layers; null:
    what is usual for the backbone, ffn of a transformer, the hidden layer of the text classifier."""
    scale: PositiveFloat = 4.0
    """The factor s on what the adapter returns."""
    learned_scale: bool = False
    """Train s, starting from ``scale``."""

    def select(self, backbone: Backbone) -> ParallelSelection:
        """First and last linear layer of each sub-layer, and the single linear layers; their adapters fit."""
        chosen = self.places("targets", backbone.architecture)
        names = [entry for entry in dict.fromkeys(chosen) if entry in _SUB_LAYERS]
        others = [entry for entry in chosen if entry not in _SUB_LAYERS]
        sub_layers = [pair for name in names for pair in _sub_layers(backbone, name)]
        linears = find_targets(backbone, others) if others else []
        require_linear([*(target for pair in sub_layers for target in pair), *linears])
        for first, last in sub_layers:
            self.require_width(*_across(first, last), last.name)
        for target in linears:
            self.require_width(*target_features(target), target.name)
        targets = [*linears, *(last for _, last in sub_layers)]
        return ParallelSelection(
            backbone, targets=targets, when="behind others", sub_layers=sub_layers, linears=linears
        )

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put an adapter beside every place."""
        assert isinstance(selection, ParallelSelection)
        adapter = Adapter(self, selection.backbone)
        for target in selection.linears:
            options = self.options(seed, f"{target.name}/{target.role or ''}")
            adapter.put(target, self._scaled(ParallelDelta, target_features(target), options))
        for first, last in selection.sub_layers:
            delta = self._scaled(SubLayerDelta, _across(first, last), self.options(seed, f"{last.name}/sub_layer"))
            layer = adapter.put(last, delta, key=SUB_LAYER)
            # Where another method has adapted the first layer, this is the input of both together.
            adapter.hold(
                adapter.model.get_submodule(first.name).register_forward_pre_hook(partial(_keep_input, layer, delta))
            )
        return adapter

    def _scaled(self, kind: type[D], features: tuple[int, int], options: dict[str, Any]) -> D:
        delta = kind(*features, self.width(*features), scale=self.scale, **options)
        if self.learned_scale:
            delta.learn_scale()
        return delta

    def closed_form(self, backbone: Backbone) -> int:
        """The size of an adapter for each place, and its scale if that trains."""
        selection = self.select(backbone)
        features = [_across(first, last) for first, last in selection.sub_layers]
        features += [target_features(target) for target in selection.linears]
        return sum(self.size(*inner) + int(self.learned_scale) for inner in features)


@dataclass(frozen=True)
class ParallelSelection(Selection):
    """Which of the targets end a sub-layer."""

    sub_layers: Sequence[tuple[Target, Target]] = ()
    """First and last linear layer of each."""
    linears: Sequence[Target] = ()
    """Layers with an adapter beside them alone."""


def _sub_layers(backbone: Backbone, name: str) -> list[tuple[Target, Target]]:
    places = ROLES.get(backbone.architecture, {})
    for role in _SUB_LAYERS[name]:
        place = places.get(role)
        if not isinstance(place, RolePattern):
            reason = place.reason if isinstance(place, Refusal) else f"{backbone.architecture} has no such role"
            raise PeftlabError(
                f"peft.targets: '{name}' needs the role '{role}': {reason}. Name linear layers instead (role, regex)."
            )
    first, last = (find_targets(backbone, [role]) for role in _SUB_LAYERS[name])
    if len(first) != len(last):
        raise PeftlabError(
            f"peft.targets: '{name}' of this {backbone.architecture} begins {len(first)} times and ends {len(last)} "
            "times. Name linear layers by role or regex instead."
        )
    return list(zip(first, last, strict=True))


def _keep_input(last: AdaptedLayer, delta: SubLayerDelta, _first: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The forward pre-hook of a sub-layer's first linear layer."""
    if last.acts(SUB_LAYER):
        delta.keep(inputs[0])


def _across(first: Target, last: Target) -> tuple[int, int]:
    """What a sub-layer reads and returns."""
    return target_features(first)[0], target_features(last)[1]


class ParallelDelta(Bottleneck):
    """h ← W x + a(x), for all outputs of a layer or a slice of them."""

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and what the adapter makes of ``x`` (…, in)."""
        return out + self.adapted(x).to(out.dtype)


class SubLayerDelta(Bottleneck):
    """F(x) + a(x) on the last layer of a sub-layer F, whose input it keeps from when its first layer ran."""

    _input: Tensor | None = None

    def keep(self, x: Tensor) -> None:
        """Keep the sub-layer's input ``x`` (…, in) for when its last layer runs."""
        self._input = x

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and what the adapter makes of the sub-layer's input, which is then forgotten."""
        given, self._input = self._input, None
        assert given is not None, "the sub-layer's last layer ran before its first"
        return out + self.adapted(given).to(out.dtype)
