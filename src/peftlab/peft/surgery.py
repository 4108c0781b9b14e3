"""Tools for changing a model in place, shared by the methods.

A linear layer may be ``nn.Linear`` (weight (out, in)), one of its bitsandbytes subclasses, or GPT-2's
``Conv1D`` (weight (in, out)); these helpers hide the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


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


def slice_length(target: Target, out_features: int) -> int:
    """Output rows that ``target`` stands for."""
    if target.output_slice is None:
        return out_features
    return len(range(*target.output_slice.indices(out_features)))


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


def require_patterns_used(key: str, pattern: Iterable[str], targets: list[Target]) -> None:
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
