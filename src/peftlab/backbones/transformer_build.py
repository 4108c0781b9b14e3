"""Building what :class:`~peftlab.backbones.transformer.TransformerConfig` asks for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftlab.backbones.config import HeadKind
from peftlab.backbones.head_labels import names_in
from peftlab.backbones.language_model import LanguageModelBackbone, output_layer, require_head_may_train
from peftlab.backbones.networks import (
    folder_config,
    head_modules,
    keep_head_in_float32,
    pretrained_network,
    random_config,
    random_network,
)
from peftlab.backbones.quantize import quantize
from peftlab.backbones.quiet import quiet_transformers
from peftlab.backbones.settings import set_dropout, text_configs
from peftlab.backbones.sources import (
    Source,
    check_sha256,
    package_file_folder,
    require_safetensors,
    resolve,
)
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError

if TYPE_CHECKING:
    from peftlab.backbones.transformer import TransformerConfig


def build(
    given: TransformerConfig,
    num_labels: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    head: HeadKind = "new",
) -> TransformerBackbone:
    """See :meth:`TransformerConfig.build <peftlab.backbones.transformer.TransformerConfig.build>`."""
    device = torch.device(device)
    key, source = _source(given, weights=device.type != "meta")
    if source is None:
        config = random_config(dict(given.architecture or {}), num_labels, head=head)
    else:
        config = folder_config(source.folder, key, num_labels, head=head)
    tokenizer, tokenizer_source = _tokenizer(given, key, source, config)
    _settle(given, config, tokenizer)
    dtype: torch.dtype = getattr(torch, given.dtype)
    if source is None or device.type == "meta":
        model = random_network(config, dtype=dtype, attention=given.attention, seed=seed, device=device, head=head)
        new = [] if source is None else sorted(f"{name}.*" for name in head_modules(model, []) if head != "own")
    else:
        require_safetensors(source.folder, key)
        model, new = pretrained_network(
            source.folder, config, key=key, dtype=dtype, attention=given.attention, seed=seed, head=head
        )
    outputs = _new_head(model, new, key) if head != "own" else [output_layer(model, key)]
    trained = outputs if head != "own" or given.train_head else []
    if head == "own":
        _require_fits_own_head(given, model, key)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if dtype != torch.float32:
        keep_head_in_float32(model, trained)
    if given.quantize is not None and device.type != "meta":
        quantize(model, given.quantize, keep=outputs, device=device)
    if given.fast_dropout:
        from peftlab.backbones.fast_dropout import use_fast_dropout

        use_fast_dropout(model)
    if given.skip_unread:
        from peftlab.backbones.unread import skip_unread

        skip_unread(model, key)
    if given.gradient_checkpointing:
        from peftlab.backbones.checkpointing import use_gradient_checkpointing

        use_gradient_checkpointing(model, config.model_type)
    provenance = {
        **(source.provenance if source else {"source": "random", "settings": dict(given.architecture or {})}),
        "architecture": config.model_type,
        "parameters": parameters,
        "dtype": given.dtype,
        "quantize": given.quantize,
        "new_weights": "all" if source is None else new,
    }
    if tokenizer_source is not None:
        provenance["tokenizer"] = tokenizer_source.provenance  # of the hub, its commit
    model = model.to(device).train()
    if head == "own":
        language_model = LanguageModelBackbone(model, tokenizer, trained, provenance)
        language_model.recomputes = given.gradient_checkpointing
        return language_model
    if source is not None and not any(name.startswith(tuple(f"{module}." for module in outputs)) for name in new):
        provenance["head_classes"] = names_in(source.folder)  # taken out again by match_head
    backbone = TransformerBackbone(model, tokenizer, outputs, provenance, pooling=given.pooling)
    backbone.recomputes = given.gradient_checkpointing
    backbone.reads_first_alone = given.skip_unread
    return backbone


def _new_head(model: nn.Module, new: list[str], key: str) -> list[str]:
    """The modules of the new head of ``model``, whose weights ``new`` were not in the checkpoint."""
    found = head_modules(model, new)
    if not found:
        raise BackboneError(
            f"{key}: {model.config.model_type} keeps its classifier inside its trunk, so that the two cannot be told "  # type: ignore[union-attr]
            "apart and a new head could not be trained. Choose another backbone."
        )
    return found


def _require_fits_own_head(given: TransformerConfig, model: nn.Module, key: str) -> None:
    """Refuse what has no meaning for a head that says a next token after each token."""
    if given.pooling != "model":
        raise BackboneError(
            f"backbone.pooling={given.pooling}: a language model says a next token after each token, so there is "
            "nothing to pool. Set backbone.pooling=model."
        )
    if given.skip_unread:
        raise BackboneError(
            "backbone.skip_unread=true: a language model says a next token after each token, so all of them are read. "
            "Set backbone.skip_unread=false."
        )
    if given.train_head:
        require_head_may_train(model, key)


def _source(given: TransformerConfig, *, weights: bool) -> tuple[str, Source | None]:
    """The config key to name in messages, and the folder (None: a random model)."""
    if given.name_or_path is not None:
        key = f"backbone.name_or_path={given.name_or_path}"
        return key, resolve(given.name_or_path, given.revision, "backbone.name_or_path", weights=weights)
    if given.package is None:
        return "backbone.architecture", None
    folder, version = package_file_folder(given.package, given.package_folder)
    file = folder / (given.gguf or "model.safetensors")
    if not file.is_file():
        raise BackboneError(f"backbone.package={given.package}: version {version} has no file {file}.")
    sha256 = check_sha256(file, given.sha256)
    if given.gguf is not None:
        from peftlab.backbones.gguf import dequantized

        folder = dequantized(file, sha256)
    provenance = {"source": "package", "package": given.package, "version": version, "sha256": sha256}
    return f"backbone.package={given.package}", Source(folder, provenance)


def _tokenizer(
    given: TransformerConfig, key: str, source: Source | None, config: Any
) -> tuple[ByteTokenizer | HFTokenizer, Source | None]:
    """The tokenizer, and where it came from if not with the model."""
    foreign = source is None or given.tokenizer is not None
    tokenizer: ByteTokenizer | HFTokenizer
    there = None
    if source is None and given.tokenizer is None:
        tokenizer = ByteTokenizer()
    elif given.tokenizer is not None:
        there = resolve(given.tokenizer, None, "backbone.tokenizer", weights=False)
        tokenizer = _read_tokenizer(there.folder, f"backbone.tokenizer={given.tokenizer}", _vocabulary_size(config))
    else:
        assert source is not None
        tokenizer = _read_tokenizer(source.folder, key, _vocabulary_size(config))
    # A model's own tokenizer may list special tokens that it never makes; a foreign one has none of its own.
    if foreign and len(tokenizer) > (size := _vocabulary_size(config)):
        raise BackboneError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds {size}. Set "
            f"backbone.architecture.vocab_size={len(tokenizer)}, or give the model's own tokenizer."
        )
    return tokenizer, there


def _vocabulary_size(config: Any) -> int:
    """Words that a model of ``config`` embeds; CANINE has no list of them and takes any character."""
    return int(getattr(config.get_text_config(), "vocab_size", sys.maxunicode + 1))


def _settle(given: TransformerConfig, config: Any, tokenizer: ByteTokenizer | HFTokenizer) -> None:
    """Make the model's ``config`` agree with what is given, and with the ids the tokenizer makes."""
    set_dropout(config, given.dropout, given.attention_dropout)
    for part in text_configs(config):
        part.use_cache = False
        # Decoders find a text's last token by this id, and RoBERTa its positions.
        part.pad_token_id = tokenizer.pad_id
    if getattr(config, "attention_type", None) == "block_sparse":
        # transformers leaves BigBird's sparse attention for good at the first batch of short texts: what a text is
        # answered would depend on who was there before it, and a resumed run would end otherwise.
        config.attention_type = "original_full"
    if given.architecture is not None:  # its default ids are those of some pretrained vocabulary
        ids = tokenizer.special_ids()
        for part in text_configs(config):
            for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
                if hasattr(part, name):
                    setattr(part, name, ids.get(name))
        if config.is_encoder_decoder:
            config.decoder_start_token_id = tokenizer.pad_id  # as T5's own checkpoints do


_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")


def _read_tokenizer(folder: Path, key: str, vocabulary_size: int) -> HFTokenizer:
    from transformers import AutoTokenizer

    # Without any of these transformers makes up a tokenizer that knows no words.
    if not any(file.is_file() for name in _VOCABULARY_FILES for file in folder.glob(name)):
        raise BackboneError(
            f"{key}: {folder} has no tokenizer ({', '.join(_VOCABULARY_FILES)}). Save it there "
            "(tokenizer.save_pretrained), or give one: backbone.tokenizer=<hub id or folder>."
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # missing files, missing converters and damaged JSON each raise their own
        reason = str(error).strip().splitlines()
        raise BackboneError(
            f"{key}: no tokenizer can be read from {folder}: {reason[0] if reason else type(error).__name__} "
            "Save it there (tokenizer.save_pretrained), or give one: backbone.tokenizer=<hub id or folder>."
        ) from error
    return HFTokenizer(tokenizer, vocabulary_size)
