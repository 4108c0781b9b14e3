"""Errors a user can cause, each saying what was given, what is allowed and what to do.

The command line turns any :class:`PeftlabError` into its message on stderr and exit status 2;
``PEFTLAB_DEBUG=1`` shows the traceback as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PeftlabError(ValueError):
    """Something the user gave cannot be used; the message says how to mend it."""


class ConfigError(PeftlabError):
    """A configuration that cannot be composed or does not fit the schema."""


class DataError(PeftlabError):
    """A data file, package or hub data set that cannot be read as labelled texts."""


class BackboneError(PeftlabError):
    """A backbone that cannot be found, built or trusted."""


class UnreadableText(PeftlabError):
    """A text that a tokenizer cannot read; ``row`` is its number, from 0, among those given."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


class RunError(PeftlabError):
    """A run folder that is missing, unfinished, damaged or in use."""


class RunInUse(RunError):
    """A run that another process trains at this moment."""


class OutOfMemory(RunError):
    """A run for which the memory of its GPU was too small."""


class Diverged(RunError):
    """A training whose loss or gradient is no finite number; ``facts`` say where."""

    def __init__(self, facts: dict[str, Any], said: str = "diverged") -> None:
        self.facts = facts
        super().__init__(said)


class SweepFailed(PeftlabError):
    """Jobs of a sweep failed; what was given could be used, so the exit status is 1."""


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says; its kind, where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`` Did you mean 'rank'?`` for the candidate closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str], limit: int = 40) -> str:
    """``a, b, c`` sorted; beyond ``limit`` names the rest is counted."""
    ordered = sorted(names)
    if not ordered:
        return "(none)"
    if len(ordered) <= limit:
        return ", ".join(ordered)
    return ", ".join(ordered[:limit]) + f", … ({len(ordered) - limit} more)"


def counted(number: int, what: str) -> str:
    """``1 job``, ``3 jobs``, ``1,000 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
