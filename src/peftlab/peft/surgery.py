"""Tools for changing a model in place, shared by the methods.

A linear layer may be ``nn.Linear`` (weight (out, in)), one of its bitsandbytes subclasses, or GPT-2's
``Conv1D`` (weight (in, out)); these helpers hide the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Target
from peftlab.errors import PeftlabError, listed
from peftlab.seeding import derive_seed

V = TypeVar("V")


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where ``model`` has its submodule ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is GPT-2's Conv1D: a linear layer that stores its weight as (in, out)."""
    # by its line of classes: a parametrised layer is of a class of its own below Conv1D
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__) and hasattr(module, "nf")


def linear_features(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a linear layer.

    Raises:
        PeftlabError: if it is none.
    """
    if isinstance(module, nn.Linear):  # bitsandbytes' layers are subclasses, with packed weights
        return module.in_features, module.out_features
    if is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.shape[0], weight.shape[1]
    raise PeftlabError(f"a linear layer is needed, not a {type(module).__name__}.")


def is_quantized(module: nn.Module) -> bool:
    """Whether ``module`` keeps its weight in 4 or 8 bits."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer or embedding as a float matrix (out, in); dequantised if it is in 4 or 8 bits.

    A view of the weight itself where that is possible: write into it only under ``torch.no_grad``. An embedding
    maps (vocabulary) to (dim), so its matrix is (dim, vocabulary).
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Embedding) or is_conv1d(module):
        return weight.T
    if not is_quantized(module):
        return weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        dense: Tensor = dequantize_4bit(weight.data, state)
        return dense
    scales = getattr(weight, "SCB", None)
    if scales is None:  # the layer takes them over at its first product
        scales = module.state.SCB  # type: ignore[union-attr]
    assert isinstance(scales, Tensor)
    return weight.data.float() * (scales[:, None] / 127)  # each row is scaled to the range -127 … 127


def require_float(name: str, module: nn.Module) -> None:
    """Raise PeftlabError if the weight of the module ``name`` is in 4 or 8 bits, which no update can be merged into."""
    if is_quantized(module):
        raise PeftlabError(
            f"'{name}' keeps its weight in 4 or 8 bits: merging would round the changed weight to that grid again and "
            "lose most of the change. `peftlab export RUN --to FOLDER --merged` writes a merged model in floats; "
            "backbone.quantize=null builds the backbone in floats."
        )


def dequantize(model: nn.Module) -> None:
    """Replace every linear layer in 4 or 8 bits by a plain one with the very weights that it multiplies with."""
    for name, module in list(model.named_modules()):
        if not (isinstance(module, nn.Linear) and is_quantized(module)):
            continue
        weight, bias = weight_matrix(module).detach(), module.bias
        layer = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        replace_module(model, name, layer.train(module.training))


def target_features(target: Target) -> tuple[int, int]:
    """(in, out) features of a target: of a slice out is the slice's, of an embedding (vocabulary, width).

    Raises:
        PeftlabError: if it is neither a linear layer nor an embedding.
    """
    module = target.module
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    in_features, out_features = linear_features(module)
    if target.output_slice is None:
        return in_features, out_features
    return in_features, len(range(*target.output_slice.indices(out_features)))


def require_linear(targets: Iterable[Target], key: str = "peft.targets") -> None:
    """Raise PeftlabError, naming the config ``key``, for a target that is an embedding."""
    for target in targets:
        if isinstance(target.module, nn.Embedding):
            raise PeftlabError(
                f"{key}: '{target.name}' is an embedding, and this method needs linear layers. Take it out of {key} "
                "(peft=lora adapts embeddings)."
            )


def part_name(target: Target) -> str:
    """Key of ``target`` among the deltas of its layer: the role of a slice, ``all`` for the whole output."""
    return target.role if target.output_slice is not None and target.role else "all"


def random_stream(target: Target) -> str:
    """Name of the generator that what stands at ``target`` starts from."""
    return f"{target.name}/{target.role or ''}"


def adapter_generator(seed: int, name: str) -> torch.Generator:
    """The generator of the adapter at module ``name``.

    One for each place, so that neither the other targets nor anything else that draws random numbers
    changes how an adapter starts.
    """
    return torch.Generator().manual_seed(derive_seed(seed, "adapter", name))


def pattern_value(pattern: Mapping[str, V], target: Target, default: V) -> V:
    """The entry of ``pattern`` whose key is ``target``'s role, or matches its name; else ``default``.

    A key matches a name as HF peft matches it: the whole name, or its end from a dot on.
    """
    for key, value in pattern.items():
        if pattern_matches(key, target):
            return value
    return default


def pattern_matches(key: str, target: Target) -> bool:
    """Whether a pattern's ``key`` means ``target``."""
    return key == target.role or re.fullmatch(rf"(.*\.)?({key})", target.name) is not None


def require_patterns_used(key: str, pattern: Iterable[str], targets: Sequence[Target]) -> None:
    """Raise for a pattern that matches no target: most often a typo, and silently without effect.

    Raises:
        PeftlabError: naming the config ``key``, the pattern and the targets.
    """
    for entry in pattern:
        try:
            used = any(pattern_matches(entry, target) for target in targets)
        except re.error as error:
            raise PeftlabError(f"{key}: '{entry}' is not a regular expression: {error}.") from error
        if not used:
            raise PeftlabError(f"{key}: '{entry}' matches none of the targets: {listed(t.name for t in targets)}.")
