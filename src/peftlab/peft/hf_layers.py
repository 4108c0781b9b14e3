"""HF peft's layers in a model, as an adapter of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf_updates import weight_updates
from peftlab.peft.names import clean_name
from peftlab.peft.surgery import replace_module
from peftlab.peft.weight_update import WeightUpdate

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone
    from peftlab.peft.hf_peft import HFPeft


class HFPeftAdapter(Adapter):
    """The layers that HF peft has put into a model; they merge, and are switched off, by its own code."""

    def __init__(self, strategy: HFPeft, backbone: Backbone, layers: dict[str, Any]) -> None:
        super().__init__(strategy, backbone)
        self.layers = {clean_name(backbone.model, name): layer for name, layer in layers.items()}
        """HF peft's layers, by the names of what they stand around in the clean model."""
        self._before_merge: dict[str, dict[str, Tensor]] = {}

    @property
    def peft_type(self) -> str:
        """HF peft's name of the method."""
        return str(self.strategy.peft_type)  # type: ignore[attr-defined]

    def adapted_weights(self) -> list[nn.Parameter]:
        """Those of the layers that HF peft's stand around."""
        weights = [getattr(layer.base_layer, "weight", None) for layer in self.layers.values()]
        return [weight for weight in weights if isinstance(weight, nn.Parameter)]

    def _tensors_of(self, layer: Any) -> dict[str, Tensor]:
        """What HF peft's ``layer`` saves, its base apart."""
        state = layer.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if not name.startswith("base_layer.")}

    def own_ids(self) -> set[int]:
        """``id`` of every tensor that is not the backbone's, and of those of the backbone that train."""
        return super().own_ids() | {id(t) for layer in self.layers.values() for t in self._tensors_of(layer).values()}

    def frozen_state(self) -> dict[str, Tensor]:
        """What HF peft's layers save beside what trains (frozen random matrices, indices)."""
        return {
            f"{name}.{inner}": tensor
            for name, layer in self.layers.items()
            for inner, tensor in self._tensors_of(layer).items()
            if not tensor.requires_grad
        }

    def merge(self) -> None:
        """Let every layer fold its update into the weight; nothing where that is done already.

        Raises:
            PeftlabError: if the type cannot, or a weight is in 4 or 8 bits; then nothing is changed.
        """
        layers = {name: layer for name, layer in self.layers.items() if not layer.merged}
        for name, layer in layers.items():
            if reads_packed(layer):
                raise PeftlabError(
                    f"'{name}' is HF peft's layer for weights in 4 or 8 bits: it would round the merged weight to that "
                    "grid again and lose most of the change. Use the model with its adapter, or build it with "
                    "backbone.quantize=null."
                )
        for name, layer in layers.items():
            # Kept to the bit: not every type can be undone exactly, and some not at all.
            state = layer.base_layer.state_dict()
            self._before_merge[name] = {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}
            try:
                layer.merge()
            except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
                del self._before_merge[name]
                self.unmerge()
                raise PeftlabError(
                    f"'{self.strategy.name}' with peft.peft_type={self.peft_type} cannot be merged into the backbone's "
                    f"weights: {str(error) or 'HF peft has no code for it'}."
                ) from error

    def merge_and_remove(self) -> None:
        """Merge, and put the layers back that HF peft's stand around."""
        self.merge()
        self.remove()

    def unmerge(self) -> None:
        """Put the very weights back that were there before; nothing where nothing was merged."""
        for name, state in self._before_merge.items():
            self.layers[name].merged_adapters.clear()
            with torch.no_grad():
                for key, tensor in self.layers[name].base_layer.state_dict(keep_vars=True).items():
                    tensor.copy_(state[key])
        self._before_merge = {}

    def _require_mergeable(self) -> None:
        """Only trying it tells."""

    def weight_updates(self) -> Iterator[WeightUpdate]:
        """What each layer makes of unit vectors beside what its weight makes of them, in floats on any backbone."""
        return weight_updates(self.peft_type, self.layers.items())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, every layer computes what its base alone computes.

        Raises:
            PeftlabError: if biases of the backbone train as well (HF peft's option ``bias``).
        """
        self._require_something_to_switch_off()
        trainable = self.parameters()
        merged = bool(self._before_merge)
        if merged:
            self.unmerge()
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)
            for parameter in trainable:  # HF peft freezes what it switches off
                parameter.requires_grad_(True)
            if merged:
                self.merge()

    def remove(self) -> None:
        """Put the layers back that HF peft's stand around."""
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer.base_layer)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        self.layers = {}
        super().remove()


def reads_packed(layer: Any) -> bool:
    """Whether HF peft's ``layer`` is one for weights in 4 or 8 bits."""
    return type(layer).__module__.endswith(".bnb") or bool(getattr(layer, "quantization_backend", None))


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """Name and module of HF peft's layers in ``model``."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_in_float32(layer: Any) -> None:
    """Cast what HF peft has made in the backbone's 16 bits."""
    for name, child in layer.named_children():
        if name != "base_layer":
            child.float()
    for parameter in layer.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


def in_type_of_autocast(_layer: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
    """Give back what a linear layer gives back under autocast; HF peft casts to the type of the input."""
    device = out.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return out.to(torch.get_autocast_dtype(device))
    return out
