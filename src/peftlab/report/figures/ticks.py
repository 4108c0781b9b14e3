"""Ticks of logarithmic axes: few, at round numbers, and written out, since powers of ten would run into each other."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

MOST_TICKS = 6
_ROUND = ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Leading digits of ticks, the densest first."""


def ticks_between(low: float, high: float) -> list[float]:
    """At most MOST_TICKS round numbers between ``low`` and ``high``, both above 0, as evenly as they come."""
    first, last = floor(log10(low)), ceil(log10(high))
    found: list[float] = []
    for digits in _ROUND:
        every = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        found = [tick for tick in every if low <= tick <= high]
        if len(found) <= MOST_TICKS:
            break
    if len(found) > MOST_TICKS:
        found = found[:: ceil(len(found) / MOST_TICKS)]
    if len(found) >= 2:
        return found
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def tick_text(value: float) -> str:
    """``30``, ``3,000``, ``20k``, ``1.5M``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.6g}{letter}"
    return f"{value:,.0f}" if value >= 1000 and value == round(value) else f"{value:.6g}"


def use_round_ticks(panel: Any) -> None:
    """Give the logarithmic x axis of ``panel`` such ticks; after everything is drawn, so that its limits are known."""
    from matplotlib.ticker import NullLocator

    low, high = panel.get_xlim()
    ticks = ticks_between(low, high)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(ticks, list(map(tick_text, ticks)))
    panel.set_xlim(low, high)
