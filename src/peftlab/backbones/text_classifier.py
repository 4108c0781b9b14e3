"""The small text classifier: word embeddings, averaged, then two linear layers.

It trains in seconds on a CPU and needs no download, which makes it the model to debug a method on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.base import Backbone
from peftlab.backbones.config import BackboneConfig
from peftlab.backbones.glove import cached_glove
from peftlab.backbones.tokenizers import WordTokenizer
from peftlab.errors import BackboneError
from peftlab.fields import PositiveInt
from peftlab.seeding import derive_seed

VOCABULARY_FILE = "vocabulary.json"


@dataclass(kw_only=True)
class TextClassifierConfig(BackboneConfig):
    """Averaged word embeddings, a hidden layer with ReLU, and a linear head."""

    name_or_path: str | None = None
    """Always null: this backbone starts from random (or GloVe) vectors, not from a checkpoint."""
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    """Always null: its two linear layers take a few kilobytes."""
    embedding_dim: PositiveInt = 100
    """Dimension of a word's vector."""
    hidden_dim: PositiveInt = 128
    """Width of the hidden layer."""
    vocabulary_size: PositiveInt = 20000
    """Most words the vocabulary keeps, the most frequent first; padding and unknown come on top."""
    min_count: PositiveInt = 1
    """Times a word must occur in the training texts to be kept."""
    freeze: bool = True
    """Keep the embedding as it is whatever the PEFT method, full fine-tuning included."""
    glove: str | None = None
    """Path of a GloVe text file with vectors of ``embedding_dim``; null: random vectors."""

    def __post_init__(self) -> None:
        if self.name_or_path is not None:
            raise BackboneError(
                f"backbone.name_or_path={self.name_or_path}: the text classifier has no checkpoint to "
                f"load. Set "
                "backbone.name_or_path=null; backbone.glove=<file> gives word vectors, and backbone=minilm, "
                "backbone=roberta_base, ... are backbones with pretrained weights."
            )
        if self.quantize is not None:
            raise BackboneError(
                f"backbone.quantize={self.quantize}: the text classifier's linear layers take a few "
                f"kilobytes, so "
                "there is nothing to save. Set backbone.quantize=null, or choose a transformer "
                "(backbone=minilm)."
            )
        if self.glove is not None and self.from_run is not None:
            raise BackboneError(
                f"backbone.glove={self.glove}: the word vectors come from backbone.from_run={self.from_run}. "
                "Keep one of the two, and set the other to null."
            )

    def weight_files(self) -> list[Path]:
        """The GloVe file, if there is one, and the files of ``from_run``.

        Raises:
            BackboneError: if one of them is missing.
        """
        if self.glove is None:
            return super().weight_files()
        file = Path(self.glove).expanduser()
        if not file.is_file():
            raise BackboneError(
                f"backbone.glove={self.glove}: there is no such file. Give a GloVe text file (glove.6B.100d.txt), or "
                "null for random vectors."
            )
        return [*super().weight_files(), file]

    def build(
        self,
        num_labels: int,
        *,
        seed: int,
        train_texts: Sequence[str] | None = None,
        run_folder: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> TextClassifierBackbone:
        """See :meth:`BackboneConfig.build`; on ``meta`` without texts the vocabulary counts as full."""
        tokenizer = self._tokenizer(train_texts, run_folder, torch.device(device))
        with torch.random.fork_rng(devices=[]):
            # Only the CPU's generator: torch.manual_seed would reseed the accelerators' as well.
            torch.default_generator.manual_seed(derive_seed(seed, "backbone"))
            model = TextClassifier(len(tokenizer), self.embedding_dim, self.hidden_dim, num_labels)
        provenance: dict[str, Any] = {"source": "random", "vocabulary": len(tokenizer), "quantize": None}
        # A finished run's word vectors are rebuilt the same way: from the seed, then from the file.
        if self.glove is not None and torch.device(device).type != "meta":
            words = {word: row for row, word in enumerate(tokenizer.vocabulary) if row > tokenizer.unknown_id}
            path = Path(self.glove).expanduser()
            hits = cached_glove(path, self.embedding_dim, words, model.embedding.weight.data)
            provenance |= {
                "source": "glove",
                "glove": {"file": path.name, "found": hits, "words": len(words)},
            }
        backbone = TextClassifierBackbone(model, tokenizer, provenance, freeze_embedding=self.freeze)
        return backbone.to(device)

    def _tokenizer(self, texts: Sequence[str] | None, run_folder: Path | None, device: torch.device) -> WordTokenizer:
        if run_folder is not None:
            return WordTokenizer.load(run_folder / VOCABULARY_FILE)
        if texts is not None:
            return WordTokenizer.count(texts, self.vocabulary_size, self.min_count)
        if device.type == "meta":  # shapes only: parameters are counted for a full vocabulary
            return WordTokenizer([f"<{index}>" for index in range(self.vocabulary_size)])
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
