"""Whether a step's loss and gradients are finite: one look a step, at two numbers on the device.

On a GPU a look waits until the device has done the step, and the device then waits for the next one to be launched.
There the numbers travel while the next step runs, and are looked at when it has been launched: a run that diverges ends
one step later, before anything of it is saved or validated, and with the facts of the step that it diverged in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        self._travelling: _Look | None = None

    def looks_later(self, device: torch.device) -> bool:
        """Whether a step's numbers are looked at after the next one: where waiting costs, and nothing is left out."""
        return device.type == "cuda" and self.on_nan == "stop"

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
        if not parts:
            return
        numbers = torch.stack([torch.stack(parts).sum(), parts[0] if loss is None else loss])
        look = _Look(_place(module), loss is not None, numbers)
        if self.looks_later(numbers.device):
            self.settle(module)
            self._travelling = look.travelling()
        elif not look.is_finite() and self.on_nan == "skip":
            self.skipped += 1
            optimizer.zero_grad(set_to_none=True)  # optimizers pass over what has no gradient
        else:
            look.require_finite(module)

    def settle(self, module: L.LightningModule) -> None:
        """Look at what is still travelling: before anything is kept of what came out of it.

        Raises:
            Diverged: as :meth:`check`, with the facts of that step.
        """
        look, self._travelling = self._travelling, None
        if look is not None:
            look.require_finite(module)

    def end_if_wanted(self, module: L.LightningModule, what: str) -> None:
        """End the training, whose last step has led to ``what``, unless such steps are to be skipped.

        Raises:
            Diverged: naming the step.
        """
        if self.on_nan == "stop":
            facts = _facts(module, _place(module), what) | {"step": module.trainer.global_step - 1, "rows": []}
            raise Diverged(facts, in_words(facts))


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class _Place:
    """Where a step is: epoch, its last batch in it, optimizer step, all from 0; and its learning rate."""

    epoch: int
    batch: int
    step: int
    lr: float


def _place(module: L.LightningModule) -> _Place:
    trainer = module.trainer
    return _Place(
        trainer.current_epoch,
        trainer.fit_loop.epoch_loop.batch_idx,
        trainer.global_step,
        float(trainer.optimizers[0].param_groups[0]["lr"]),
    )


@dataclass(frozen=True)
class _Look:
    """A step and its two numbers: one that is finite if loss and gradients are, and the loss."""

    place: _Place
    has_loss: bool
    numbers: Tensor
    arrived: torch.cuda.Event | None = None

    def travelling(self) -> _Look:
        """The same, on its way to the host, while the device goes on."""
        host = torch.empty(2, pin_memory=True)
        host.copy_(self.numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Look(self.place, self.has_loss, host, arrived)

    def is_finite(self) -> bool:
        return math.isfinite(self._numbers()[0])

    def require_finite(self, module: L.LightningModule) -> None:
        if self.is_finite():
            return
        what = "loss" if self.has_loss and not math.isfinite(self._numbers()[1]) else "gradient"
        facts = _facts(module, self.place, what)
        raise Diverged(facts, in_words(facts))

    def _numbers(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.numbers.tolist()
        return numbers


def _facts(module: L.LightningModule, place: _Place, what: str) -> dict[str, Any]:
    first = place.batch - place.batch % module.trainer.accumulate_grad_batches
    rows = _rows(module.trainer, place.epoch, first, place.batch)
    return {"what": what, "epoch": place.epoch, "step": place.step, "lr": place.lr, "rows": rows}


def _rows(trainer: L.Trainer, epoch: int, first: int, last: int) -> list[int]:
    """Numbers, from 1, in the training split, of the rows of batches ``first`` … ``last`` of ``epoch`` and process.

    Which rows a batch has is a function of seed and epoch: the sampler can be asked again.
    """
    sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
    batches = sampler.batches(epoch) if sampler is not None else []
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
