"""What a reader must know beside the figures: what was measured, what is mixed, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from peftlab.report.analysis import Analysis
from peftlab.report.groups import Group
from peftlab.report.groups_sweep import SweepFile
from peftlab.report.records import Run
from peftlab.report.records_config import COMPUTED
from peftlab.report.same_rows import VERBS
from peftlab.report.words import SHOWN_NAMES, counted, names


def notes_of(analysis: Analysis, sweeps: Sequence[SweepFile], where: Sequence[str]) -> list[str]:
    """What is mixed, missing, computed otherwise or not shown, a line each, and the notes of the sweeps."""
    return [
        *([f"Only runs with {', '.join(where)}."] if where else []),
        *_about_missing(analysis),
        *_about_computed(analysis),
        *_about_mixture(analysis),
        *_about_single_seeds(analysis),
        *_about_divergence(analysis.rows),
        *_about_values(analysis),
        *_about_others(analysis),
        *[f"{group.label}: chosen on validation: {settings(group)}." for group in analysis.rows if group.chosen],
        *([f"In no label, since it differs only where the others do: {', '.join(analysis.grouped.implied)}."]
          if analysis.grouped.implied else []),
        *[" ".join(sweep.notes.split()) for sweep in sweeps if sweep.notes],
    ]  # fmt: skip


def selection_of(analysis: Analysis, sweeps: Sequence[SweepFile]) -> list[str]:
    """How the weights of each run were chosen."""
    if said := [sweep.selection for sweep in sweeps if sweep.selection]:
        return said
    rules = dict.fromkeys(run.facts["selection"] for group in analysis.rows for run in group.runs)
    chosen_by = ", ".join(filter(None, rules))
    return [f"Weights chosen by: {chosen_by}."] if chosen_by else []


def _runs(count: int) -> str:
    return counted(count, "run")


def settings(group: Group) -> str:
    """What was chosen for ``group``: ``key=value, …``."""
    return ", ".join(f"{key}={value}" for key, value in group.chosen.items())


def measured_on(analysis: Analysis) -> list[str]:
    """A line for each kind of data; where rows of one kind are not the same rows, for each set of them."""
    kinds: dict[str, dict[str, list[Group]]] = {}
    for group in analysis.rows:
        for run in group.runs:
            facts = run.facts
            text = (
                f"{facts['data']}: trained on {facts['train kind']}, tested on {facts['test kind']}; "
                f"rows {facts['rows']} (train / validation / test)"
            )
            members = kinds.setdefault(text, {}).setdefault(_texts(analysis, run), [])
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


def _texts(analysis: Analysis, run: Run) -> str:
    known = analysis.same.texts[run.folder]
    return analysis.same.described[known]


def _about_missing(analysis: Analysis) -> list[str]:
    lacking = [group for group in analysis.rows if group.missing]
    if not lacking:
        return []
    count = sum(len(group.missing) for group in lacking)
    verb = "run has" if count == 1 else "runs have"
    return [f"{count} {verb} no result; the table says n/N seeds in {counted(len(lacking), 'row')}."]


def _about_computed(analysis: Analysis) -> list[str]:
    """Which rows were not computed as the numbers of their configs are today, and what is other."""
    lines: dict[str, list[Group]] = {}
    for group in analysis.rows:
        for line in dict.fromkeys(line for run in group.runs for line in run.standing.lines()):
            lines.setdefault(line, []).append(group)
    return [f"{line[:1].upper()}{line[1:]}. Rows: {names(groups)}." for line, groups in lines.items()]


_MIXED: list[tuple[str, str, Callable[[Run], str]]] = [
    ("data hash", "the texts differ (data hash)", lambda run: run.facts["data hash"][:12]),
    ("test kind", "what they are tested on differs", lambda run: run.facts["test kind"]),
    ("selection", "the selection rule differs", lambda run: run.facts["selection"]),
]


def _about_mixture(analysis: Analysis) -> list[str]:
    said, rows = [], analysis.rows
    for _, text, fact in _MIXED:
        mixed = [group for group in rows if len({fact(run) for run in group.runs}) > 1]
        if mixed:
            said.append(f"Within a row {text}: {names(mixed)}.")
    if mixed := [group for group in rows if len(analysis.same.of(group)) > 1]:
        said.append(f"Within a row some are {analysis.same.why_not} than the others: {names(mixed)}.")
    if len(hashes := {run.facts["data hash"] for group in rows for run in group.runs}) > 1:
        said.append(f"The rows do not all stand on the same texts: there are {len(hashes)} data hashes.")
    if (count := len(analysis.same.sets(rows))) > 1:
        verb = VERBS[analysis.same.split]
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


def _about_single_seeds(analysis: Analysis) -> list[str]:
    """With one seed there is no spread; what the sampling of test rows makes of a share of them is known."""
    single = [group for group in analysis.rows if analysis.summaries[group.id].n == 1]
    if not single:
        return []
    text = f"One seed only, hence no ±: {names(single)}."
    errors = [error for group in single if (error := analysis.sampling_error(group)) is not None]
    if errors:
        text += (
            f" The binomial standard error of one test, from the number of its rows alone, is "
            f"{analysis.metric.errors_in_words(errors)}."
        )
    return [text]


def _about_divergence(rows: Sequence[Group]) -> list[str]:
    shown = [f"{group.label} (seed {', '.join(group.diverged)})" for group in rows if group.diverged]
    if not shown:
        return []
    which = "; ".join(shown[:SHOWN_NAMES])
    which += f" and {len(shown) - SHOWN_NAMES} more rows" if len(shown) > SHOWN_NAMES else ""
    return [f"Training diverged, its loss is no finite number: {which}. No mean has these runs in."]


def _about_values(analysis: Analysis) -> list[str]:
    path = analysis.metric.value
    lacking = [group for group in analysis.rows if len(group.values(path)) < len(group.runs)]
    said = [f"Some runs have no {analysis.metric.title}: {names(lacking)}."] if lacking else []
    twice = [group for group in analysis.rows if group.by_seed(path) is None]
    if twice:
        said.append(f"Several runs of one seed in a row, hence no paired test: {names(twice)}.")
    return said


def _about_others(analysis: Analysis) -> list[str]:
    said = []
    if analysis.others:
        said.append(f"Cells that are no rows: {names(analysis.others)}. Their runs are in report.csv.")
    if analysis.grouped.tried:
        said.append(f"{counted(analysis.grouped.tried, 'run')} of a search that were not chosen are not shown.")
    outside = analysis.grouped.outside
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
