"""What every backbone offers: a forward pass, an inner model for surgery, a tokenizer and a head.

Its config lives apart (:mod:`peftlab.backbones.config`), so that reading a config imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class Tokenizer(Protocol):
    """Texts to token ids; what the data module needs and no more."""

    pad_id: int
    fingerprint: str
    """Hash of everything that decides the ids; the key of the token cache."""

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length``, not padded."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, for people to look at."""
        ...


@dataclass(frozen=True)
class Target:
    """One place a method can adapt: a module, or a slice of a fused projection's output."""

    name: str
    """Qualified name of the module inside :attr:`Backbone.model`."""
    module: nn.Module
    role: str | None
    """``query``, ``value``, ... when chosen by role; None when chosen by regex."""
    output_slice: slice | None = None
    """Rows of the output this target stands for; None: all of them."""


class Backbone(nn.Module, ABC):
    """A classifier over token ids whose inner ``model`` strategies may operate on.

    ``model``: the network; adapters are put into it. ``tokenizer``: its tokenizer.
    ``architecture``: key of the role table. ``provenance``: plain containers for the record
    (where the weights came from, revision or hash).
    """

    model: nn.Module
    tokenizer: Tokenizer
    architecture: str
    provenance: dict[str, Any]

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Class scores.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 1 on tokens and 0 on padding; padding is on the right.

        Returns:
            logits (B, C), float.
        """

    @abstractmethod
    def head_modules(self) -> list[str]:
        """Qualified names, inside ``model``, of the modules that are the classification head."""

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters of the head."""
        return [
            (f"{name}.{inner}" if inner else name, parameter)
            for name in self.head_modules()
            for inner, parameter in self.model.get_submodule(name).named_parameters()
        ]

    def always_frozen(self) -> list[str]:
        """Names, inside ``model``, of parameters that no strategy trains, not even full fine-tuning."""
        return []

    def check_length(self, max_length: int) -> None:
        """Refuse a ``max_length`` in tokens that the model has no positions for.

        Raises:
            BackboneError: naming ``data.max_length`` and the limit.
        """

    def files(self) -> dict[str, str]:
        """Small text files a run must keep to be rebuilt (a vocabulary): file name to content."""
        return {}
