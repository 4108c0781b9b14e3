"""Whether a gradient reaches all that trains: what is never called would be counted and saved, and never learn."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from peftlab.errors import PeftlabError, listed
from peftlab.peft.adapter import Adapter


class RequireGradients(Callback):
    """Names what got no gradient in the first step, and judges at the end of the first epoch.

    One step is too early to judge: no row may have been routed to an expert, or a layer was dropped. A gradient that is
    zero is one. Processes ask each of their own rows.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._waiting: dict[str, nn.Parameter] | None = None
        self._first = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for all that trains."""
        self._waiting = self._all()

    def inside_epoch(self) -> list[str]:
        """What this process waits for still, by name."""
        return sorted(self._waiting or ())

    def go_on(self, so_far: list[str]) -> None:
        """Go on from what :meth:`inside_epoch` has returned."""
        everything = self._all()
        self._waiting = {name: everything[name] for name in so_far}
        self._first = False

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See what has come."""
        if not self._waiting:
            return
        self._waiting = {name: parameter for name, parameter in self._waiting.items() if parameter.grad is None}
        if self._first and self._waiting and trainer.is_global_zero:
            _say(f"no gradient in the first step: {self._in_words(self._waiting)}")
        self._first = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what the method has added for nothing, and say what of the backbone's own does not learn.

        Raises:
            PeftlabError: naming the adapter's tensors, and where the modules that share their layer's weight are.
        """
        waiting, self._waiting = self._waiting or {}, None
        own = set(self._adapter.own_names())
        added = self._adapter.named_parameters()
        dead = {name: parameter for name, parameter in added if name in waiting and name not in own}
        if dead:
            raise PeftlabError(
                f"peft={self._adapter.strategy.name}: no gradient in a whole epoch for {self._in_words(dead)}: the "
                "model never calls the layer that they stand on, so they would be saved as they began."
                f"{self._instead(dead)}"
            )
        if waiting and trainer.is_global_zero:
            _say(
                "no gradient in a whole epoch, so these stay as they are though they are counted among what trains: "
                f"{self._in_words(waiting)}"
            )

    def _all(self) -> dict[str, nn.Parameter]:
        return dict(self._adapter.named_parameters(beside=True))

    def _in_words(self, found: dict[str, nn.Parameter]) -> str:
        numbers = sum(parameter.numel() for parameter in found.values())
        return f"{listed(found, 4)} ({numbers:,} numbers)"

    def _instead(self, dead: dict[str, nn.Parameter]) -> str:
        """Other modules with the weight of a layer that is never called."""
        layers = {placed.name: placed.layer for placed in self._adapter.placed()}
        for name in dead:
            layer = layers.get(name.partition(".deltas.")[0])
            weight: Any = None if layer is None else layer.weight
            shared = [
                other
                for other, module in self._adapter.model.named_modules(remove_duplicate=False)
                if getattr(module, "weight", None) is weight and module is not layer and not other.endswith(".base")
            ]
            if weight is not None and shared:
                return f" Its weight is that of {listed(shared)} too: name one of these in peft.targets."
        return " Leave it out of peft.targets."


def _say(line: str) -> None:
    print(f"peftlab: warning: {line}.", file=sys.stderr, flush=True)
