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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from peftlab.backbones.role_table import ROLES, Place, Refusal
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat
from peftlab.peft.base import Supports
from peftlab.peft.bottleneck import Bottleneck, BottleneckMethod
from peftlab.peft.wrapping import WrappedLayer, add_to_rows, part_name, target_features, wrap

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target

_SUB_LAYERS = {"ffn": ("ffn_up", "ffn_down"), "attention": ("query", "attention_output")}
"""Sub-layer -> the role that reads its input, the role that returns its output."""


@dataclass(kw_only=True)
class ParallelAdapter(BottleneckMethod, name="parallel_adapter"):
    """Bottleneck adapters beside a sub-layer or a linear layer:  F(x) + s · W_up f(W_down x)."""

    supports = Supports()
    count = "bottleneck · (in + out) + biases a place; one place a layer"

    targets: list[str] = field(default_factory=lambda: ["ffn"])
    """``ffn`` or ``attention`` for the whole sub-layer, or roles and regexes for adapters beside linear layers."""
    scale: PositiveFloat = 4.0
    """The factor s on what the adapter returns."""
    learned_scale: bool = False
    """Train s, starting from ``scale``."""

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Put an adapter beside every place."""
        sub_layers, linears = self._places(backbone)
        for first, last in sub_layers:
            layer = _layer(backbone, last)
            layer.sub_layer_input = SubLayerInput()
            # The first layer may be wrapped itself: its input is the same inside and outside.
            backbone.model.get_submodule(first.name).register_forward_pre_hook(layer.sub_layer_input)
            layer.around = self._make(_across(first, last), f"{last.name}/sub_layer", layer, seed)
        for target in linears:
            layer = _layer(backbone, target)
            adapter = self._make(target_features(target), f"{target.name}/{target.role or ''}", layer, seed)
            layer.adapters[part_name(target)] = adapter
            layer.rows[part_name(target)] = target.output_slice

    def _make(self, features: tuple[int, int], place: str, layer: ParallelLayer, seed: int) -> Bottleneck:
        adapter = self.make(*features, place=place, seed=seed, device=layer.weight.device, scale=self.scale)
        if self.learned_scale:
            adapter.learn_scale()
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """The size of an adapter for each place, and its scale if that trains."""
        sub_layers, linears = self._places(backbone)
        features = [_across(first, last) for first, last in sub_layers] + [target_features(t) for t in linears]
        return sum(self.size(*inner) + int(self.learned_scale) for inner in features)

    def _places(self, backbone: Backbone) -> tuple[list[tuple[Target, Target]], list[Target]]:
        """(first, last) linear layer of each sub-layer, and the single linear layers; their adapters fit."""
        names = [entry for entry in dict.fromkeys(self.targets) if entry in _SUB_LAYERS]
        others = [entry for entry in self.targets if entry not in _SUB_LAYERS]
        sub_layers = [pair for name in names for pair in _sub_layers(backbone, name)]
        linears = find_targets(backbone, others) if others else []
        for first, last in sub_layers:
            self.require_width(*_across(first, last), last.name)
        for target in linears:
            self.require_width(*target_features(target), target.name)
        return sub_layers, linears


def _sub_layers(backbone: Backbone, name: str) -> list[tuple[Target, Target]]:
    places = ROLES.get(backbone.architecture, {})
    for role in _SUB_LAYERS[name]:
        place = places.get(role)
        if not isinstance(place, Place):
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


def _across(first: Target, last: Target) -> tuple[int, int]:
    """What a sub-layer reads and returns."""
    return target_features(first)[0], target_features(last)[1]


def _layer(backbone: Backbone, target: Target) -> ParallelLayer:
    layer = wrap(backbone, target, ParallelLayer)
    assert isinstance(layer, ParallelLayer)
    return layer


class SubLayerInput:
    """Keeps what a sub-layer was given until its last layer has taken it."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The forward pre-hook of the sub-layer's first linear layer."""
        self._value = inputs[0]

    def take(self) -> Tensor:
        """The input (…, in), which is then forgotten."""
        value, self._value = self._value, None
        assert value is not None, "the sub-layer's last layer ran before its first"
        return value


class ParallelLayer(WrappedLayer):
    """A frozen layer, adapters beside it, and one beside the sub-layer that it ends."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.adapters = nn.ModuleDict()
        self.rows: dict[str, slice | None] = {}
        self.around: Bottleneck | None = None
        self.sub_layer_input: SubLayerInput | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        out: Tensor = self.base(x)
        for part, adapter in self.adapters.items():
            out = add_to_rows(out, adapter(x), self.rows[part])
        if self.around is not None and self.sub_layer_input is not None:
            out = add_to_rows(out, self.around(self.sub_layer_input.take()), None)
        return out
