"""Which runs were measured on the same texts: only their figures may be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peftlab.metric_names import MetricName
from peftlab.report.groups import Group
from peftlab.report.records import Run

VERBS = {"train": "trained", "validation": "validated", "test": "tested"}


@dataclass(frozen=True)
class SameRows:
    """The texts behind each run's figure."""

    split: str
    """The split that the metric is measured on."""
    texts: dict[str, str]
    """Folder of a run → its texts: their hash, or what is known of them."""
    described: dict[str, str]
    """Texts → how to tell them from others of the same kind and number."""

    def of(self, group: Group) -> tuple[str, ...]:
        """The texts of ``group``; one, unless it mixes them. Means may be compared where this is alike."""
        return tuple(sorted({self.texts[run.folder] for run in group.runs}))

    def pairable(self, group: Group, other: Group) -> bool:
        """Whether the runs of both have the same texts at each seed that both have."""
        first, second = (_by_seed(self, one) for one in (group, other))
        shared = first.keys() & second.keys()
        return all(first[seed] == second[seed] for seed in shared) if shared else self.of(group) == self.of(other)

    @property
    def why_not(self) -> str:
        """What is said of two groups that are not."""
        return f"{VERBS[self.split]} on other texts"

    def sets(self, groups: Iterable[Group]) -> list[tuple[str, ...]]:
        """The different texts of ``groups``, in their order."""
        return list(dict.fromkeys(self.of(group) for group in groups if group.runs))


def _by_seed(same: SameRows, group: Group) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for run in group.runs:
        found.setdefault(run.seed, set()).add(same.texts[run.folder])
    return found


def split_of(metric: str) -> str:
    """The split that ``metric`` is measured on; what is no figure of a split, like seconds, counts as the test's."""
    name = MetricName.from_record(metric)
    return "test" if name is None else name.split


def same_rows(groups: Iterable[Group], metric: str) -> SameRows:
    """Find the texts of all runs of ``groups``, by their hash.

    Older records have none. They are told apart by the data set, the kind and number of rows and, where rows were
    drawn, the seed they were drawn with; one is taken to have the texts of the others that all this is alike of.
    """
    split = split_of(metric)
    runs = [run for group in groups for run in group.runs]
    hashes: dict[str, set[str]] = {}
    for run in runs:
        if known := run.facts[f"{split} hash"]:
            hashes.setdefault(_words(run, split), set()).add(known)
    texts: dict[str, str] = {}
    described: dict[str, str] = {}
    for run in runs:
        words = _words(run, split)
        alike = hashes.get(words, set())
        texts[run.folder] = run.facts[f"{split} hash"] or (next(iter(alike)) if len(alike) == 1 else words)
        described.setdefault(texts[run.folder], _told_apart(run, split))
    return SameRows(split, texts, described)


def _words(run: Run, split: str) -> str:
    return " | ".join((run.facts["data"], run.facts[f"{split} texts"]))


def _told_apart(run: Run, split: str) -> str:
    """What tells the texts of ``run`` from others of the same kind and number."""
    known, drawn = run.facts[f"{split} hash"][:8], run.facts[f"{split} drawn"]
    return f"{split} texts {' '.join(filter(None, (known, drawn and f'({drawn})'))) or 'without a hash'}"
