"""Config of the small text classifier: word embeddings, averaged, then two linear layers.

It trains in seconds on a CPU and needs no download, which makes it the model to debug a method on. What it builds is in
:mod:`peftlab.backbones.text_classifier_backbone`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftlab.backbones.config import BackboneConfig, HeadKind
from peftlab.errors import BackboneError
from peftlab.fields import PositiveInt

if TYPE_CHECKING:
    import torch

    from peftlab.backbones.text_classifier_backbone import TextClassifierBackbone


@dataclass(kw_only=True)
class TextClassifierConfig(BackboneConfig):
    """Averaged word embeddings, a hidden layer with ReLU, and a linear head."""

    kind = "text_classifier"

    name_or_path: str | None = None
    """Always null: this backbone starts from random (or GloVe) vectors, not from trained weights."""
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
        head: HeadKind = "new",
    ) -> TextClassifierBackbone:
        """See :meth:`BackboneConfig.build`; on ``meta`` without texts the vocabulary counts as full."""
        from peftlab.backbones.text_classifier_backbone import build

        if head == "own":
            raise BackboneError(
                "backbone=text_classifier sees a text as a bag of words and says no next token: it has no head of its "
                "own. Choose a language model: backbone=smollm2_135m, gpt2 or llama, or backbone=hf "
                "backbone.name_or_path=<id or folder>."
            )

        return build(self, num_labels, seed=seed, train_texts=train_texts, run_folder=run_folder, device=device)
