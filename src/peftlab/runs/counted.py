"""How many numbers a model with an adapter has, and how many of them train. Imports no Lightning."""

from __future__ import annotations

from peftlab.backbones.base import Backbone
from peftlab.backbones.quantize import logical_size
from peftlab.peft.adapter import Adapter


def count_parameters(adapter: Adapter) -> dict[str, int]:
    """Elements: all, trainable, of the head, trainable without the head, stored; and the adapter's bytes.

    ``added`` counts the parameters that the backbone has not, ``adapted`` the weights of the layers that the method
    puts something around: what full fine-tuning of the same layers would train. 4-bit weights count their logical
    elements, not their packed ones.
    """
    sizes = count_model(adapter.backbone)
    trainable = sum(logical_size(parameter) for parameter in adapter.parameters(beside=True))
    stored = adapter.tensors().values()
    return {
        "total": sizes["total"],
        "trainable": trainable,
        "trainable_without_head": adapter.num_parameters(),
        "head": sizes["head"],
        "added": adapter.num_added(),
        "adapted": sum(logical_size(weight) for weight in adapter.adapted_weights()),
        "stored": sum(tensor.numel() for tensor in stored),
        "adapter_bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
        "model_bytes": sum(p.numel() * p.element_size() for p in adapter.model.parameters()),
    }


def count_model(backbone: Backbone) -> dict[str, int]:
    """Elements of all parameters, and of the head's."""
    return {
        "total": sum(logical_size(parameter) for parameter in backbone.model.parameters()),
        "head": sum(logical_size(parameter) for _, parameter in backbone.head_parameters()),
    }
