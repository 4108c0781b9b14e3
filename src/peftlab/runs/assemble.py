"""From config to a model: built for training, or rebuilt from a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftlab.backbones.base import Backbone
from peftlab.backbones.quantize import logical_size
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.errors import RunError
from peftlab.peft.base import PEFTStrategy, apply
from peftlab.runs.adapter_file import backbone_fingerprint, load_adapter, read_facts
from peftlab.runs.folder import RunFolder
from peftlab.training.module import ClassificationModule


@dataclass
class Assembled:
    """A backbone with its strategy injected, and the fingerprint it had before."""

    backbone: Backbone
    strategy: PEFTStrategy
    fingerprint: str


def assemble(config: RunConfig, splits: Splits) -> Assembled:
    """Build the backbone, check that the texts fit it, and inject the strategy."""
    backbone = config.backbone.build(len(splits.label_names), seed=config.seed, train_texts=splits.train.texts)
    backbone.check_length(config.data.max_length)
    return _inject(config, backbone)


def reassemble(folder: RunFolder, config: RunConfig) -> tuple[Assembled, dict[str, Any]]:
    """Rebuild a finished run's model from its folder, and read what adapter.json says.

    Raises:
        RunError: if the backbone found now is not the one that was trained on.
    """
    facts = read_facts(folder)
    backbone = config.backbone.build(len(facts["label_names"]), seed=config.seed, run_folder=folder.path)
    assembled = _inject(config, backbone)
    if assembled.fingerprint != facts["backbone_fingerprint"]:
        raise RunError(
            f"the backbone built now is not the one '{folder.path}' was trained on "
            f"(fingerprint {assembled.fingerprint[:12]}, expected {facts['backbone_fingerprint'][:12]}): "
            f"its weights have changed at the source ({backbone.provenance}). "
            "Pin backbone.revision, or point backbone.name_or_path at the old weights."
        )
    load_adapter(folder, assembled.strategy, backbone)
    return assembled, facts


def _inject(config: RunConfig, backbone: Backbone) -> Assembled:
    fingerprint = backbone_fingerprint(backbone)
    apply(config.peft, backbone, seed=config.seed, train_head=config.backbone.train_head)
    return Assembled(backbone, config.peft, fingerprint)


def lightning_module(config: RunConfig, assembled: Assembled, num_labels: int) -> ClassificationModule:
    """The module that trains or tests ``assembled``."""
    return ClassificationModule(
        assembled.backbone,
        assembled.strategy,
        config.optim,
        config.schedule,
        num_labels=num_labels,
        seed=config.seed,
        label_smoothing=config.trainer.label_smoothing,
        max_steps=config.trainer.max_steps,
    )


def count_parameters(backbone: Backbone) -> dict[str, int]:
    """Elements: all, trainable, of the head, trainable without the head; and the adapter's bytes.

    4-bit weights count their logical elements, not their packed ones.
    """
    head = {name for name, _ in backbone.head_parameters()}
    total = trainable = head_total = without_head = adapter_bytes = 0
    for name, parameter in backbone.model.named_parameters():
        elements = logical_size(parameter)
        total += elements
        head_total += elements if name in head else 0
        if parameter.requires_grad:
            trainable += elements
            without_head += 0 if name in head else elements
            adapter_bytes += parameter.numel() * parameter.element_size()
    return {
        "total": total,
        "trainable": trainable,
        "trainable_without_head": without_head,
        "head": head_total,
        "adapter_bytes": adapter_bytes,
    }
