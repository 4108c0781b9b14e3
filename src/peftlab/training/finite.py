"""Whether a step's loss and gradients are finite: one look a step, at one number on the device."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from peftlab.errors import Diverged
from peftlab.training.config import OnNaN

SHOWN_ROWS = 16


class FiniteSteps:
    """Adds up the losses of a step's batches, and looks at them and at the gradients before the optimizer acts.

    Across processes the gradients decide alone: they are the same in all, and no finite ones follow from a loss that is
    not. With precision 16-mixed the loss decides: there the scaler looks for its largest scale by gradients that
    overflow, and leaves such steps out itself.
    """

    def __init__(self, on_nan: OnNaN) -> None:
        self.on_nan = on_nan
        self.skipped = 0
        self._loss: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """The loss of a batch of the step, a scalar."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss

    def check(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Let a step pass whose numbers are finite; leave out any other, or end the training.

        Raises:
            Diverged: naming the step, its learning rate and its rows.
        """
        loss, self._loss = self._loss, None
        trainer = module.trainer
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        gradients = [] if scaler is not None else [p.grad for p in _parameters(optimizer) if p.grad is not None]
        parts = [] if loss is None or trainer.world_size > 1 else [loss]
        if gradients:  # the largest entry, as a sum of squares may overflow where no entry does
            largest = torch._foreach_norm(gradients, math.inf)
            parts.append(torch.stack([one.float() for one in largest]).max())
        if not parts or math.isfinite(torch.stack(parts).sum().item()):
            return
        if self.on_nan == "skip":
            self.skipped += 1
            optimizer.zero_grad(set_to_none=True)  # optimizers pass over what has no gradient
            return
        what = "loss" if loss is not None and not loss.isfinite() else "gradient"
        facts = _facts(module, what)
        raise Diverged(facts, in_words(facts))

    def end_if_wanted(self, module: L.LightningModule, what: str) -> None:
        """End the training, whose last step has led to ``what``, unless such steps are to be skipped.

        Raises:
            Diverged: naming the step.
        """
        if self.on_nan == "stop":
            facts = _facts(module, what) | {"step": module.trainer.global_step - 1, "rows": []}
            raise Diverged(facts, in_words(facts))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _facts(module: L.LightningModule, what: str) -> dict[str, Any]:
    trainer = module.trainer
    batch = trainer.fit_loop.epoch_loop.batch_idx
    first = batch - batch % trainer.accumulate_grad_batches
    return {
        "what": what,
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
        "rows": _rows(trainer, first, batch),
    }


def _rows(trainer: L.Trainer, first: int, last: int) -> list[int]:
    """Numbers, from 1, in the training split, of the rows of batches ``first`` … ``last`` of this epoch and process.

    Which rows a batch has is a function of seed and epoch: the sampler can be asked again.
    """
    sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
    batches = sampler.batches(trainer.current_epoch) if sampler is not None else []
    return [row + 1 for batch in batches[first : last + 1] for row in batch if row >= 0]


def in_words(facts: dict[str, Any]) -> str:
    """Where training diverged, in a line."""
    rows = facts["rows"]
    more = f", … ({len(rows) - SHOWN_ROWS} more)" if len(rows) > SHOWN_ROWS else ""
    about = f"; rows {', '.join(map(str, rows[:SHOWN_ROWS]))}{more} of the training split" if rows else ""
    return (
        f"diverged: the {facts['what']} is no finite number in step {facts['step'] + 1} (epoch {facts['epoch'] + 1}, "
        f"learning rate {facts['lr']:.3g}{about})"
    )
