"""What a run has forgotten of the task of the run that it started from (``backbone.from_run``).

The earlier run's head is put back on the backbone as training left it, and tested on the earlier run's test rows:

    forgetting = the earlier run's figure - the same with its head put back

The figure is the one that selects for the earlier run's objective: a share of right answers, a correlation. Where less
is better, the difference is taken the other way: what is forgotten is positive. Measured once with the adapter on,
and once with it off, where the method has one that can be switched off.
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
from peftlab.records.folder import RunFolder, finished_run
from peftlab.runs.assemble import Assembled, reassemble
from peftlab.runs.evaluate import measure


def measure_forgetting(config: RunConfig, assembled: Assembled, folder: RunFolder) -> dict[str, Any]:
    """Figures on the earlier task, and what was lost; leaves ``assembled`` as it was."""
    earlier_folder, earlier_config, record = finished_run(str(config.backbone.from_run))
    earlier, _ = reassemble(earlier_folder, earlier_config)
    one_device = replace(config.trainer, devices=1, num_nodes=1, strategy="auto", progress_bar=False, monitor=None)
    test_config = replace(earlier_config, trainer=one_device)
    splits = earlier_config.data.load()

    objective = earlier_config.data.what_is_learned()
    figure = objective.figure(objective.selects)

    def measured(model: Assembled) -> float | None:
        found: float | None = measure(test_config, model, splits, splits.test, folder)[figure.name]
        return found

    def lost(after: float | None) -> float | None:
        if before is None or after is None:
            return None
        return before - after if figure.better == "max" else after - before

    before = measured(earlier)  # measured again, so that all three figures are of this machine
    backbone = assembled.backbone
    with head_of(earlier.backbone, backbone):
        after = measured(assembled)
        try:
            with assembled.adapter.disabled():
                off = measured(assembled)
        except PeftlabError:  # it trains the backbone's own weights
            off = None
    return {
        "earlier_run": record["key"],
        "test_kind": splits.test_kind,
        "rows": len(splits.test),
        "before_recorded": record["metrics"]["test"][figure.name],
        "before": before,
        "after": after,
        "forgetting": lost(after),
        "after_with_adapter_off": off,
        "forgetting_with_adapter_off": lost(off),
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
