"""A backbone as a plain ``transformers`` folder: the frozen base of an adapter, or a merged model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from peftlab.backbones.base import Backbone
from peftlab.backbones.quiet import quiet_transformers
from peftlab.backbones.tokenizers import HFTokenizer
from peftlab.backbones.transformer import TransformerConfig
from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.peft.surgery import unwrap_merged
from peftlab.runs.assemble import Assembled, start_from_run
from peftlab.runs.folder import RunFolder


def transformer_of(config: RunConfig) -> TransformerConfig:
    """The backbone's config.

    Raises:
        PeftlabError: if it is no transformer of ``transformers``.
    """
    if not isinstance(config.backbone, TransformerConfig):
        raise PeftlabError(
            f"this run's backbone is a {type(config.backbone).__name__.removesuffix('Config')} of peftlab's own, which "
            "neither transformers nor HF peft can build. Only runs on a transformer can be exported; "
            "adapter.safetensors in the run's folder holds the trained tensors."
        )
    return config.backbone


def untouched_backbone(folder: RunFolder, config: RunConfig, label_names: Sequence[str]) -> Backbone:
    """The backbone as it was before training, never quantised."""
    plain = replace(transformer_of(config), quantize=None)
    if plain.from_run is not None:
        return start_from_run(config, label_names)
    return plain.build(len(label_names), seed=config.seed, run_folder=folder.path)


def merged_backbone(folder: RunFolder, config: RunConfig, assembled: Assembled, labels: Sequence[str]) -> Backbone:
    """A plain backbone with the weights of ``assembled``, its adapter merged.

    Args:
        folder: the run's.
        config: the run's.
        assembled: is changed by it.
        labels: names of the classes.

    Raises:
        PeftlabError: if the method cannot be merged, or the model is not what ``transformers`` computes.
    """
    given = transformer_of(config)
    if given.quantize is not None:
        raise PeftlabError(
            f"--merged: the backbone is in {given.quantize}, and a merged update would be rounded to that grid. Export "
            "the adapter (without --merged), and load it on the quantised model."
        )
    require_pooling(given, "--merged")
    trained = assembled.backbone
    plain = untouched_backbone(folder, config, labels)
    own = plain.model.state_dict(keep_vars=True)
    if set(trained.model.state_dict()) != set(own):
        assembled.strategy.merge(trained)
        unwrap_merged(trained.model)
    weights = trained.model.state_dict()
    assert set(own) <= set(weights), "merging has not put the backbone's own layers back"
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return plain


def require_pooling(config: TransformerConfig, option: str) -> None:
    """Raise PeftlabError if the head sees a mean, which no model of ``transformers`` gives it."""
    if config.pooling == "mean":
        raise PeftlabError(
            f"{option}: this run's head reads the mean over the text's tokens (backbone.pooling=mean), and the "
            "classifiers of transformers give theirs the first or the last token: the logits would be others. Export "
            "with --trunk-only (the adapter for AutoModel, the head beside it), or train with backbone.pooling=model."
        )


def save_model(backbone: Backbone, path: Path, label_names: Sequence[str]) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into ``path``.

    Raises:
        PeftlabError: if the disk is full.
    """
    model: Any = backbone.model
    model.config.id2label = dict(enumerate(label_names))
    model.config.label2id = {name: index for index, name in enumerate(label_names)}
    model.config.problem_type = "single_label_classification"
    try:
        with quiet_transformers():
            model.save_pretrained(path)
            if isinstance(backbone.tokenizer, HFTokenizer):
                backbone.tokenizer.save(path)
    except SafetensorError as error:
        raise PeftlabError(f"cannot write {path}: {error}. Nothing was left there; free some space.") from error
