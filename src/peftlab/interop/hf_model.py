"""A backbone as a plain ``transformers`` folder: the frozen base of an adapter, or a merged model."""

from __future__ import annotations

import re
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
from peftlab.data.target_rows import language_tokenizer
from peftlab.errors import PeftlabError
from peftlab.interop.whole_folder import way_out
from peftlab.records.folder import RunFolder
from peftlab.runs.assemble import Assembled, plain_weights, start_from_run


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
    head = config.data.what_is_learned().head
    return plain.build(len(label_names), seed=config.seed, run_folder=folder.path, head=head)


def merged_backbone(
    folder: RunFolder, config: RunConfig, assembled: Assembled, labels: Sequence[str]
) -> tuple[Backbone, list[str]]:
    """A plain backbone with the weights of ``assembled``, its adapter merged; and what to know of its precision.

    Args:
        folder: the run's.
        config: the run's.
        assembled: is changed by it.
        labels: names of the classes.

    Raises:
        PeftlabError: if the method cannot be merged, or the model is not what ``transformers`` computes.
    """
    given = transformer_of(config)
    require_pooling(given, "--merged")
    plain = untouched_backbone(folder, config, labels)
    weights = plain_weights(assembled, plain.model)
    with torch.no_grad():
        for name, tensor in plain.model.state_dict(keep_vars=True).items():
            tensor.copy_(weights[name])
    return plain, _precision_notes(given)


def _precision_notes(config: TransformerConfig) -> list[str]:
    """What a merged model says of a backbone that was in 4 or 8 bits."""
    if config.quantize is None:
        return []
    activations = (
        " In the run its activations were rounded to 8 bits as well, here they are not: logits differ by that much."
        if config.quantize == "int8"
        else " Its logits are those of the run, within the rounding of its sums."
    )
    return [
        f"The run kept the backbone in {config.quantize} (bitsandbytes). These are the weights that it computed with, "
        f"rounded to {config.quantize} once, then written as {config.dtype} with the update added, which was not "
        f"rounded.{activations} The original weights with this update would compute something else."
    ]


def require_pooling(config: TransformerConfig, option: str) -> None:
    """Raise PeftlabError if the head sees a mean, which no model of ``transformers`` gives it."""
    if config.pooling == "mean":
        raise PeftlabError(
            f"{option}: this run's head reads the mean over the text's tokens (backbone.pooling=mean), and the "
            "classifiers of transformers give theirs the first or the last token: the logits would be others. Export "
            "with --trunk-only (the adapter for AutoModel, the head beside it), or train with backbone.pooling=model."
        )


GENERATION_FILE = "generation_config.json"


def generation_fields(config: RunConfig, backbone: Backbone) -> dict[str, Any]:
    """How a language model ends its answers: fields of ``generation_config.json``; none for others.

    The stop ids are those that stand under loss, and the tokenizer's end-of-text token.
    """
    if not backbone.says_next_tokens:
        return {}
    encoder: Any = config.data.row_encoder(backbone.tokenizer)
    if hasattr(encoder, "stop_ids"):
        stop_ids = encoder.stop_ids()
    else:
        end = language_tokenizer(backbone.tokenizer).end_id
        stop_ids = [] if end is None else [end]
    begin = list(language_tokenizer(backbone.tokenizer).begin)
    return {
        "eos_token_id": stop_ids or None,
        "pad_token_id": backbone.tokenizer.pad_id,
        "bos_token_id": begin[0] if begin else None,
    }


def save_model(
    backbone: Backbone, path: Path, fields: dict[str, Any], generation: dict[str, Any] | None = None
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into ``path``.

    Args:
        backbone: the model.
        path: an empty folder.
        fields: of config.json, which say what the outputs are.
        generation: of generation_config.json, which a language model has; None: nothing is changed there.

    Raises:
        PeftlabError: if it cannot be written, as on a full disk.
    """
    model: Any = backbone.model
    for name, value in fields.items():
        setattr(model.config, name, value)
    if generation:
        # a run has no use for a cache, and whoever generates has; what we say is not made anew from config.json
        model.config.use_cache = model.generation_config.use_cache = True
        model.generation_config._from_model_config = False
        for name, value in generation.items():
            setattr(model.generation_config, name, value)
    try:
        with quiet_transformers():
            model.save_pretrained(path)
            if isinstance(backbone.tokenizer, HFTokenizer):
                backbone.tokenizer.save(path)
    except SafetensorError as error:
        number = re.search(r"\bcode: (\d+)", str(error))  # safetensors has its own class for the system's errors
        advice = way_out(int(number[1]) if number else None)
        raise PeftlabError(f"cannot write {path}: {error}. Nothing was left there. {advice}") from error
