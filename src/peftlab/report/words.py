"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from peftlab.report.groups import Group

SHOWN_NAMES = 5


def counted(count: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def names(groups: Iterable[Group]) -> str:
    """Labels of the first few groups, and how many there are beyond."""
    labels = [group.label for group in groups]
    more = f" and {len(labels) - SHOWN_NAMES} more" if len(labels) > SHOWN_NAMES else ""
    return "; ".join(labels[:SHOWN_NAMES]) + more
