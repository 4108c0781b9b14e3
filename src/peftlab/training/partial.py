"""What metrics hold in the middle of an epoch, as plain containers: for checkpoints, whatever the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchmetrics import Metric


def states_of(metrics: nn.Module) -> dict[str, Any]:
    """The states of all metrics in ``metrics``, by name: what this process has added, on the CPU."""
    return {
        name: {"updates": metric.update_count, "states": {key: _plain(one) for key, one in metric.metric_state.items()}}
        for name, metric in metrics.named_modules()
        if isinstance(metric, Metric)
    }


def set_states(metrics: nn.Module, states: Mapping[str, Any]) -> None:
    """Let the metrics in ``metrics`` go on from what :func:`states_of` has returned."""
    for name, metric in metrics.named_modules():
        if isinstance(metric, Metric):
            for key, one in states[name]["states"].items():
                placed = [part.to(metric.device) for part in one] if isinstance(one, list) else one.to(metric.device)
                setattr(metric, key, placed)
            metric._update_count = states[name]["updates"]


def _plain(state: Any) -> Any:
    parts = state if isinstance(state, list) else [state]
    copies = [part.detach().cpu().clone() for part in parts]
    return copies if isinstance(state, list) else copies[0]
