"""The frozen trunk of a run, computed once for its training and validation rows (``backbone.cache_frozen``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from peftlab.config import RunConfig
from peftlab.data.batching import pad
from peftlab.data.module import SplitName, TextDataModule
from peftlab.runs.assemble import Assembled
from peftlab.training.config import TrainerConfig
from peftlab.training.trunk import FrozenTrunk
from peftlab.training.trunk_cache import trunk_states

_SPLITS: tuple[SplitName, ...] = ("train", "validation")
EXAMPLE = 4
"""Rows that both ways of computing are compared on."""


def frozen_trunk(config: RunConfig, assembled: Assembled, data: TextDataModule, *, says: bool) -> FrozenTrunk | None:
    """The trunk that steps of training and validation go on from, whose states ``data`` then has; None: not asked for.

    The test is the plain model's, as it is when the run is evaluated again.

    Raises:
        PeftlabError: if nothing is frozen below what trains.
        DataError: if the disk has no room for the states.
    """
    if not getattr(config.backbone, "cache_frozen", False):
        return None
    backbone = assembled.backbone
    device = _device(config.trainer)
    before = next(backbone.parameters()).device
    backbone.to(device)
    pad_id = backbone.tokenizer.pad_id
    rows = data.tokenized("train")
    some = np.argsort(rows.lengths, kind="stable")[:: max(1, len(rows) // EXAMPLE)][-EXAMPLE:]
    padded = pad([rows[row]["input_ids"] for row in some.tolist()], pad_id)
    trunk = FrozenTrunk(assembled.adapter, (padded["input_ids"].to(device), padded["attention_mask"].to(device)))
    settings: Any = backbone.model.config
    key = {
        "backbone": assembled.fingerprint,
        "settings": settings.to_dict() | {"attention": settings._attn_implementation},
        "quantize": config.backbone.quantize,
        "blocks": trunk.count,
        "kept": trunk.kept,
        "precision": config.trainer.precision,
        **({"skip_unread": True} if backbone.reads_first_alone else {}),
        "versions": [torch.__version__, transformers.__version__, device.type],
    }

    def compute(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
        with torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
            return trunk.compute(input_ids.to(device), attention_mask.to(device))

    def said(line: str) -> None:
        if says:
            print(line, flush=True)

    said(f"frozen trunk: {trunk.about} are computed once, without dropout, and kept ({_WORDS[trunk.kept]})")
    for split in _SPLITS:
        found = trunk_states(data.tokenized(split), pad_id, compute, key=key, said=said)
        data.states[split] = found
    backbone.to(before)
    return trunk


_WORDS = {"mean": "the mean of a text", "first": "a text's first token", "tokens": "all tokens of a text"}


def _device(trainer: TrainerConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and trainer.accelerator != "cpu" else "cpu")
