"""Soft prompts as new words of the vocabulary.

The n vectors of a soft prompt get the ids behind the vocabulary's last one. A text's ids are extended by
those ids, and the token embedding, wrapped, answers them with the vectors. The model itself then treats them
as tokens: positions, padding, sliding windows, the place of a decoder's last token and T5's shifted decoder
input come out as for any text, where a model that is given vectors instead of ids has to guess them.

The vectors stand where the embedding's output stands: what a model does to that output afterwards (positions,
LayerNorm, ELECTRA's and ALBERT's projection to the hidden size) it does to them too; Gemma's √d belongs to
its embedding, so they are not multiplied by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.errors import BackboneError

PromptPosition = Literal["before", "after_first"]


@dataclass(frozen=True)
class PromptPlacement:
    """Where the prompt's ids go: in front of the text, or behind its first token."""

    first_id: int
    """Id of the first vector: the size of the vocabulary."""
    length: int
    """Vectors n that stand in a text."""
    position: PromptPosition
    task: int = 0
    """The prompt of rows without a task of their own; prompts of several tasks lie behind each other."""

    def rows(self, batch: int, task_ids: Tensor | None = None, device: torch.device | None = None) -> Tensor:
        """Ids (B, n) of the vectors of each row: those of ``task_ids`` (B,), or of :attr:`task`."""
        steps = torch.arange(self.length, device=device)
        if task_ids is None:
            return (self.first_id + self.task * self.length + steps).expand(batch, -1)
        return self.first_id + task_ids.to(steps.device).unsqueeze(1) * self.length + steps

    def insert(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the prompt into a batch.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 on tokens.
            task_ids: (B,) the task of each row; None: :attr:`task` for all of them.

        Returns:
            ids, the mask of tokens and prompt, and the mask of the text's tokens alone, each (B, n + T).
        """
        start = 1 if self.position == "after_first" else 0
        prompt = self.rows(input_ids.shape[0], task_ids, input_ids.device)
        seen = torch.ones_like(prompt, dtype=attention_mask.dtype)

        def spliced(text: Tensor, between: Tensor) -> Tensor:
            return torch.cat([text[:, :start], between, text[:, start:]], dim=1)

        return (
            spliced(input_ids, prompt),
            spliced(attention_mask, seen),
            spliced(attention_mask, torch.zeros_like(seen)),
        )


class PromptedEmbedding(nn.Module):
    """A token embedding that answers the ids behind its vocabulary with the vectors of a soft prompt."""

    def __init__(self, base: nn.Module, vectors: nn.Module) -> None:
        """``vectors()`` returns (rows, d), in the embedding's dimension d."""
        super().__init__()
        self.base = base
        self.vectors = vectors

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids → (B, T, d), in the base's dtype."""
        row = ids - self.num_embeddings
        words: Tensor = self.base(ids.clamp(max=self.num_embeddings - 1))
        prompt = F.embedding(row.clamp(min=0), self.vectors().to(words.dtype))
        return torch.where((row >= 0).unsqueeze(-1), prompt, words)

    @property
    def weight(self) -> Tensor:
        """The frozen vocabulary: some models look at its dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary without the prompt."""
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Dimension d of a word's vector."""
        return int(self.weight.shape[1])


Holder = tuple[nn.Module, str, nn.Module]
"""A module, the name of its child that is the token embedding, and that child."""


def word_table(model: Any) -> nn.Module:
    """The token embedding of a ``transformers`` model.

    Raises:
        BackboneError: if it has none (CANINE's are made of several hashes).
    """
    try:
        table: nn.Module = model.get_input_embeddings()
    except NotImplementedError:
        raise BackboneError(
            f"{type(model).__name__} has no table of words that a soft prompt could stand beside. Choose a method that "
            "adapts its layers (peft=lora), or another backbone."
        ) from None
    return table


def wrap_token_embedding(model: Any, vectors: nn.Module) -> tuple[int, list[Holder]]:
    """Wrap the token embedding of a ``transformers`` model.

    Every place with this embedding is changed: T5's encoder and decoder have modules of their own with one weight.

    Returns:
        the id of the first vector, and what stood in each place.

    Raises:
        BackboneError: if the model has no such embedding.
    """
    base = word_table(model)
    holders = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child is base or (isinstance(child, nn.Embedding) and child.weight is base.weight)
    ]
    wrapped = PromptedEmbedding(base, vectors)
    for parent, name, _ in holders:
        setattr(parent, name, wrapped)
    return wrapped.num_embeddings, holders
