"""What a run has forgotten of the task of the run that it started from (``backbone.from_run``).

The earlier run's head is put back on the backbone as training left it, and tested on the earlier run's test rows:

    forgetting = accuracy of the earlier run - accuracy with its head put back

once with the adapter on, and once with it off, where the method has one that can be switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.peft.surgery import replace_module
from peftlab.runs.assemble import Assembled, reassemble
from peftlab.runs.evaluate import measure
from peftlab.runs.folder import RunFolder, finished_run


def measure_forgetting(config: RunConfig, assembled: Assembled, folder: RunFolder) -> dict[str, Any]:
    """Accuracies on the earlier task, and what was lost; leaves ``assembled`` as it was."""
    earlier_folder, earlier_config, record = finished_run(str(config.backbone.from_run))
    earlier, _ = reassemble(earlier_folder, earlier_config)
    one_device = replace(config.trainer, devices=1, num_nodes=1, strategy="auto", progress_bar=False)
    test_config = replace(earlier_config, trainer=one_device)
    splits = earlier_config.data.load()

    def accuracy(model: Assembled) -> float:
        found: float = measure(test_config, model, splits, splits.test, folder)["accuracy"]
        return found

    before = accuracy(earlier)  # measured again, so that all three figures are of this machine
    backbone = assembled.backbone
    with head_of(earlier.backbone, backbone):
        after = accuracy(assembled)
        try:
            with assembled.adapter.disabled():
                off = accuracy(assembled)
        except PeftlabError:  # it trains the backbone's own weights
            off = None
    return {
        "earlier_run": record["key"],
        "test_kind": splits.test_kind,
        "rows": len(splits.test),
        "before_recorded": record["metrics"]["test"]["accuracy"],
        "before": before,
        "after": after,
        "forgetting": before - after,
        "after_with_adapter_off": off,
        "forgetting_with_adapter_off": None if off is None else before - off,
    }


@contextmanager
def head_of(earlier: Backbone, backbone: Backbone) -> Iterator[None]:
    """Inside, ``backbone`` has a copy of the head of ``earlier``."""
    kept: dict[str, nn.Module] = {name: backbone.model.get_submodule(name) for name in backbone.head_modules()}
    for name in kept:
        replace_module(backbone.model, name, copy.deepcopy(earlier.model.get_submodule(name)))
    try:
        yield
    finally:
        for name, module in kept.items():
            replace_module(backbone.model, name, module)
