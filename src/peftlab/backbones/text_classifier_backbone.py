"""Building what :class:`~peftlab.backbones.text_classifier.TextClassifierConfig` asks for, and the backbone itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.base import Backbone
from peftlab.backbones.glove import cached_glove
from peftlab.backbones.tokenizers import WordTokenizer
from peftlab.errors import BackboneError
from peftlab.seeding import derive_seed

if TYPE_CHECKING:
    from peftlab.backbones.text_classifier import TextClassifierConfig

VOCABULARY_FILE = "vocabulary.json"


def build(
    given: TextClassifierConfig,
    num_labels: int,
    *,
    seed: int,
    train_texts: Sequence[str] | None = None,
    run_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> TextClassifierBackbone:
    """See :meth:`TextClassifierConfig.build <peftlab.backbones.text_classifier.TextClassifierConfig.build>`."""
    tokenizer = _tokenizer(given, train_texts, run_folder, torch.device(device))
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would reseed the accelerators' as well.
        torch.default_generator.manual_seed(derive_seed(seed, "backbone"))
        model = TextClassifier(len(tokenizer), given.embedding_dim, given.hidden_dim, num_labels)
    provenance: dict[str, Any] = {"source": "random", "vocabulary": len(tokenizer), "quantize": None}
    # A finished run's word vectors are rebuilt the same way: from the seed, then from the file.
    if given.glove is not None and torch.device(device).type != "meta":
        words = {word: row for row, word in enumerate(tokenizer.vocabulary) if row > tokenizer.unknown_id}
        path = Path(given.glove).expanduser()
        hits = cached_glove(path, given.embedding_dim, words, model.embedding.weight.data)
        provenance |= {
            "source": "glove",
            "glove": {"file": path.name, "found": hits, "words": len(words)},
        }
    backbone = TextClassifierBackbone(model, tokenizer, provenance, freeze_embedding=given.freeze)
    return backbone.to(device)


def _tokenizer(
    given: TextClassifierConfig, texts: Sequence[str] | None, run_folder: Path | None, device: torch.device
) -> WordTokenizer:
    if run_folder is not None:
        return WordTokenizer.load(run_folder / VOCABULARY_FILE)
    if texts is not None:
        return WordTokenizer.count(texts, given.vocabulary_size, given.min_count)
    if device.type == "meta":  # shapes only: parameters are counted for a full vocabulary
        return WordTokenizer([f"<{index}>" for index in range(given.vocabulary_size)])
    raise BackboneError(
        "the text classifier counts its vocabulary on the training texts, and none were given; give "
        "train_texts, "
        f"or run_folder with the {VOCABULARY_FILE} of a finished run."
    )


class TextClassifier(nn.Module):
    """(B, T) token ids to (B, C) logits: mean word vector, Linear, ReLU, Linear."""

    def __init__(self, vocabulary: int, embedding_dim: int, hidden_dim: int, num_labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=WordTokenizer.pad_id)
        self.hidden = nn.Linear(embedding_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, C) of ids (B, T); padding, where the mask (B, T) is 0, counts for nothing."""
        counts = attention_mask.sum(dim=1)  # (B,)
        if type(self.embedding) is nn.Embedding:
            # Sums the rows where they lie, without the (B, T, E) vectors: many times faster on long texts.
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
            words = input_ids[attention_mask.bool()]  # (tokens of all texts,)
            mean = F.embedding_bag(words, self.embedding.weight, starts, mode="mean")  # (B, E)
        else:  # a method stands around the embedding
            vectors = self.embedding(input_ids)  # (B, T, E)
            weights = attention_mask.unsqueeze(-1).to(vectors.dtype)  # (B, T, 1)
            mean = (vectors * weights).sum(dim=1) / counts.clamp(min=1).unsqueeze(-1)  # (B, E)
        logits: Tensor = self.output(torch.relu(self.hidden(mean)))
        return logits


class TextClassifierBackbone(Backbone):
    """The text classifier with its vocabulary."""

    architecture = "text_classifier"

    def __init__(
        self,
        model: TextClassifier,
        tokenizer: WordTokenizer,
        provenance: dict[str, Any],
        *,
        freeze_embedding: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._vocabulary = tokenizer.to_json()
        self._freeze_embedding = freeze_embedding
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.provenance = {"architecture": self.architecture, "parameters": parameters, **provenance}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Logits (B, C) of ids (B, T) and mask (B, T); rows of all tasks are read alike."""
        logits: Tensor = self.model(input_ids, attention_mask)
        return logits

    def head_modules(self) -> list[str]:
        """The last layer."""
        return ["output"]

    def always_frozen(self) -> list[str]:
        """The embedding's weight under ``freeze=true``."""
        return ["embedding.weight"] if self._freeze_embedding else []

    def files(self) -> dict[str, str]:
        """The vocabulary, without which the ids mean nothing."""
        return {VOCABULARY_FILE: self._vocabulary}
