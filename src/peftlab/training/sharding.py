"""Frozen weights cut over the processes (FSDP2): each keeps a part of all, and a block is whole while it computes.

``fully_shard`` takes the frozen weights alone, a block at a time. What trains stays whole in every process, and its
gradients are reduced as on several processes without it, so that optimizers, methods, checkpoints and the weights of
rows know nothing of it; nor do the numbers, since gathered weights are the weights that were cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from peftlab.backbones import quantize
from peftlab.peft.adapter import Adapter
from peftlab.peft.saving import quick_fingerprint_of


class ShardedStrategy(DDPStrategy):
    """DDP of what trains, over frozen weights of which each process has a part."""

    def __init__(self, adapter: Adapter, **ddp: Any) -> None:
        super().__init__(**ddp)
        self._adapter = adapter
        self._parts: str | None = None

    def setup(self, trainer: L.Trainer) -> None:
        """Cut the frozen weights before the model is moved to the device, where they might not fit whole."""
        if self._parts is None:
            shard(self._adapter, self.root_device, self.world_size)
            self._parts = fingerprint_of_parts(self._adapter)
            module = trainer.lightning_module
            cut = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
            ddp: Any = DistributedDataParallel
            ddp._set_params_and_buffers_to_ignore_for_model(module, cut)
        super().setup(trainer)

    def teardown(self) -> None:
        """Lightning moves the model to the CPU, where parts could not be gathered again; it stays where it is."""
        module, self._lightning_module = self._lightning_module, None
        super().teardown()
        self._lightning_module = self.model = module

    def unchanged(self) -> bool:
        """Whether all processes have the frozen parts that they had before training."""
        changed = torch.tensor(int(fingerprint_of_parts(self._adapter) != self._parts), device=self.root_device)
        return not int(self.reduce(changed, reduce_op="max"))


def shard(adapter: Adapter, device: torch.device, processes: int) -> None:
    """Cut the frozen weights of the adapter's backbone, and move the parts to ``device``.

    Args:
        adapter: in its backbone, on the CPU.
        device: of this process.
        processes: of the process group that has been set up.
    """
    mesh = init_device_mesh(device.type, (processes,))
    quantize.store_as_floats(adapter.backbone)
    whole = _stays_whole(adapter)
    for block in [*_blocks(adapter), adapter.backbone]:
        fully_shard(block, mesh=mesh, ignored_params=whole)


def _stays_whole(adapter: Adapter) -> set[nn.Parameter]:
    """What trains, all that the adapter saves, and numbers without a dimension that could be cut."""
    saved = adapter.own_ids()
    return {p for p in adapter.backbone.parameters() if p.requires_grad or p.dim() == 0 or id(p) in saved}


def _blocks(adapter: Adapter) -> Iterator[nn.Module]:
    """The model's layers: the entries of every list of modules that is in no other, without the adapter's own."""
    inside = [f"{name}." for name in adapter.modules()]
    for name, module in adapter.model.named_modules():
        if isinstance(module, nn.ModuleList) and not f"{name}.".startswith(tuple(inside)):
            inside.append(f"{name}.")
            yield from module


def fingerprint_of_parts(adapter: Adapter) -> str:
    """A quick fingerprint of this process's part of everything that training must not change."""
    backbone: Any = adapter.backbone
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost stays whole between forward and backward
    running = set(map(id, adapter.running_state()))
    found: dict[str, Tensor] = {
        name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for name, tensor in backbone.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not tensor.requires_grad and id(tensor) not in running
    }
    return quick_fingerprint_of(found | quantize.quant_states(backbone))
