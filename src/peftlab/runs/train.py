"""One run from config to record: skip it, resume it, or train it, test it once and write it down."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.module import TextDataModule
from peftlab.errors import PeftlabError, RunError
from peftlab.report.curves import draw_curves
from peftlab.report.history import write_metrics_csv
from peftlab.report.result import print_result
from peftlab.runs import facts, record
from peftlab.runs.adapter_file import fingerprint, save_adapter
from peftlab.runs.assemble import Assembled, assemble, count_parameters, lightning_module
from peftlab.runs.finished import finished_record
from peftlab.runs.folder import RunFolder
from peftlab.runs.summary import print_before
from peftlab.seeding import derive_seed
from peftlab.training.module import ClassificationModule
from peftlab.training.trainer import MODES, build_trainer, quiet


def train(config: RunConfig, *, argv: list[str]) -> dict[str, Any]:
    """Run ``config``, or finish it, or find that it is finished; return its record.

    In the other ranks of a DDP run the record is empty: rank 0 holds the run and writes.
    """
    folder = RunFolder.of(config)
    if rank() != 0:
        return _train(config, folder, argv)
    with folder.locked():
        if (finished := finished_record(config, folder)) is not None:
            return finished
        if config.force:
            _forget(folder)
        folder.write_config(config)
        try:
            return _train(config, folder, argv)
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, PeftlabError) or folder.checkpoints.exists():
                _note_failure(config, folder, argv, error)
            else:  # refused before it began: leave nothing behind
                _remove_if_untouched(folder)
            raise


def rank() -> int:
    """This process's place in a DDP run, from the environment that started it; 0 if it is alone."""
    return int(vars(rank_zero_only).get("rank") or 0)


def _train(config: RunConfig, folder: RunFolder, argv: list[str]) -> dict[str, Any]:
    quiet()
    # Nothing of ours draws from the global generator before training seeds it step by step; this is for
    # whatever a method or a model might draw all the same.
    L.seed_everything(derive_seed(config.seed, "global") % 2**32, verbose=False)
    splits = config.data.load()
    assembled = assemble(config, splits)
    parameters = count_parameters(assembled.backbone)
    if rank() == 0:
        print_before(config, folder, splits, assembled.backbone, parameters)
    data = TextDataModule(config.data, splits, assembled.backbone.tokenizer, config.seed)
    module = lightning_module(config, assembled, len(splits.label_names))
    logger = None
    if rank() == 0:
        logger = config.logger.build(name=config.name, key=folder.key, folder=folder.logs, config=_flat(config.plain()))
    try:
        return _fit_test_record(config, folder, argv, splits, assembled, data, module, parameters, logger)
    finally:
        if logger is not None:
            config.logger.finish()


def _fit_test_record(
    config: RunConfig,
    folder: RunFolder,
    argv: list[str],
    splits: Splits,
    assembled: Assembled,
    data: TextDataModule,
    module: ClassificationModule,
    parameters: dict[str, int],
    logger: Any,
) -> dict[str, Any]:
    world = 1 if config.trainer.devices == "auto" else int(config.trainer.devices) * config.trainer.num_nodes
    trainer = build_trainer(
        config.trainer,
        folder=folder.path,
        checkpoints=folder.checkpoints,
        logger=logger,
        rows_per_step=config.data.batch_size * world,
    )
    frozen_before = fingerprint(assembled.backbone, trainable=False)
    last = folder.checkpoints / "last.ckpt"
    resumed = last.exists()
    if resumed:
        _require_readable(last)
        if rank() == 0:
            print(f"resuming from {last}")
    try:
        trainer.fit(module, data, ckpt_path=last if resumed else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    chosen = _load_chosen(config, folder, module)
    frozen_after = fingerprint(assembled.backbone, trainable=False)
    if frozen_before != frozen_after:
        raise RunError(
            f"peft={assembled.strategy.name} changed weights that do not train: the adapter file would not "
            "restore this model. This is a defect of the method; no result is written."
        )
    began = time.perf_counter()
    trainer.test(module, data, verbose=False)
    test_seconds = time.perf_counter() - began
    if module.test_metrics["rows"] != len(splits.test):
        raise RunError(
            f"the test saw {module.test_metrics['rows']} rows of {len(splits.test)}: the figure would be wrong."
        )
    if trainer.global_rank != 0:
        return {}
    return _write_down(config, folder, argv, splits, assembled, module, parameters, chosen, test_seconds, resumed)


def _write_down(
    config: RunConfig,
    folder: RunFolder,
    argv: list[str],
    splits: Splits,
    assembled: Assembled,
    module: ClassificationModule,
    parameters: dict[str, int],
    chosen: dict[str, Any],
    test_seconds: float,
    resumed: bool,
) -> dict[str, Any]:
    """Write everything a run leaves; the record last."""
    adapter = save_adapter(
        folder, assembled.strategy, assembled.backbone, record.adapter_facts(config, splits, assembled, folder)
    )
    write_metrics_csv(folder.metrics, module.history)
    draw_curves(folder.curves, module.history, title=f"{config.name}  {folder.key}", chosen_epoch=chosen["epoch"])
    written = record.head(config, folder, argv, "finished") | {
        "data": record.data_facts(config, splits),
        "backbone": assembled.backbone.provenance
        | {"fingerprint": assembled.fingerprint, "frozen_unchanged": True},  # checked above, or we are not here
        "parameters": parameters | {"adapter_bytes": adapter["bytes"]},
        "selection": chosen,
        "metrics": record.metrics(module, chosen["epoch"], splits),
        "history": module.history,
        "timing": record.timing(module, len(splits.test), test_seconds, resumed=resumed),
        "memory": facts.peak_memory_mib(),
        "files": {"adapter.safetensors": {"sha256": adapter["sha256"], "bytes": adapter["bytes"]}},
    }
    folder.write_record(written)
    print_result(folder.path, written)
    return written


def _require_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any of torch's, zipfile's and pickle's ways
        raise RunError(
            f"{checkpoint} is damaged ({str(error).splitlines()[0]}). force=true starts the run from the beginning."
        ) from error


def _load_chosen(config: RunConfig, folder: RunFolder, module: ClassificationModule) -> dict[str, Any]:
    """Put the weights of the epoch that the selection rule chose into ``module``; say which it was."""
    name = config.trainer.select
    checkpoint = torch.load(folder.checkpoints / f"{name}.ckpt", map_location="cpu", weights_only=True)
    module.load_trained(checkpoint["state_dict"])
    row = checkpoint["history"][-1]
    monitor = f"validation/{config.trainer.monitor}"
    return {
        "rule": f"{'highest' if MODES[config.trainer.monitor] == 'max' else 'lowest'} {monitor}"
        if name == "best"
        else "last epoch",
        "epoch": row["epoch"],
        monitor: row[monitor],
    }


def _note_failure(config: RunConfig, folder: RunFolder, argv: list[str], error: BaseException) -> None:
    """Write down that the run failed, so that reports can list it; starting it again resumes it."""
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        if (old := folder.read_record()) is not None and old["status"] == "finished":
            return  # force=true failed: the old result stays
        message = f"{type(error).__name__}: {error}"
        folder.write_record(record.head(config, folder, argv, status) | {"error": message})
    except (PeftlabError, OSError) as second:  # a full disk: the first error is the one to show
        print(f"could not note the failure in {folder.record}: {second}", file=sys.stderr)


def _forget(folder: RunFolder) -> None:
    """Start anew: the checkpoints go now; the old result stays until the new one replaces it."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _remove_if_untouched(folder: RunFolder) -> None:
    """Remove the folder of a run that never began, if nothing but its config is in it."""
    if {path.name for path in folder.path.iterdir()} <= {".lock", folder.config.name}:
        shutil.rmtree(folder.path, ignore_errors=True)
        if folder.path.parent.is_dir() and not any(folder.path.parent.iterdir()):
            folder.path.parent.rmdir()


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of plain containers only, as JSON would have it, for loggers."""
    flat: dict[str, Any] = json.loads(json.dumps(values))
    return flat
