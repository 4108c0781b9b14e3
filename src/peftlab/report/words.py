"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peftlab.report.groups import Group

SHOWN_NAMES = 5


def runs_of_each(groups: Sequence[Group]) -> tuple[int, str] | None:
    """How many runs all ``groups`` have, and what they are counted as; None if they differ, or one lacks some."""
    found = {(len(group.runs), group.unit) for group in groups}
    (count, unit) = found.pop() if len(found) == 1 else (0, "")
    return (count, unit) if count and not any(group.missing for group in groups) else None


def counted(count: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def with_the_head(title: str, heads: Iterable[float]) -> str:
    """That a column counts the head too, in a sentence; empty where no head trains.

    Args:
        title: of a column of all parameters that train.
        heads: how many of each run's are its head's.
    """
    found = {round(number) for number in heads}
    sizes = sorted(found - {0})
    if not sizes:
        return ""
    count = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"The head's {count}{', where it trains,' if 0 in found else ''} are counted in: {title}."


def names(groups: Iterable[Group]) -> str:
    """Labels of the first few groups, and how many there are beyond."""
    labels = [group.label for group in groups]
    more = f" and {len(labels) - SHOWN_NAMES} more" if len(labels) > SHOWN_NAMES else ""
    return "; ".join(labels[:SHOWN_NAMES]) + more
