"""Which fields of a config enter a run's key, as its record says it: for who reads records, without any class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELD = "identity"
"""Where a record holds what :func:`peftlab.records.identity.recorded` says; earlier versions did not write it."""


@dataclass(frozen=True)
class Rules:
    """Which fields of a plain config enter its key, by their dotted keys."""

    bookkeeping: frozenset[str]
    """Fields that do not; a whole group by its own name."""
    added: Mapping[str, Any]
    """Fields that came later, and their defaults, at which they do not enter either."""
    run_folders: tuple[str, ...]
    """Bookkeeping that may name the folder of an earlier run."""

    def enters(self, key: str, value: Any) -> bool:
        """Whether the field ``key`` enters with this value."""
        return key not in self.bookkeeping and not (key in self.added and value == self.added[key])
