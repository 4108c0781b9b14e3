"""Which blocks of a backbone lie below all that trains; decided from names, on shapes alone too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.last_layers import transformer_blocks


def require_frozen_blocks(adapter: Adapter) -> None:
    """Refuse what ``backbone.cache_frozen`` cannot be for, before there are weights: the model may be on "meta".

    Raises:
        PeftlabError: as :class:`FrozenBlocks` does.
    """
    backbone = adapter.backbone
    ids = torch.zeros(2, 4, dtype=torch.int64, device=next(backbone.parameters()).device)
    with backbone.without_a_look(full=False):
        FrozenBlocks(adapter, (ids, torch.ones_like(ids)))


class FrozenBlocks:
    """The blocks of a backbone below everything that trains.

    Args:
        adapter: with its head, as it trains.
        example: ``input_ids`` and ``attention_mask`` (B, T), on the model's device.

    Raises:
        PeftlabError: if nothing is frozen below what trains, saying what trains lowest; or if there is no one list of
            blocks.
    """

    def __init__(self, adapter: Adapter, example: tuple[Tensor, Tensor]) -> None:
        self.backbone: Backbone = adapter.backbone
        try:
            self.place, blocks = transformer_blocks(self.backbone)
        except PeftlabError as error:
            raise refused(f"{str(error).partition(': ')[2] or error}") from error
        self.blocks: Sequence[nn.Module] = list(blocks)
        self.count = self._frozen_blocks(adapter, example)
        """Blocks that are computed once."""

    @property
    def about(self) -> str:
        """For people: ``the first 4 of 6 blocks``."""
        all_of = len(self.blocks)
        return f"all {all_of} blocks" if self.count == all_of else f"the first {self.count} of {all_of} blocks"

    def _frozen_blocks(self, adapter: Adapter, example: tuple[Tensor, Tensor]) -> int:
        config: Any = getattr(self.backbone.model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "summary_type", None) == "last":
            raise refused(f"{self.backbone.architecture} has no one stack of blocks that reads a text as it is")
        head = {name for name, _ in self.backbone.head_parameters()}
        trained = [n for n, p in self.backbone.model.named_parameters() if p.requires_grad and n not in head]
        inside = {name: self._block_of(name) for name in trained}
        beside = [name for name, block in inside.items() if block is None]
        lower = self._before_the_last_block(beside, example)
        lowest = min((block for block in inside.values() if block is not None), default=len(self.blocks))
        if lower or lowest == 0:
            name = lower[0] if lower else next(name for name, block in inside.items() if block == 0)
            raise refused(
                f"peft={adapter.strategy.name} trains '{name}', and below it nothing is frozen that could be computed "
                "once"
            )
        return lowest

    def _block_of(self, name: str) -> int | None:
        rest = name.removeprefix(f"{self.place}.")
        return int(rest.partition(".")[0]) if rest != name else None

    def _before_the_last_block(self, names: list[str], example: tuple[Tensor, Tensor]) -> list[str]:
        """Of parameters outside of blocks and head those that are read before the last block, or outside of a call."""
        if not names:
            return []
        called: list[str] = []
        with ExitStack() as hooks:
            for name in names:
                owner = self.backbone.model.get_submodule(name.rpartition(".")[0])
                handle = owner.register_forward_pre_hook(lambda *_, name=name: called.append(name))
                hooks.callback(handle.remove)
            last = self.blocks[-1].register_forward_pre_hook(lambda *_: called.clear())
            hooks.callback(last.remove)
            self.outputs(example)
        return [name for name in names if name not in called]

    @torch.inference_mode()
    def outputs(self, example: tuple[Tensor, Tensor]) -> Tensor:
        """Of the model as it is, without dropout, in float32."""
        training = self.backbone.training
        self.backbone.eval()
        try:
            outputs: Tensor = self.backbone(*example)
            return outputs.float()
        finally:
            self.backbone.train(training)


def refused(reason: str) -> PeftlabError:
    """``reason``, and what to do."""
    return PeftlabError(
        f"backbone.cache_frozen=true: {reason}. Set backbone.cache_frozen=false, or train the top alone: peft=head, "
        "peft=last_layers, or peft.targets=[…] of the last blocks."
    )
