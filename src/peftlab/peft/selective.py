"""What the methods share that train some of the backbone's own tensors (BitFit, LN-tuning, LoRA's biases, ...).

A tensor stored in 16 bits, or beside a weight in 4 or 8 bits, is trained as a float32 copy of itself
(:func:`peftlab.peft.adapter.let_train`).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from peftlab.errors import PeftlabError, listed, nearest
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class SelectiveTuning(PEFTStrategy):
    """Trains tensors that the backbone has, and adds none; a method says which."""

    @abstractmethod
    def chosen(self, backbone: Backbone) -> list[str]:
        """Names, inside ``backbone.model``, of the parameters that train; never empty.

        Raises:
            PeftlabError: if there is nothing to train, listing what there is.
        """

    def select(self, backbone: Backbone) -> Selection:
        """The tensors that train; raises PeftlabError if one is stored in 4 or 8 bits."""
        names = self.chosen(backbone)
        for name in names:
            if not backbone.model.get_parameter(name).is_floating_point():
                raise PeftlabError(
                    f"peft={self.name}: '{name}' is stored in {backbone.provenance.get('quantize')}, which cannot be "
                    "trained; biases and normalisation layers stay in float. Select those only, or set "
                    "backbone.quantize=null."
                )
        return Selection(backbone, trains=names)

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Let the selected tensors train; ``seed`` decides nothing."""
        adapter = Adapter(self, selection.backbone)
        adapter.train_own(selection.trains)
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Elements of the selected tensors."""
        own = own_parameters(backbone)
        return sum(own[name].numel() for name in self.chosen(backbone))


def own_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The backbone's parameters outside the head, without those that no method trains."""
    left_out = {*backbone.always_frozen(), *(name for name, _ in backbone.head_parameters())}
    return {name: p for name, p in backbone.model.named_parameters() if name not in left_out}


def matching(key: str, entry: str, names: Iterable[str], kind: str) -> list[str]:
    """The ``names`` that ``entry`` means: the name itself, its end from a dot on, or a regex for all of it.

    Raises:
        PeftlabError: naming the config ``key`` and what ``kind`` of thing there is, if none matches.
    """
    names = list(names)
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise PeftlabError(f"{key}: '{entry}' is not a regular expression: {error}.") from error
    found = [name for name in names if name.endswith(f".{entry}") or name == entry or pattern.fullmatch(name)]
    if not found:
        short = compressed(names)
        endings = {ending for name in names for ending in (name, name.rpartition(".")[2])}
        raise PeftlabError(
            f"{key}: '{entry}' matches none of the {kind} outside the head.{nearest(entry, endings)} "
            f"There are (any layer number is *): {listed(short)}."
        )
    return found


def compressed(names: Iterable[str]) -> list[str]:
    """Each name once with ``*`` for layer numbers: ``encoder.layer.*.output.dense.bias``."""
    return sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names})


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalises: LayerNorm, or one of the many RMSNorm classes of transformers."""
    return type(module).__name__.endswith("Norm")
