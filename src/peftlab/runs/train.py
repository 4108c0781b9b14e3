"""One run from config to record: skip it, resume it, or train it, test it once and write it down."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from peftlab import process
from peftlab.allocator import keeping_memory
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.module import TextDataModule
from peftlab.data.probe_texts import ProbeTexts
from peftlab.data.too_long import within_length
from peftlab.errors import Diverged, PeftlabError, RunError
from peftlab.files import write_atomically
from peftlab.objectives.recorded import FIELD as OBJECTIVE
from peftlab.records import environment
from peftlab.records.continuing import FIELD as CONTINUED
from peftlab.records.continuing import parent_of
from peftlab.records.divergence import diverged, in_words
from peftlab.records.folder import RunFolder
from peftlab.records.history import write_metrics_csv
from peftlab.records.identity import FIELD, recorded
from peftlab.records.predictions import as_bytes
from peftlab.report.figures.training import draw_curves
from peftlab.report.result import print_result
from peftlab.runs import record
from peftlab.runs.adapter_file import frozen_fingerprint, save_adapter
from peftlab.runs.assemble import Assembled, assemble, lightning_module
from peftlab.runs.batches import batches_a_step, rows_of_a_batch
from peftlab.runs.beginning import Begin, begins_at, print_where
from peftlab.runs.counted import count_parameters
from peftlab.runs.epochs import WritesEpochs
from peftlab.runs.evaluate import measure, require_all_rows
from peftlab.runs.finished import finished_record
from peftlab.runs.forgetting import measure_forgetting
from peftlab.runs.generating import generated
from peftlab.runs.latency import latency
from peftlab.runs.memory import memory_told
from peftlab.runs.no_result import forget, leaving_no_empty, note_failure, remove_if_untouched, write_diverged
from peftlab.runs.predictions import predictions_table
from peftlab.runs.probe import probe, require_probing
from peftlab.runs.summary import print_before, say_where_it_was_begun
from peftlab.runs.trunk import frozen_trunk
from peftlab.seeding import derive_seed
from peftlab.signals import ASKED
from peftlab.training.checkpoint import read_checkpoint, require_best
from peftlab.training.inside_epoch import KeepsSteps, Travels
from peftlab.training.meeting import Decision, Meeting
from peftlab.training.places import place_of
from peftlab.training.precision import require_precision
from peftlab.training.ranks import Ranks, lead_from, led_from, world_size
from peftlab.training.reached import RequireGradients
from peftlab.training.selection import monitored, selected, selected_row
from peftlab.training.sharding import ShardedStrategy
from peftlab.training.trainer import build_trainer, quiet


def train(
    config: RunConfig,
    *,
    argv: list[str],
    began: float | None = None,
    ranks: Ranks | None = None,
    meeting: Meeting | None = None,
) -> dict[str, Any]:
    """Run ``config``, or finish it, or find that it is finished; return its record.

    In the other ranks of a DDP run the record is empty: rank 0 holds the run and writes.

    Args:
        config: the run's.
        argv: what was typed, for the record.
        began: when that was, in seconds since the epoch; None: when the process started.
        ranks: which of the run's processes this is; None: its first.
        meeting: where the others, if they run already, are told what this one finds.
    """
    ranks = ranks or Ranks()
    ranks.require(config.trainer)
    vars(rank_zero_only)["rank"] = ranks.rank  # Lightning takes it from whatever the environment says
    folder = RunFolder.of(config)
    if ranks.rank != 0:
        return _train_beside(config, folder, argv, ranks, meeting)
    folder.require_inside()
    folder.recover()
    with leaving_no_empty(folder.path.parents), folder.locked():
        if (finished := finished_record(config, folder)) is not None:
            return finished
        work = _work_folder(config, folder)
        with work.locked() if work != folder else nullcontext():
            written = _train_noting_failure(config, work, argv, began, ranks, meeting)
            if not config.trainer.keep_checkpoints:
                shutil.rmtree(work.checkpoints, ignore_errors=True)
            if work != folder:
                folder.replace_by(work)
    if diverged(written):
        print(f"{folder.path}: {in_words(written)}", flush=True)
    else:
        print_result(folder.path, written, config.data.what_is_learned())
    return written


def _train_beside(
    config: RunConfig, folder: RunFolder, argv: list[str], ranks: Ranks, meeting: Meeting | None
) -> dict[str, Any]:
    """In another rank than 0: train what that has decided on."""
    work = _work_folder(config, folder)
    resume = led_from()
    ASKED.at_steps = True  # rank 0 decides when to end
    if meeting is not None:
        decision = meeting.hear(folder.key)
        if not decision.train:
            raise SystemExit(decision.status)
        work, resume = RunFolder(Path(decision.folder)), decision.resume
    return _train(config, work, argv, None, said={}, ranks=ranks, begin=Begin(resume))


def _work_folder(config: RunConfig, folder: RunFolder) -> RunFolder:
    """Where the run is made: aside, if a result is there that is to be replaced."""
    return folder.aside if config.force and folder.record.exists() else folder


def _train_noting_failure(
    config: RunConfig,
    folder: RunFolder,
    argv: list[str],
    began: float | None,
    ranks: Ranks,
    meeting: Meeting | None,
) -> dict[str, Any]:
    folder.require_no_links()
    if config.force:
        forget(folder)
    try:
        parent = parent_of(config, folder)
        begin = begins_at(config, folder, parent)
    except PeftlabError:
        remove_if_untouched(folder)
        raise
    if not begin.checkpoint:
        say_where_it_was_begun(config)
    folder.write_config(config)
    said = {FIELD: recorded(config)}  # now: its files may change while it runs
    said |= {} if parent is None else {CONTINUED: parent.facts()}
    lead_from(begin.checkpoint)
    try:
        if meeting is not None:
            meeting.tell(Decision(train=True, key=folder.key, folder=str(folder.path), resume=begin.checkpoint))
        return _train(config, folder, argv, began, said=said, ranks=ranks, begin=begin)
    except Diverged as error:
        return write_diverged(config, folder, argv, error, said=said)
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, PeftlabError) or folder.checkpoints.exists():
            if folder != RunFolder.of(config).aside:  # there, the record of the old result stays
                note_failure(config, folder, argv, error, said=said)
        else:  # refused before it began: leave nothing behind
            remove_if_untouched(folder)
        raise


@memory_told()
def _train(
    config: RunConfig,
    folder: RunFolder,
    argv: list[str],
    began: float | None,
    *,
    said: dict[str, Any],
    ranks: Ranks,
    begin: Begin,
) -> dict[str, Any]:
    quiet()
    # Nothing of ours draws from the global generator before training seeds it step by step; this is for
    # whatever a method or a model might draw all the same.
    L.seed_everything(derive_seed(config.seed, "global") % 2**32, verbose=False)
    require_precision(config.trainer, config.optim)
    splits = config.data.load()
    assembled = assemble(config, splits, resumes=bool(begin.checkpoint))
    splits = within_length(config.data, splits, assembled.backbone.tokenizer)
    if config.probe is not None:
        require_probing(ProbeTexts.of(config.probe), config, assembled)
    run = _Run(config, folder, splits, assembled, ranks)
    if ranks.rank == 0:
        tokens = run.data.token_facts()
        print_before(config, RunFolder.of(config), splits, run.assembled.backbone, run.parameters, tokens)
    run.take_trunk()  # minutes, perhaps: after the rows of every split were found fit
    if config.trainer.measure_before and ranks.rank == 0:
        run.measure_before()
    try:
        with keeping_memory(config.trainer.keep_memory):
            try:
                run.fit(begin)
            except Diverged as error:
                error.facts["history"] = run.module.history
                raise
            chosen = run.load_chosen()
            test_seconds = run.test()
    except SystemExit as error:  # what Lightning makes of an interrupt
        raise _interrupt(error) from error
    finally:
        run.close_logger()
    if ranks.rank != 0:
        return {}
    began = process.STARTED if began is None else began
    return run.write_down(argv, chosen, test_seconds, resumed=begin.resumed, began=began, said=said)


def _interrupt(error: SystemExit) -> KeyboardInterrupt:
    return error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else KeyboardInterrupt()


class _Run:
    """The parts of one run between its config and its record."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, splits: Splits, assembled: Assembled, ranks: Ranks
    ) -> None:
        self.config, self.folder, self.splits, self.assembled, self.ranks = config, folder, splits, assembled, ranks
        self.parameters = count_parameters(assembled.adapter)
        self.data = TextDataModule(config.data, splits, assembled.backbone.tokenizer, config.seed)
        self.module = lightning_module(config, assembled, splits)
        self.trunk_seconds: float | None = None
        self.logger: Logger | list[Logger] | None = None
        self._frozen_before = frozen_fingerprint(assembled.adapter)
        self._before: dict[str, Any] | None = None

    def take_trunk(self) -> None:
        """Compute the frozen trunk, or take it from the cache, if the config asks for one."""
        began = time.perf_counter()
        self.module.trunk = frozen_trunk(self.config, self.assembled, self.data, says=self.ranks.rank == 0)
        self.trunk_seconds = None if self.module.trunk is None else time.perf_counter() - began

    def measure_before(self) -> None:
        """Test what is about to be trained, in one process; a run that goes on from a checkpoint tests it again."""
        one_device = replace(
            self.config.trainer, devices=1, num_nodes=1, strategy="auto", progress_bar=False, compile=False
        )
        figures = measure(
            replace(self.config, trainer=one_device), self.assembled, self.splits, self.splits.test, self.folder
        )
        judged = generated(self.config, self.assembled, self.splits.test)
        figures |= {} if judged is None else judged.figures
        self._before = {"test": self.module.objective.named(figures, self.splits.label_names)}

    def fit(self, begin: Begin) -> None:
        """Train to the end, from the checkpoint of ``begin`` if it has one."""
        config, folder = self.config, self.folder
        resume = folder.checkpoints / begin.checkpoint if begin.checkpoint else None
        if self.ranks.rank == 0:
            plain = json.loads(json.dumps(config.plain()))  # a copy of plain containers, as loggers want it
            self.logger = config.logger.build(name=config.name, key=folder.key, folder=folder.logs, config=plain)
        self.trainer = build_trainer(
            replace(config.trainer, accumulate_grad_batches=batches_a_step(config)),
            monitored(config.trainer, self.module.objective),
            folder=folder.path,
            checkpoints=folder.checkpoints,
            logger=self.logger,
            rows_per_step=rows_of_a_batch(config),
            rows_per_evaluation=config.data.eval_batch_size * world_size(config.trainer),
            ranks=self.ranks,
            adapter=self.assembled.adapter,
        )
        # in front of the callbacks that write checkpoints, which stay last
        trainer_callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        reached = RequireGradients(self.assembled.adapter)
        trainer_callbacks[:0] = [reached, WritesEpochs(folder.metrics)]
        travels: dict[str, Travels] = {"module": self.module, "reached": reached}
        trainer_callbacks.append(KeepsSteps(folder.checkpoints, config.trainer, travels))
        if resume is not None:
            place = place_of(read_checkpoint(resume))
            self.data.start = (place.epoch, place.batches)
            if self.ranks.rank == 0:
                print_where(config, begin, resume, place)
        self.trainer.fit(self.module, self.data, ckpt_path=resume, weights_only=True)

    def close_logger(self) -> None:
        """End the logger's run, whichever way ours ended."""
        if self.logger is not None:
            self.config.logger.finish()

    def load_chosen(self) -> dict[str, Any]:
        """Load the weights that the selection rule chose; return of which row of the history they are."""
        config = self.config.trainer
        path, figure = self.folder.checkpoints / f"{config.select}.ckpt", monitored(config, self.module.objective)
        checkpoint = read_checkpoint(path)
        if config.select == "best":
            require_best(checkpoint, path, self.module.history, figure, ended=True)
        self.module.load_trained(checkpoint)
        return selected(checkpoint["history"][-1], config, self.module.objective)

    def test(self) -> float:
        """Test once; return the seconds it took.

        Raises:
            RunError: if a frozen weight has changed, or not every row was seen.
        """
        if not self._frozen_as_before():
            raise RunError(
                f"peft={self.config.peft.name} changed weights that do not train: the adapter file would not "
                "restore this model. This is a defect of the method; no result is written."
            )
        began = time.perf_counter()
        self.trainer.test(self.module, self.data, verbose=False)
        seconds = time.perf_counter() - began
        require_all_rows(self.module.test_metrics["rows"], len(self.splits.test))
        return seconds

    def _timing(self, test_seconds: float, *, resumed: bool, began: float) -> dict[str, Any]:
        """What it took; latency, where it is asked for, is measured now, when all else is."""
        found = record.timing(
            self.module,
            len(self.splits.test),
            test_seconds,
            resumed=resumed,
            began=began,
            trunk_seconds=self.trunk_seconds,
        )
        found |= record.device_hours(
            found["train_seconds"],
            processes=world_size(self.config.trainer),
            threads=torch.get_num_threads(),
            on_gpu=self.trainer.strategy.root_device.type != "cpu",
        )
        if self.config.trainer.measure_latency:
            found |= latency(self.config, self.module, self.assembled.adapter, self.data)
        return found

    def _frozen_as_before(self) -> bool:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            return strategy.unchanged()
        return frozen_fingerprint(self.assembled.adapter) == self._frozen_before

    def write_down(
        self,
        argv: list[str],
        chosen: dict[str, Any],
        test_seconds: float,
        *,
        resumed: bool,
        began: float,
        said: dict[str, Any],
    ) -> dict[str, Any]:
        """Write everything a run leaves, the record last; return the record."""
        config, folder, splits, assembled = self.config, self.folder, self.splits, self.assembled
        about = record.adapter_facts(config, splits, assembled, folder)
        adapter = save_adapter(folder, assembled.adapter, about)
        history = self.module.history
        row = selected_row({"selection": chosen, "history": history})
        assert row is not None
        write_metrics_csv(folder.metrics, history)
        draw_curves(
            folder.curves,
            history,
            self.module.objective,
            title=f"{config.name}  {folder.key}",
            kept=row,
        )
        judged = generated(config, assembled, splits.test)
        self.module.test_metrics |= {} if judged is None else judged.figures
        table = predictions_table(self.module.objective, splits, splits.test, self.module.test_outputs, judged)
        write_atomically(folder.predictions, as_bytes(table))
        forgetting = measure_forgetting(config, assembled, folder) if config.measure_forgetting else None
        general = None if config.probe is None else probe(folder, config, assembled, ProbeTexts.of(config.probe))
        beside = (
            folder.config.name,
            folder.metrics.name,
            folder.adapter_facts.name,
            folder.predictions.name,
            *assembled.backbone.files(),
        )
        # test() has compared the frozen weights, or we were not here
        memory = environment.peak_memory_mib()  # before a latency is measured
        frozen = {"fingerprint": assembled.fingerprint, "frozen_unchanged": True}
        written = record.head(config, folder, argv, "finished", said=said) | {
            OBJECTIVE: self.module.objective.facts(),
            "data": record.data_facts(config, splits, self.data.token_facts()),
            "backbone": assembled.backbone.provenance | frozen,
            "parameters": self.parameters | {"adapter_bytes": adapter["bytes"]},
            "selection": chosen,
            "metrics": record.metrics(self.module, row, splits),
            **({} if judged is None else {"generation": judged.conventions}),
            **({} if self._before is None else {"before": self._before}),
            "forgetting": forgetting,
            **({} if general is None else {"probe": general.plain()}),
            "history": history,
            "timing": self._timing(test_seconds, resumed=resumed, began=began),
            "memory": memory,
            "files": {folder.adapter.name: adapter} | record.file_facts(folder, beside),
        }
        folder.write_record(written)
        return written
