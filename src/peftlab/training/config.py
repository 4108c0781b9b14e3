"""Configs of optimizer, schedule, trainer and logger. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from peftlab.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, added, bookkeeping

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch.optim import Optimizer

Factor = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(kw_only=True)
class OptimizerConfig(ABC):
    """Config shared by all optimizers."""

    lr: PositiveFloat
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of matrices, decoupled from the gradient in AdamW; biases and norms are not decayed."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``, each of which carries its own ``lr``."""


@dataclass(kw_only=True)
class ScheduleConfig(ABC):
    """Learning rate over time, as a factor on each group's peak."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all optimizer steps during which the rate rises linearly from 0."""

    @abstractmethod
    def decay(self, progress: float, epoch: int) -> float:
        """Factor after warm-up.

        Args:
            progress: share of the steps after warm-up that are done, 0 … 1.
            epoch: epochs finished, from 0.
        """

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """Factor on the peak rate for optimizer step ``step`` of ``total_steps``."""
        warmup_steps = round(self.warmup_fraction * total_steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.decay(min(progress, 1.0), step // max(1, steps_per_epoch))


_SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""What Lightning takes for the same precision: short → in full."""


def _in_full(value: Any) -> Any:
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return _SHORT.get(given, given) if isinstance(given, str) else given


Precision = Annotated[
    Literal["32", "64", "bf16", "16", "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"],
    BeforeValidator(_in_full),  # one spelling, so that the same run has one key
]
"""What may be typed; a config that was checked holds it in full."""


OnNaN = Literal["stop", "skip"]


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, on what, and by which rule the result is chosen."""

    max_epochs: PositiveInt = 3
    """Times that training goes through its rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, wherever the epoch is; null: no such limit."""
    precision: Precision = "32-true"
    """Type of numbers. ``…-true``: all are in that type (``32-true`` leaves frozen weights as ``backbone.dtype`` says);
    ``…-mixed``: weights in float32, products in 16 bits (autocast). ``32`` and ``64`` are short for ``32-true`` and
    ``64-true``, ``bf16`` and ``16`` for ``bf16-mixed`` and ``16-mixed``; a config has them in full."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """What computes; auto: a GPU if there is one."""
    devices: PositiveInt | Literal["auto"] = 1
    """Processes on each node (machine), one device each; auto: as many as it has devices."""
    num_nodes: PositiveInt = 1
    """Machines, each with ``devices`` processes; srun or torchrun starts them."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices work together: ddp, each has the whole model; fsdp, each has a part of every frozen weight;
    auto is one device, or ddp on several."""
    accumulate_grad_batches: PositiveInt = 1
    """Gradient accumulation: how many batches (micro-batches) of each process make one optimizer step. The step is that
    of one batch of all their rows."""
    gradient_clip_norm: NonNegativeFloat = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it (clipping). 0: none is."""
    label_smoothing: Probability = 0.0
    """Share of a label's weight that goes to all classes alike, in training alone (arXiv:1512.00567)."""
    select: Literal["best", "last"] = "best"
    """Which epoch's weights are tested and saved: the best on validation, or the last."""
    monitor: str | None = None
    """The validation metric that 'best' and early stopping look at; null: the objective's own."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many validations (one an epoch) without a better metric; null: never."""
    validate_every_n_steps: PositiveInt | None = added(None)
    """Inside an epoch too, validate after every so many optimizer steps: the best weights and early stopping look at
    these validations as at those of the epochs' ends; null: there only."""
    deterministic: bool = True
    """Use only algorithms that give the same bits again."""
    threads: PositiveInt | None = None
    """CPU threads of each process; null: as torch chooses. Sums may differ in the last bit between counts."""
    compile: bool = added(False)
    """Let torch.compile make one program of backbone and adapter, for all lengths: a minute before the first step, and
    faster ones after. Needs a C++ compiler. Dropout then draws in another way, and the last bits are others."""
    measure_before: bool = added(False)
    """Test the model before it is trained, too: the record then has the figures of the untrained one beside the others,
    as a row of a table."""
    on_nan: OnNaN = added("stop")
    """What happens at a loss or gradient that is no finite number: training stops, the run has diverged; or such steps
    are skipped."""
    checkpoint_every_n_steps: PositiveInt | None = bookkeeping(None)
    """Inside an epoch, write a checkpoint after every so many optimizer steps; null: not by steps."""
    checkpoint_every_minutes: PositiveFloat | None = bookkeeping(10.0)
    """Inside an epoch, write a checkpoint when the last one is so old; null: not by time."""
    keep_memory: bool = bookkeeping(True)
    """Keep memory that is freed for the next step, instead of asking the kernel for fresh pages (a third of a step's
    time on a CPU, with glibc). The same numbers, and more memory."""
    cuda_graphs: bool = bookkeeping(False)
    """Record forward and backward pass of batches of one shape and replay them (CUDA graphs), where that gives the
    same bits: one GPU, a method without a schedule of its own. The time of launches goes; a shape is recorded once."""
    keep_checkpoints: bool = bookkeeping(False)
    """Keep the checkpoints of the best and the last epoch, with the optimizer's states, when the run has ended, so that
    another can go on with it (``continue_from``). false: they are removed; what was trained is in the adapter file."""
    log_every_n_steps: PositiveInt = bookkeeping(10)
    """Optimizer steps between two that the logger gets values of."""
    measure_latency: bool = bookkeeping(False)
    """When the run has ended, time single texts of its test, with the adapter as it is and merged: the record then has
    ``timing.latency_seconds`` and ``timing.latency_merged_seconds``. It changes no number."""
    progress_bar: bool = bookkeeping(True)
    """Show how far the epoch is as a bar, where there is a terminal."""


@dataclass(kw_only=True)
class LoggerConfig(ABC):
    """Where per-step values go, beside the run's own metrics.csv."""

    @abstractmethod
    def build(self, *, name: str, key: str, folder: Path, config: dict[str, Any]) -> Logger | list[Logger] | None:
        """The Lightning logger that writes under ``folder``, or several; None for no logger."""

    def finish(self) -> None:  # noqa: B027
        """Called once when the run ends, whichever way it ends."""


__all__ = [
    "Factor",
    "LoggerConfig",
    "OnNaN",
    "OptimizerConfig",
    "Precision",
    "ScheduleConfig",
    "Share",
    "TrainerConfig",
]
