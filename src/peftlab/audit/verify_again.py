"""The parts of verifying that read the data or run the model again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from peftlab.audit.changes import changes
from peftlab.audit.consistency import ADDED_LATER, Finding, same
from peftlab.audit.verify import Verdict
from peftlab.class_names import stable_name
from peftlab.config import from_plain
from peftlab.data.base import DataSet
from peftlab.data.module import content_hash
from peftlab.errors import PeftlabError
from peftlab.metric_names import record_part
from peftlab.records.find import look_beside
from peftlab.runs.evaluate import evaluate_counted


class DataHashes:
    """Hashes of data sets as they are now, each read once however many runs used it."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, data: DataSet) -> str:
        """The hash that a record of a run on ``data`` would have.

        Raises:
            DataError: if the data cannot be read here.
        """
        name = f"{stable_name(type(data))} {json.dumps(asdict(data), sort_keys=True)}"
        if name not in self._known:
            self._known[name] = content_hash(data.load())
        return self._known[name]


def verify_data(verdict: Verdict, hashes: DataHashes) -> None:
    """Read the run's data at its source and compare their hash with the record's."""
    record = verdict.record
    assert record is not None
    try:
        found = hashes.of(from_plain(record["config"]).data)
    except (PeftlabError, OSError) as error:
        verdict.differences.append(Finding("data", f"cannot be read here: {error}"))
        return
    if found != (recorded := record["data"]["hash"]):
        said = f"the texts are others now: {found[:12]}…, the record says {recorded[:12]}…"
        verdict.differences.append(Finding("data.hash", said))


def verify_test(verdict: Verdict) -> None:
    """Build the model again from the run's folder alone, count it, test it, and compare every figure to the bit."""
    record = verdict.record
    assert record is not None
    threads = torch.get_num_threads()
    try:
        config = look_beside(from_plain(record["config"]), verdict.folder)
        processes = config.trainer.devices
        config.trainer = replace(config.trainer, devices=1, num_nodes=1, strategy="auto", progress_bar=False)
        tested, counted = evaluate_counted(verdict.folder, config)
    except (PeftlabError, OSError) as error:
        verdict.differences.append(Finding("test again", f"impossible here: {error}"))
        return
    finally:
        torch.set_num_threads(threads)  # trainer.threads of one run is not for the next
    verdict.differences += _different_counts(counted, record["parameters"])
    differences = list(different_figures(tested["metrics"], record["metrics"]["test"], record_part("test")))
    verdict.differences += [
        Finding(key, f"tested again it is {now}; the record has {before}") for key, now, before in differences
    ]
    if differences:
        verdict.changes = changes(record)
        if processes != 1:
            verdict.changes.append(f"the run was tested by {processes} processes, and here by one")


def _different_counts(counted: dict[str, int], recorded: dict[str, int]) -> Iterator[Finding]:
    """Counts of the model built again that are not the record's."""
    for name, value in counted.items():
        # the record has the bytes of the file for adapter_bytes, and older ones have not every count
        if name != "adapter_bytes" and name in recorded and value != recorded[name]:
            yield Finding(f"parameters.{name}", f"built again the model has {value}; the record says {recorded[name]}")


def different_figures(now: Any, before: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value now and value before of each figure that is not the same to the bit."""
    if isinstance(now, dict) and isinstance(before, dict):
        for name in dict.fromkeys([*before, *(name for name in now if name not in ADDED_LATER)]):
            yield from different_figures(now.get(name), before.get(name), f"{prefix}.{name}")
    elif not same(now, before):
        yield prefix, now, before
