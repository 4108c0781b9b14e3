"""What every backbone offers: a forward pass, an inner model for surgery, a tokenizer and a head.

Its config lives apart (:mod:`peftlab.backbones.config`), which imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from peftlab.errors import BackboneError


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
    also: tuple[str, ...] = ()
    """Further modules with the same table, as T5's encoder and decoder have them: what adapts one adapts them all."""


class Backbone(nn.Module, ABC):
    """A classifier over token ids whose inner ``model`` strategies may operate on.

    ``model``: the network; adapters are put into it. ``tokenizer``: its tokenizer.
    ``architecture``: key of the role table. ``provenance``: plain containers for the record
    (where the weights came from, revision or hash).
    """

    task_prompts: int = 1
    """Soft prompts that rows of different tasks are read with; 1: all rows are read alike."""
    prompt_position: Literal["before", "after_first"] | None = None
    """Where a soft prompt stands in a text; None: there is none."""
    pools_mean: bool = False
    """Whether the head reads the mean over a text's tokens, :meth:`text_mean`."""
    reads_first_alone: bool = False
    """Whether its last block hands on a text's first position alone, (B, 1, d)."""
    recomputes: bool = False
    """Whether a step computes its blocks a second time in backward."""
    says_next_tokens: bool = False
    """Whether it is a language model, whose outputs are logits of a next token, (B, T, V)."""
    longest_text: int | None = None
    """Tokens of the longest text, once :meth:`check_length` has accepted it; None: nobody has asked."""
    model: nn.Module
    tokenizer: Tokenizer
    architecture: str
    provenance: dict[str, Any]

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 1 on tokens and 0 on padding; padding is on the right.
            task_ids: (B,) int64, the task of each row; only given for data of several tasks. It matters where a
                soft prompt has vectors for each task, and nowhere else.

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

    def check_length(self, max_length: int, *, extra_tokens: int = 0) -> None:
        """Refuse a ``max_length`` in tokens that the model has no positions for.

        Args:
            max_length: tokens of the longest text.
            extra_tokens: places that a method takes beside them (``PEFTStrategy.extra_tokens``).

        Raises:
            BackboneError: naming ``data.max_length`` and the limit.
        """

    def token_embedding(self) -> nn.Module:
        """The module that turns ids (B, T) into vectors (B, T, d), for methods that add vectors of their own.

        Raises:
            BackboneError: if the model is no sequence model, so that added vectors would mean nothing.
        """
        raise BackboneError(
            f"{self.architecture} does not read its tokens as a sequence, so it cannot take a soft prompt. Choose a "
            "transformer (backbone=minilm, backbone=roberta_base, …), or another method (peft=lora)."
        )

    def add_soft_prompt(
        self,
        vectors: nn.Module,
        *,
        length: int,
        position: Literal["auto", "before", "after_first"],
        task: int = 0,
        tasks: int = 1,
    ) -> None:
        """Let every text be read with a soft prompt in it.

        Args:
            vectors: called without arguments it returns (tasks · ``length``, d), d that of :meth:`token_embedding`.
                It becomes a part of ``model``.
            length: vectors that stand in a text.
            position: in front of the text, behind its first token, or as the model reads its texts.
            task: which of the prompts in ``vectors`` to use for rows without a task of their own.
            tasks: prompts in ``vectors``; with several of them, rows with ``task_ids`` are read with their own.

        Raises:
            BackboneError: as :meth:`token_embedding`.
        """
        self.token_embedding()
        raise NotImplementedError(f"{type(self).__name__} has token embeddings, but no add_soft_prompt")

    def without_soft_prompt(self) -> AbstractContextManager[None]:
        """Inside, texts are read as before :meth:`add_soft_prompt`."""
        self.token_embedding()
        raise NotImplementedError(f"{type(self).__name__} has token embeddings, but no without_soft_prompt")

    def remove_soft_prompt(self) -> None:
        """Undo :meth:`add_soft_prompt`."""
        self.token_embedding()
        raise NotImplementedError(f"{type(self).__name__} has token embeddings, but no remove_soft_prompt")

    def text_mean(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean (B, d) over each text's tokens, before the head, where :attr:`pools_mean`."""
        raise NotImplementedError(f"{type(self).__name__} pools no mean")

    def given_mean(self, mean: Tensor) -> AbstractContextManager[None]:
        """Inside, :meth:`forward` goes on from ``mean``, which is what :meth:`text_mean` has said of the texts."""
        raise NotImplementedError(f"{type(self).__name__} pools no mean")

    def network(self) -> nn.Module:
        """What :meth:`forward` calls for the whole of its work: the model, or its trunk."""
        return self.model

    def without_a_look(self, *, full: bool) -> AbstractContextManager[None]:
        """Inside, the model computes what it always computes, but is told whether a batch is ``full``.

        Models that look for padding themselves take other ways without any; on a GPU a look waits for the device.
        """
        return nullcontext()

    def files(self) -> dict[str, str]:
        """Small text files a run must keep to be rebuilt (a vocabulary): file name to content."""
        return {}
