"""What a reader must know beside the figures: what was measured, what is mixed, what is missing, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.objectives.base import figure_called
from peftlab.report.groups import Group
from peftlab.report.groups_sweep import SweepFile
from peftlab.report.legends import SHOWN_NAMES, counted, names
from peftlab.report.records import Run
from peftlab.report.records_config import COMPUTED
from peftlab.report.same_rows import VERBS
from peftlab.report.statistics import binomial_error

if TYPE_CHECKING:
    from peftlab.report.build import Report

TAIL_LINES = 12


@dataclass(frozen=True)
class FailureNote:
    """A run without a result."""

    title: str
    reason: str
    log: str | None
    """The file, if there is one."""
    tail: str
    """Last lines of its log."""


def add_notes(report: Report, sweeps: Sequence[SweepFile], where: Sequence[str]) -> None:
    """Fill in selection, data, notes and failures of ``report``."""
    runs = [run for group in report.rows for run in group.runs]
    rules = list(dict.fromkeys(run.facts["selection"] for run in runs if run.facts["selection"]))
    report.selection = [sweep.selection for sweep in sweeps if sweep.selection]
    report.selection += [] if report.selection else [f"Weights chosen by: {', '.join(rules)}."] if rules else []
    report.measured_on = _measured_on(report)
    report.notes += [
        *([f"Only runs with {', '.join(where)}."] if where else []),
        *_about_missing(report),
        *_about_computed(report),
        *_about_mixture(report),
        *_about_single_seeds(report),
        *_about_divergence(report.rows),
        *_about_values(report),
        *_about_others(report),
        *[f"{group.label}: chosen on validation: {_settings(group)}." for group in report.rows if group.chosen],
        *([f"In no label, since it differs only where the others do: {', '.join(report.grouped.implied)}."]
          if report.grouped.implied else []),
        *[" ".join(sweep.notes.split()) for sweep in sweeps if sweep.notes],
    ]  # fmt: skip
    report.failures = _failures([*report.rows, *report.others])


def _runs(count: int) -> str:
    return counted(count, "run")


def _settings(group: Group) -> str:
    return ", ".join(f"{key}={value}" for key, value in group.chosen.items())


def _measured_on(report: Report) -> list[str]:
    """A line for each kind of data; where rows of one kind are not the same rows, for each set of them."""
    kinds: dict[str, dict[str, list[Group]]] = {}
    for group in report.rows:
        for run in group.runs:
            facts = run.facts
            text = (
                f"{facts['data']}: trained on {facts['train kind']}, tested on {facts['test kind']}; "
                f"rows {facts['rows']} (train / validation / test)"
            )
            members = kinds.setdefault(text, {}).setdefault(_texts(report, run), [])
            if group not in members[-1:]:
                members.append(group)
    lines = [
        (f"{text}; {texts}" if len(of_kind) > 1 else text, groups)
        for text, of_kind in kinds.items()
        for texts, groups in of_kind.items()
    ]
    if len(lines) < 2:
        return [text for text, _ in lines]
    return [f"{text}; rows of the table: {names(groups)}" for text, groups in lines]


def _texts(report: Report, run: Run) -> str:
    known = report.same.texts[run.folder]
    return report.same.described[known]


def _about_missing(report: Report) -> list[str]:
    lacking = [group for group in report.rows if group.missing]
    if not lacking:
        return []
    count = sum(len(group.missing) for group in lacking)
    verb = "run has" if count == 1 else "runs have"
    return [f"{count} {verb} no result; the table says n/N seeds in {counted(len(lacking), 'row')}."]


def _about_computed(report: Report) -> list[str]:
    """Which rows were not computed as the numbers of their configs are today, and what is other."""
    lines: dict[str, list[Group]] = {}
    for group in report.rows:
        for line in dict.fromkeys(line for run in group.runs for line in run.standing.lines()):
            lines.setdefault(line, []).append(group)
    return [f"{line[:1].upper()}{line[1:]}. Rows: {names(groups)}." for line, groups in lines.items()]


_MIXED: list[tuple[str, str, Callable[[Run], str]]] = [
    ("data hash", "the texts differ (data hash)", lambda run: run.facts["data hash"][:12]),
    ("test kind", "what they are tested on differs", lambda run: run.facts["test kind"]),
    ("selection", "the selection rule differs", lambda run: run.facts["selection"]),
]


def _about_mixture(report: Report) -> list[str]:
    said, rows = [], report.rows
    for _, text, fact in _MIXED:
        mixed = [group for group in rows if len({fact(run) for run in group.runs}) > 1]
        if mixed:
            said.append(f"Within a row {text}: {names(mixed)}.")
    if mixed := [group for group in rows if len(report.same.of(group)) > 1]:
        said.append(f"Within a row some are {report.same.why_not} than the others: {names(mixed)}.")
    if len(hashes := {run.facts["data hash"] for group in rows for run in group.runs}) > 1:
        said.append(f"The rows do not all stand on the same texts: there are {len(hashes)} data hashes.")
    if (count := len(report.same.sets(rows))) > 1:
        verb = VERBS[report.same.split]
        said.append(f"The rows are not all {verb} on the same texts: there are {count} sets, and no test between them.")
    said += _about_versions(rows)
    for fact_name, text in (("hardware", "hardware"), ("revision", "revisions of the code")):
        counts = Counter(run.facts[fact_name] for group in rows for run in group.runs)
        if len(counts) > 1:
            kinds = "; ".join(f"{value} ({counted(count, 'run')})" for value, count in counts.most_common(SHOWN_NAMES))
            more = f" and {len(counts) - SHOWN_NAMES} more" if len(counts) > SHOWN_NAMES else ""
            mixed = [group for group in rows if len({run.facts[fact_name] for run in group.runs}) > 1]
            inside = f" Mixed within: {names(mixed)}." if mixed else ""
            advice = " Times and memory are not comparable." if fact_name == "hardware" else ""
            said.append(f"Several {text}: {kinds}{more}.{inside}{advice}")
    return said


def _about_versions(rows: Sequence[Group]) -> list[str]:
    counts = Counter(run.facts["versions"] for group in rows for run in group.runs)
    if len(counts) < 2:
        return []
    found: dict[str, Counter[str]] = {}
    for versions, count in counts.items():
        for part in versions.split(", "):
            name, _, version = part.partition(" ")
            found.setdefault(name, Counter())[version] += count
    total = counts.total()
    differing = [
        f"{name} {', '.join(f'{version} ({_runs(count)})' for version, count in sorted(of.items()))}"
        for name, of in sorted(found.items())
        if len(of) > 1 or of.total() < total
    ]
    mixed = [group for group in rows if len({run.facts["versions"] for run in group.runs}) > 1]
    inside = f" Mixed within: {names(mixed)}." if mixed else ""
    return [f"Several versions: {'; '.join(differing)}.{inside}"]


def _about_single_seeds(report: Report) -> list[str]:
    """With one seed there is no spread; what the sampling of test rows makes of a share of them is known."""
    single = [group for group in report.rows if report.summaries[group.id].n == 1]
    if not single:
        return []
    text = f"One seed only, hence no ±: {names(single)}."
    errors = [error for group in single if (error := sampling_error(report, group)) is not None]
    if errors:
        low, high = f"{min(errors):.4f}", f"{max(errors):.4f}"
        text += (
            f" The binomial standard error of one test, from the number of its rows alone, is "
            f"{low if low == high else f'{low} to {high}'}."
        )
    return [text]


def sampling_error(report: Report, group: Group) -> float | None:
    """Binomial standard error of the group's mean share of right rows on its number of test (or validation) rows."""
    path, summary = report.metric.value, report.summaries[group.id]
    if not path.startswith(("metrics.test.", "metrics.validation.")) or not _is_share(path):
        return None
    rows = {run.facts[f"{path.split('.')[1]} rows"] for run in group.runs}
    if not summary.finite or len(rows) != 1 or not (one := rows.pop()).isdigit():
        return None
    return binomial_error(summary.mean or 0.0, int(one)) if int(one) else None


def _is_share(path: str) -> bool:
    """Whether the figure at ``path`` is a share of the rows."""
    figure = figure_called(path.rpartition(".")[2])
    return figure is not None and figure.share_of_rows


def _about_divergence(rows: Sequence[Group]) -> list[str]:
    lost = {group.label: [str(run.seed) for run in group.runs if run.diverged] for group in rows}
    found = [f"{label} (seed {', '.join(seeds)})" for label, seeds in lost.items() if seeds]
    if not found:
        return []
    more = f" and {len(found) - SHOWN_NAMES} more rows" if len(found) > SHOWN_NAMES else ""
    return [
        f"Training diverged, its loss is not finite: {'; '.join(found[:SHOWN_NAMES])}{more}. "
        "These runs are in the means."
    ]


def _about_values(report: Report) -> list[str]:
    path = report.metric.value
    lacking = [group for group in report.rows if len(group.values(path)) < len(group.runs)]
    said = [f"Some runs have no {report.metric.title}: {names(lacking)}."] if lacking else []
    twice = [group for group in report.rows if group.by_seed(path) is None]
    if twice:
        said.append(f"Several runs of one seed in a row, hence no paired test: {names(twice)}.")
    return said


def _about_others(report: Report) -> list[str]:
    said = []
    if report.others:
        said.append(f"Cells that are no rows: {names(report.others)}. Their runs are in report.csv.")
    if report.grouped.tried:
        said.append(f"{counted(report.grouped.tried, 'run')} of a search that were not chosen are not shown.")
    outside = report.grouped.outside
    if outside:
        keys = ", ".join(run.key for run in outside[:SHOWN_NAMES])
        more = f" and {len(outside) - SHOWN_NAMES} more" if len(outside) > SHOWN_NAMES else ""
        said.append(
            f"{counted(len(outside), 'run')} beside a sweep.json, of none of its cells, not shown: {keys}{more}. "
            f"{_computed_outside(outside)}"
            "--by groups all runs by their configs."
        )
    return said


def _computed_outside(runs: Sequence[Run]) -> str:
    counts = Counter(words for run in runs if (words := run.config.get(COMPUTED)))
    return "".join(f"Of these, {count:,} computed {words}. " for words, count in counts.items())


def _failures(groups: Sequence[Group]) -> list[FailureNote]:
    found = []
    for group in groups:
        by_seed = {str(run.seed): run for run in group.failed}
        for seed, why in group.missing.items():
            run = by_seed.get(seed)
            beside = f"{run.folder.rpartition('/')[0]}/.logs/{run.key}.txt" if run else None
            log = next((log for log in (group.logs.get(seed), beside) if log and Path(log).is_file()), None)
            reason = " ".join(why.split())
            found.append(FailureNote(f"{group.label}, seed {seed}", reason, log, _tail(log)))
    return found


def _tail(log: str | None) -> str:
    if log is None:
        return ""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:  # gone or not ours to read
        return ""
    return "\n".join(line.rstrip() for line in text.strip().splitlines()[-TAIL_LINES:])
