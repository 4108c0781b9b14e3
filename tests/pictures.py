"""Curves of runs, in tests: of each kind of history one picture is drawn, and the others of it are copies.

Drawing takes a quarter of a run of a second. What a picture shows is tested in ``report/figures``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from peftlab.report.figures import training
from peftlab.training.places import ends_epoch

_DRAWN: dict[tuple[Any, ...], bytes] = {}


def draw_each_kind_once() -> None:
    """Let runs of this process draw so; before anything imports them."""
    really: Callable[..., None] = training.draw_curves

    def draw(path: Path, history: list[dict[str, Any]], objective: Any, **more: Any) -> None:
        kept = more["kept"]
        gaps = any(value is None or (isinstance(value, float) and not isfinite(value))
                   for row in history for value in row.values())  # fmt: skip
        kind = (objective.selects, objective.loss_title, len(history) > 1, gaps, kept is None or ends_epoch(kept))
        if kind not in _DRAWN:
            really(path, history, objective, **more)
            _DRAWN[kind] = path.read_bytes()
        path.write_bytes(_DRAWN[kind])

    training.draw_curves = draw
