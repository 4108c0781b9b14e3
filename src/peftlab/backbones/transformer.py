"""Config of any encoder or decoder of ``transformers`` that classifies sequences, or that is a language model.

What it builds is in :mod:`peftlab.backbones.transformer_build`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.backbones.config import BackboneConfig, HeadKind
from peftlab.errors import BackboneError
from peftlab.fields import Probability, added

if TYPE_CHECKING:
    import torch

    from peftlab.backbones.transformer_backbone import TransformerBackbone


@dataclass(kw_only=True)
class TransformerConfig(BackboneConfig):
    """A transformer with a new head that classifies, or with its own that says a next token, from one of three places.

    Exactly one of ``name_or_path``, ``package`` and ``architecture`` is given. Weights are read from
    safetensors only, and no code that comes with a model is ever run. The head stays in float32.
    """

    name_or_path: str | None = None
    """Hub id (``FacebookAI/roberta-base``), or a local folder with config.json and model.safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; null: the main branch. The record keeps the commit."""
    package: str | None = None
    """Installed Python package that carries the model's files, by the name it is imported under."""
    package_folder: str | None = None
    """Folder inside the package; null: the package itself."""
    sha256: str | None = None
    """SHA-256 of the package's model.safetensors (or GGUF file), checked before it is loaded."""
    gguf: str | None = None
    """GGUF file in the package, converted once into the cache (``$PEFTLAB_CACHE`` or ~/.cache/peftlab)."""
    architecture: dict[str, Any] | None = None
    """A random model: ``model_type`` and settings of its transformers config that differ from the default."""
    tokenizer: str | None = None
    """Hub id or folder of another tokenizer; null: the model's own, and bytes for a random model."""
    dropout: Probability | None = None
    """Dropout of hidden states, embeddings and attention; null: the model's own."""
    attention_dropout: Probability | None = None
    """Dropout of attention weights; null: as ``dropout``. Above 0 it is several times slower on CPUs."""
    fast_dropout: bool = added(False)
    """On CPUs draw dropout by random bytes (rates rounded to 1/256), and compute attention with dropout in blocks: much
    faster, by other draws. On GPUs, and in 16 bits, it changes nothing."""
    gradient_checkpointing: bool = added(False)
    """In training keep the input of each block only, and compute the block once more in backward: less memory, about a
    third more time, the same gradients."""
    cache_frozen: bool = added(False)
    """Compute what the blocks below everything that trains make of each text once, without dropout, into the cache, for
    all epochs, seeds and runs: for heads, last layers, and adapters in the top blocks."""
    skip_unread: bool = added(False)
    """Compute the last layer of an encoder of BERT's kind for the first position alone, the only one that its head
    reads: faster, equal but for the last bits."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention code: torch's scaled_dot_product_attention, or plain matrix products."""
    pooling: Literal["model", "mean"] = "model"
    """What the head sees of a text: what the model's own classifier gives it (the first or the last token),
    or the mean over the text's tokens, as sentence-embedding models are trained."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights."""

    def __post_init__(self) -> None:
        places = ("name_or_path", "package", "architecture")
        given = [name for name in places if getattr(self, name) is not None]
        if len(given) != 1:
            raise BackboneError(
                "give exactly one of backbone.name_or_path, backbone.package and backbone.architecture, got "
                f"{' and '.join(given) or 'none of them'}. Set the others to null; any model by its hub id or folder "
                "is backbone=hf backbone.name_or_path=<id or folder>."
            )
        for name, needed in (
            ("revision", "name_or_path"),
            ("package_folder", "package"),
            ("sha256", "package"),
            ("gguf", "package"),
        ):
            if getattr(self, name) is not None and needed not in given:
                raise BackboneError(
                    f"backbone.{name}={getattr(self, name)} belongs to backbone.{needed}, but the model is "
                    f"given by "
                    f"backbone.{given[0]}. Set backbone.{name}=null."
                )
        if self.skip_unread and self.pooling == "mean":
            raise BackboneError(
                "backbone.skip_unread=true computes the last layer for a text's first position, and "
                "backbone.pooling=mean reads them all. Set one of them to its default (false, model)."
            )
        if self.architecture is not None and not isinstance(self.architecture.get("model_type"), str):
            raise BackboneError(
                "backbone.architecture must name its model_type, for example "
                "backbone.architecture={model_type: bert, hidden_size: 32}."
            )

    def weight_files(self) -> list[Path]:
        """Config, weights and tokenizer files of local folders, and the files of ``from_run``."""
        return super().weight_files() + self._local("*.json", "*.safetensors", "*.txt", "*.model")

    def template_files(self) -> list[Path]:
        """See :meth:`BackboneConfig.template_files`."""
        return self._local("*.jinja")

    def _local(self, *patterns: str) -> list[Path]:
        folders = [Path(name).expanduser() for name in (self.name_or_path, self.tokenizer) if name is not None]
        return sorted({file for folder in folders if folder.is_dir() for p in patterns for file in folder.glob(p)})

    def build(
        self,
        num_labels: int,
        *,
        seed: int,
        train_texts: Sequence[str] | None = None,
        run_folder: Path | None = None,
        device: torch.device | str = "cpu",
        head: HeadKind = "new",
    ) -> TransformerBackbone:
        """See :meth:`BackboneConfig.build`; the network comes in training mode.

        On ``meta`` the weights are neither fetched nor quantised: shapes, and counts, are the full ones.
        """
        from peftlab.backbones.transformer_build import build

        return build(self, num_labels, seed=seed, device=device, head=head)
