"""A run's config as hyperparameters of TensorBoard: a row of its HPARAMS tab, with the figures of the test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

_NO_HPARAMS = ("name", "output_dir", "force", "logger", "continue_from")
"""Where a run is put, and what is done with it."""


class LoggerWithHparams(TensorBoardLogger):
    """Lightning's logger, whose event file begins with the config, flat, and says how the run ended.

    Lightning itself writes hyperparameters only together with figures, and then an ``experiment`` too, of which
    TensorBoard takes the first that it finds: a folder with runs of several methods would show the keys of one. Without
    it the tab has all keys of all runs, and as metrics what they have logged, ``test/accuracy`` and the rest.

    Args:
        folder: the run's ``logs``.
        key: the run's.
        config: the run's, as plain containers.
    """

    def __init__(self, folder: Path, key: str, config: Mapping[str, Any]) -> None:
        super().__init__(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)
        start = hparams_pb({"key": key, **flat(config)}, trial_id=key)  # one row a key, however often it was resumed
        self._write(start)

    def finalize(self, status: str) -> None:
        """Say that the run ended well, or did not; Lightning calls this after training and after the test."""
        if self._experiment is not None:
            how = Status.STATUS_SUCCESS if status == "success" else Status.STATUS_FAILURE
            end = HParamsPluginData(session_end_info=SessionEndInfo(status=how, end_time_secs=time.time()))
            said = Summary.Value(
                tag=metadata.SESSION_END_INFO_TAG,
                metadata=metadata.create_summary_metadata(end),
                tensor=metadata.NULL_TENSOR,
            )
            self._write(Summary(value=[said]))
        super().finalize(status)

    def _write(self, summary: Summary) -> None:
        self.experiment._get_file_writer().add_summary(summary)  # after training Lightning has closed it: a new one


def flat(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Key → value of each leaf, ``peft.rank``; the group alone is its class, a list its JSON; null is left out.

    What is no part of what a run computes (its name, loggers) is left out too.
    """
    return dict(_leaves({name: value for name, value in config.items() if name not in _NO_HPARAMS}, ""))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str | float | bool]]:
    for name, value in values.items():
        key = prefix.removesuffix(".") if name == "_target_" and prefix else f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        elif name == "_target_":
            yield key, str(value).rpartition(".")[2]
        elif isinstance(value, bool | int | float | str):
            yield key, value
        elif value is not None:
            yield key, json.dumps(value, ensure_ascii=False)
