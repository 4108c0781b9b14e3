"""Bytes of a model's weights in a paper's table, from shapes alone: nothing is loaded or quantised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import PositiveInt
from peftlab.schema import validate
from peftlab.tables.counts import CountsTable, Status, published_figure, rounds_to

if TYPE_CHECKING:
    from torch import nn

BLOCK = 64
"""Weights that share a scale (QLoRA, section 3)."""
SECOND_BLOCK = 256
"""Scales that share a scale of their own, when they are quantised again."""
CODES = 4 * (16 + 256 + 1)
"""Bytes of a quantised layer's tables: the code of nf4, the code of the scales, their mean."""


@dataclass(kw_only=True)
class Memory:
    """Bytes that are declared for a model, beside what a paper prints."""

    backbone: str
    store: Literal["nf4", "16 bits with Adam"]
    """nf4: linear layers in 4 bits with doubly quantised scales, the rest in 16 bits. 16 bits with Adam: 2 bytes of
    weight, 2 of gradient and 8 of Adam's state a parameter. Both with an output layer over the vocabulary."""
    adapter: dict[str, Any] = field(default_factory=dict)
    """Fields of a LoRA beside it, in 16 bits; none: no adapter."""
    published: str
    """The figure as it is printed: 41 GB."""
    bound: Literal["above", "below"] | None = None
    """The paper gives a bound: it says more than, or less than, the figure."""
    recomputed: PositiveInt
    """How many bytes it must be."""
    status: Status
    source: str
    remark: str = ""


@dataclass(frozen=True)
class Stored:
    """What came out."""

    bytes: int
    trainable: int
    """Parameters of the adapter; of the whole model for full fine-tuning."""


def count_bytes(memory: Memory, table: CountsTable) -> Stored:
    """Count the bytes by building the model on ``meta``.

    Raises:
        PeftlabError: if the backbone is not among the table's, or the adapter does not fit it.
    """
    from peftlab.backbones.config import BackboneConfig
    from peftlab.config import validate_group
    from peftlab.peft.base import attach
    from peftlab.peft.lora import LoRA
    from peftlab.runs.counted import count_model

    if memory.backbone not in table.backbones:
        close = nearest(memory.backbone, table.backbones)
        raise ConfigError(f"backbone '{memory.backbone}' is not known.{close} There are: {listed(table.backbones)}.")
    config = validate_group("backbone", table.backbones[memory.backbone], BackboneConfig)
    backbone = config.build(2, seed=0, device="meta")
    heads = {id(parameter) for _, parameter in backbone.head_parameters()}
    output_layer = sum(parameter.numel() for parameter in backbone.token_embedding().parameters())
    counts = count_model(backbone)
    whole = counts["total"] - counts["head"] + output_layer
    if memory.store == "16 bits with Adam":
        return Stored(whole * (2 + 2 + 8), whole)
    total = nf4_bytes(backbone.model, heads) + 2 * output_layer
    trainable = 0
    if memory.adapter:
        trainable = attach(backbone, validate(memory.adapter, LoRA, "adapter"), seed=0).num_parameters()
    return Stored(total + 2 * trainable, trainable)


def nf4_bytes(network: nn.Module, left_out: set[int]) -> int:
    """Bytes of ``network`` with its linear layers in nf4 and everything else in 16 bits.

    Args:
        network: with float weights, on any device, ``meta`` too.
        left_out: ``id`` of parameters that do not count (the head's).
    """
    from torch import nn

    linear = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    total = 0
    for parameter in network.parameters():
        if id(parameter) in left_out:
            continue
        total += _nf4(parameter.numel()) if id(parameter) in linear else 2 * parameter.numel()
    return total


def _nf4(weights: int) -> int:
    """Bytes of one linear layer: half a byte a weight, a byte a scale, four bytes a scale of scales, the tables."""
    scales = -(-weights // BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // SECOND_BLOCK) + CODES


def status_of(memory: Memory, found: Stored) -> Status:
    """Whether the bytes round to what is published, or keep the bound."""
    if memory.bound is None:
        return rounds_to(found.bytes, memory.published)
    figure = published_figure(memory.published)[0]
    kept = found.bytes > figure if memory.bound == "above" else found.bytes < figure
    return "match" if kept else "differs"
