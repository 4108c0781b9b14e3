"""Whose classes the head of a checkpoint knows: its rows are matched to the data's labels by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.networks import seeded
from peftlab.errors import listed
from peftlab.reading import read_json

_NO_NAME = re.compile(r"LABEL_\d+")
"""What transformers calls classes that nobody has named."""


def names_in(folder: Path) -> list[str]:
    """The classes of the checkpoint in ``folder``, in the order of its head's rows; none if they have no names."""
    try:
        config = read_json(folder / "config.json")
        named = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    except (OSError, ValueError, AttributeError):
        return []
    names = [named[index] for index in sorted(named)]
    return [] if all(map(_NO_NAME.fullmatch, names)) else names


@torch.no_grad()
def match_head(backbone: Backbone, label_names: Sequence[str], *, seed: int) -> None:
    """Let the head's rows stand for ``label_names``, and say in ``provenance["head"]`` what it is.

    A head from a checkpoint whose classes have the same names, in whatever order and case, keeps its rows, each at its
    name's place. If they are other classes the head is drawn anew from ``seed``. Classes without names go by position.
    """
    theirs = backbone.provenance.pop("head_classes", None)
    if theirs is None:  # the head is new
        return
    if not theirs:
        backbone.provenance["head"] = "the checkpoint's; its classes have no names, so they go by position"
        return
    wanted, known = [_plain(name) for name in label_names], [_plain(name) for name in theirs]
    if sorted(wanted) == sorted(known) and len(set(known)) == len(known):
        order = torch.tensor([known.index(name) for name in wanted])
        last = _last_layer(backbone, len(known))
        for parameter in last.parameters():
            parameter.copy_(parameter[order.to(parameter.device)].clone())
        backbone.provenance["head"] = "the checkpoint's, matched by the names of its classes"
        return
    with seeded(seed):
        for name in backbone.head_modules():
            for module in backbone.model.get_submodule(name).modules():
                _draw_anew(backbone.model, module)
    backbone.provenance["head"] = f"new: the checkpoint's knew other classes ({listed(theirs, 6)})"


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _last_layer(backbone: Backbone, outputs: int) -> nn.Linear:
    """The layer of the head whose rows are the classes."""
    layers = [
        module
        for name in backbone.head_modules()
        for module in backbone.model.get_submodule(name).modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    return layers[-1]


def _draw_anew(model: Any, module: nn.Module) -> None:
    """As transformers draws weights that a checkpoint lacks."""
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    model._init_weights(module)
