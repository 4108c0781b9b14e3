"""The one LightningModule: an adapter in its backbone, trained for an objective."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peftlab.data.batching import STAND_IN, STATES, weight_of
from peftlab.metric_names import UNDEFINED, MetricName, task_figure
from peftlab.objectives.base import Learned, Objective
from peftlab.objectives.parts.blocks import MultitaskMetrics, TaskBlocks, by_task
from peftlab.objectives.parts.mixed import MixedTasks, MixtureMetrics
from peftlab.objectives.parts.mixture import Mixture
from peftlab.objectives.parts.split import KeptOutputs, SplitMetrics
from peftlab.objectives.parts.task import Task
from peftlab.peft.adapter import Adapter
from peftlab.peft.legacy import FORMAT, present_state
from peftlab.seeding import derive_seed, seed_draws
from peftlab.terminal import columns_of
from peftlab.training.accumulation import WeightOfAStep
from peftlab.training.compiled import compiling
from peftlab.training.config import OnNaN, OptimizerConfig, ScheduleConfig
from peftlab.training.finite import FiniteSteps
from peftlab.training.graphs import Computed, GraphedSteps, graphed_steps
from peftlab.training.partial import set_states, states_of
from peftlab.training.places import OF_EPOCH
from peftlab.training.rows import Stopwatch, figures_of_row, in_words
from peftlab.training.selection import OVER_BUDGET
from peftlab.training.series import StepSeries
from peftlab.training.trunk import FrozenTrunk

Batch = dict[str, Any]
"""``input_ids`` and ``attention_mask`` (B, T), ``labels`` (B,), of several tasks ``task_ids`` (B,) too; all int64, but
labels that are numbers float32. Of tasks with different objectives ``labels`` are
:data:`~peftlab.objectives.parts.mixed.Targets`. With ``stand_in`` its rows do not count: another process has them."""


class TrainingModule(L.LightningModule):
    """Trains what the adapter owns, and the head; every combination of data, backbone and method runs here.

    After each validation one row of metrics is added to :attr:`history`; it travels in the checkpoint, so
    a resumed run has all of it.
    """

    def __init__(
        self,
        adapter: Adapter,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        objective: Learned,
        label_names: Sequence[str],
        seed: int,
        label_smoothing: float = 0.0,
        max_steps: int | None = None,
        on_nan: OnNaN = "stop",
        cuda_graphs: bool = False,
        compiled: bool = False,
        continues: bool = False,
        tasks: Sequence[Task] = (),
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.backbone = adapter.backbone
        self.objective = objective
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.max_steps = max_steps
        # Checkpoints hold what trains; on_load_checkpoint checks the key set itself.
        self.strict_loading = False
        self.mixed = MixedTasks(objective, tasks) if isinstance(objective, Mixture) else None
        self.tasks = TaskBlocks(tasks) if tasks and self.mixed is None else None
        self.metrics = nn.ModuleDict(
            {split: self._new_metrics(label_names, tasks) for split in ("train_", "validation_", "test_")}
        )
        self.history: list[dict[str, float]] = []
        self.test_metrics: dict[str, Any] = {}
        self.test_outputs = torch.zeros(0, len(label_names))
        """Of the head, (N, C) float32, a row each of the test split, in its order."""
        self._kept = KeptOutputs(len(label_names))
        self.first_step_at: float | None = None
        self._validation_row: dict[str, Any] = {}
        self._clock = Stopwatch()
        self._series = StepSeries()
        self._weight_of_step = WeightOfAStep()
        self._empty_steps = 0
        self._together: list[int] = []
        self._finite = FiniteSteps(on_nan)
        self.cuda_graphs, self.compiled, self.continues = cuda_graphs, compiled, continues
        self.trunk: FrozenTrunk | None = None
        """What steps go on from, where a batch has its states."""
        self.graphs: GraphedSteps | None = None
        """What records steps and replays them, while training does so."""

    def _new_metrics(self, names: Sequence[str], tasks: Sequence[Task]) -> nn.Module:
        if self.mixed is not None:
            return MixtureMetrics(self.mixed, names)
        if tasks:
            return MultitaskMetrics(tasks)
        assert isinstance(self.objective, Objective)
        return SplitMetrics(self.objective, names)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor | None = None, **asked: Any
    ) -> Tensor:
        """Outputs of the head (B, C) in fp32; of several classifications, -inf for classes not of a row's own task.

        ``asked``: what the objective asks a backbone for beside that.
        """
        with compiling(f"this {self.backbone.architecture}"):
            if task_ids is None:
                logits: Tensor = self.backbone(input_ids, attention_mask, **asked)
                return logits.float()
            outputs: Tensor = self.backbone(input_ids, attention_mask, task_ids).float()
        return outputs if self.tasks is None else self.tasks.masked(outputs, task_ids)

    # -- training ------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Of an epoch that is gone on with, nothing else says that it starts."""
        if self.continues:
            self._follow_own_schedule()
        if self.cuda_graphs:
            self.graphs = graphed_steps(self)
            self.trainer.datamodule.notes_padding = self.graphs is not None  # type: ignore[attr-defined]
        if self.trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock, and ask for the rows that all processes together have in each batch."""
        if self.trainer.world_size > 1:
            sampler: Any = self.trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
            self._together = sampler.sizes(self.current_epoch)
        self._clock.start()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from (seed, epoch, step, rank).

        Masks are then a function of where training is and not of what was drawn before, so a resumed run
        draws the same ones, on every rank, without any random state in the checkpoint.
        """
        seed_draws(derive_seed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's mean loss, and the method's own term if it has one."""
        rows = weight_of(batch)
        computed = self._by_graph(batch, rows) or self.computed(batch)
        loss = computed["loss"]
        self._count("train", batch, computed)
        self._finite.add(loss)
        self._series.count(batch["labels"])
        if self._shows_steps():
            self.log(MetricName("train", "loss_step").in_history, loss, prog_bar=True)
        penalty = self.adapter.regularization(self.global_step + 1, self._total_steps())
        whole = loss if penalty is None else loss + penalty
        together = self._together[batch_idx] if self._together else None
        return self._weight_of_step.weighted(whole, rows, together, self.trainer.world_size)

    def _by_graph(self, batch: Batch, rows: int) -> Computed | None:
        """Forward and backward pass of a batch that counts as it is, if there is a graph for it."""
        if self.graphs is None or not self._weight_of_step.leaves(rows):
            return None
        return self.graphs.step(batch, self.trainer.accumulate_grad_batches)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass; a graph has done it already."""
        if self.graphs is None or not self.graphs.give_gradients():
            super().backward(loss, *args, **kwargs)

    def _shows_steps(self) -> bool:
        """Whether somebody sees this step's own loss: Lightning's way with it takes a millisecond."""
        trainer = self.trainer
        bar = getattr(trainer.progress_bar_callback, "is_enabled", False)
        return bar or (bool(trainer.loggers) and trainer._logger_connector.should_update_logs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Weight the step's batches by what they count, and look at loss and gradients, before they are clipped.

        Raises:
            Diverged: if one is no finite number and ``on_nan`` is ``stop``.
        """
        if not self._weight_of_step.settle(optimizer, self.trainer.accumulate_grad_batches):
            self._empty_steps += 1
        self._finite.check(self, optimizer)
        if self.trainer.loggers and self.trainer._logger_connector.should_update_logs:
            self.log_dict(self._series.of(optimizer, self.device), on_step=True, on_epoch=False)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then let the method act (a rank budget, for example).

        The gradients go at once, not after the next forward pass as by default: what they take, that pass can have.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.adapter.on_step(self.global_step + 1, self._total_steps())
        optimizer.zero_grad(set_to_none=True)
        if self.first_step_at is None:
            self.first_step_at = time.time()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """End the epoch early at ``max_steps``, so that it still is validated, saved and selected from."""
        if self.max_steps is not None and self.global_step >= self.max_steps:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Validation is not training time."""
        self._finite.settle(self)
        self._series.pause()
        self._clock.pause()

    def on_validation_epoch_end(self) -> None:
        """Compute the validation metrics and show them to checkpointing and early stopping."""
        self._validation_row = self._computed("validation")
        if self._validation_row["loss"] is None:
            self._finite.end_if_wanted(self, "validation loss")
        self._log_figures("validation", self._validation_row)
        self._clock.start()

    def on_train_epoch_end(self) -> None:
        """Add the row of the epoch's end; if training ends at a row inside the epoch, that is it."""
        self._finite.settle(self)
        if self.history and self.history[-1]["step"] == self.global_step:
            self.history[-1].pop(OF_EPOCH, None)
            return
        self._log_figures("train", self._add_row())

    def add_row_inside(self, of_epoch: float) -> None:
        """Add a row inside an epoch, after its validation: figures on train are those since the row before.

        Args:
            of_epoch: share of the epoch's batches that are done.
        """
        train = self._add_row(of_epoch)
        self._clock.start()
        figures = {MetricName("train", name).in_history: train[name] for name in self.objective.every_epoch()}
        shown_as = {name: value for name, value in figures.items() if value is not None}
        for logger in self.trainer.loggers:  # an epoch's own go through Lightning, which counts steps from 0
            logger.log_metrics(shown_as | {"epoch": self.current_epoch}, step=self.global_step - 1)

    def _add_row(self, of_epoch: float | None = None) -> dict[str, Any]:
        """Add a row to the history, and print it; the figures on train, which start anew."""
        train, seconds = self._computed("train"), self._clock.stop()
        if self._finite.skipped:
            self.print(f"  {self._finite.skipped} steps were skipped: their loss or gradient was no finite number")
            self._finite.skipped = 0
        if self._empty_steps:
            self.print(f"  {self._empty_steps} steps were none: there was no target in them")
        row = {
            "epoch": self.current_epoch,
            "step": self.global_step,
            "lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            "train_seconds": seconds,
            "train_rows": train["rows"],
            **({} if of_epoch is None else {OF_EPOCH: of_epoch}),
            **figures_of_row(self.objective, train, self._validation_row),
        }
        if over := self.adapter.over_budget():
            row[OVER_BUDGET] = over
        if self._empty_steps:
            row["steps_without_targets"], self._empty_steps = self._empty_steps, 0
        self.history.append(row)
        epochs, width = int(self.trainer.max_epochs or 0), columns_of(sys.stdout)
        self.print(in_words(self.objective, row, train, self._validation_row, epochs, width))
        return train

    # -- evaluation ----------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect one validation batch."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect one test batch."""
        self._evaluate("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Compute the test metrics, and put the outputs into the order of the rows."""
        self.test_metrics = self._computed("test")
        self.test_outputs = self._kept.compute()
        self._kept.reset()
        self._log_figures("test", self.test_metrics)

    def _evaluate(self, split: str, batch: Batch, number: int | None = None) -> None:
        """One batch of a split; of the test its ``number``, by which the rows are known."""
        computed = self.computed(batch, smoothed=False)
        self._count(split, batch, computed)
        if number is not None and STAND_IN not in batch:
            outputs = computed["outputs"]
            if isinstance(self.objective, Objective):
                outputs = self.objective.of_rows(outputs, batch["labels"])
            self._kept.update(self._rows_of_test(number), outputs)

    def _rows_of_test(self, number: int) -> list[int]:
        loader: Any = self.trainer.test_dataloaders
        rows: list[int] = loader.batch_sampler.batch(number)
        return loader.dataset.texts_of(rows)  # type: ignore[no-any-return]

    def computed(self, batch: Batch, *, smoothed: bool = True) -> Computed:
        """``outputs`` (B, C), the mean ``loss``, and what metrics take beside them, ``said``: losses, detached."""
        labels, task_ids = batch["labels"], batch.get("task_ids")
        label_smoothing = self.label_smoothing if smoothed else 0.0
        asked = self.objective.asks(batch) if isinstance(self.objective, Objective) else {}
        with self._from_trunk(batch):
            outputs = self(batch["input_ids"], batch["attention_mask"], task_ids, **asked)
        said: Any
        if self.mixed is not None:
            of_tasks = self.mixed.losses(outputs, labels, label_smoothing)
            said = {task: one.detach() for task, one in of_tasks.items()}
            loss = self.mixed.mean(of_tasks, labels)
        elif self.tasks is not None and task_ids is not None:
            losses = self.tasks.losses(outputs, labels, task_ids, label_smoothing)  # (B,)
            said, loss = losses.detach(), losses.mean()
        else:
            assert isinstance(self.objective, Objective)
            loss = self.objective.loss(outputs, labels, label_smoothing=label_smoothing)
            said = loss.detach()
        return {"outputs": outputs, "loss": loss, "said": said}

    def _from_trunk(self, batch: Batch) -> AbstractContextManager[None]:
        if self.trunk is None or STATES not in batch:
            return nullcontext()
        return self.trunk.given(batch[STATES])

    def _count(self, split: str, batch: Batch, computed: Computed) -> None:
        """Add what was computed of a batch to the split's metrics, if its rows count."""
        skips = split == "train" and self._finite.on_nan == "skip"
        if STAND_IN in batch or (skips and not computed["loss"].isfinite()):  # not learned from, and not counted
            return
        weight = {"weight": weight_of(batch)} if isinstance(self.objective, Objective) and self.objective.weighs else {}
        self._metrics(split).update(computed["outputs"].detach(), batch["labels"], computed["said"], **weight)

    def _log_figures(self, split: str, values: dict[str, Any]) -> None:
        """Show the figures to loggers, checkpointing and early stopping; an undefined one is as bad as can be."""
        for name in self.objective.every_epoch():
            value, bar = values[name], split == "validation" and name == self.objective.selects
            shown_as = self.objective.figure(name).worst if value is None else value
            self.log(MetricName(split, name).in_history, shown_as, prog_bar=bar)
        for metric, number in by_task(values, split).items():
            name = task_figure(str(metric.task), metric.figure)
            self.log(metric.in_history, self.objective.figure(name).worst if number is None else float(number))

    def _computed(self, split: str) -> dict[str, Any]:
        """The figures of ``split``; one that is no finite number is None, and ``undefined`` says so."""
        values: dict[str, Any] = self._metrics(split).compute()
        named = self.objective.every_epoch()
        lost = [name for name in named if values[name] is not None and not math.isfinite(values[name])]
        if lost:
            values[UNDEFINED] = values.get(UNDEFINED, {}) | dict.fromkeys(lost, "it is no finite number")
            values |= dict.fromkeys(lost)
        return values

    def _metrics(self, split: str) -> Any:
        """What has ``update`` and ``compute``; "train" itself is a method of every module."""
        return self.metrics[f"{split}_"]

    # -- optimizer and checkpoint --------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Optimizer over the method's groups; the schedule scales each group's own peak."""
        groups = self.adapter.param_groups(self.optimizer_config.lr)
        optimizer = self.optimizer_config.build(groups)
        total, per_epoch = self._total_steps(), self._steps_per_epoch()
        scheduler = LambdaLR(optimizer, lambda step: self.schedule_config.factor(step, total, per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _follow_own_schedule(self) -> None:
        """Set the rate of the next step to that of this run's schedule, which is longer than that of the run before."""
        scheduler: Any = self.lr_schedulers()
        total, per_epoch = self._total_steps(), self._steps_per_epoch()
        factor = self.schedule_config.factor(scheduler.last_epoch, total, per_epoch)
        for group, peak in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = peak * factor

    def _total_steps(self) -> int:
        by_epochs = int(self.trainer.estimated_stepping_batches)
        return by_epochs if self.max_steps is None else min(by_epochs, self.max_steps)

    def _steps_per_epoch(self) -> int:
        batches = int(self.trainer.num_training_batches)
        return -(-batches // self.trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter and what trains beside it, never the frozen backbone."""
        self._finite.settle(self)
        checkpoint["state_dict"] = self.adapter.state_dict()
        checkpoint["adapter_format"] = FORMAT
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the keys and load what was trained.

        Raises:
            PeftlabError: if the checkpoint is of another method, backbone or number of classes.
        """
        self.load_trained(checkpoint)
        self.history = list(checkpoint["history"])

    def inside_epoch(self) -> dict[str, Any]:
        """What this process has added up in the epoch so far: metrics, steps that were skipped, seconds."""
        metrics = states_of(self._metrics("train"))
        seconds, empty = self._clock.seconds(), self._empty_steps
        return {"metrics": metrics, "skipped": self._finite.skipped, "seconds": seconds, "empty_steps": empty}

    def go_on(self, so_far: dict[str, Any]) -> None:
        """Go on from what :meth:`inside_epoch` has returned."""
        set_states(self._metrics("train"), so_far["metrics"])
        self._finite.skipped = so_far["skipped"]
        self._empty_steps = so_far.get("empty_steps", 0)
        self._clock.add(so_far["seconds"])

    def load_trained(self, checkpoint: dict[str, Any]) -> None:
        """Load what a checkpoint holds of the adapter and the head."""
        state, written = checkpoint["state_dict"], checkpoint.get("adapter_format", 1)
        self.adapter.load_state_dict(present_state(state, written, self.adapter.methods()))
