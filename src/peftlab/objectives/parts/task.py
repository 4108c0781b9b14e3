"""A task of several in one data set. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of several in one data set: its name, and the classes that are its own."""

    name: str
    first: int
    """Index of its first class among all classes."""
    stop: int
    """Index behind its last class."""

    @property
    def classes(self) -> range:
        """Indices of its classes."""
        return range(self.first, self.stop)
