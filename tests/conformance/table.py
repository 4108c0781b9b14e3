"""The conformance matrix as a table:  python -m tests.conformance.table [METHOD …]

Exit status 1 if a cell fails.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence

import torch

from peftlab.errors import listed
from tests.conformance.cells import KINDS, LANGUAGE_MODELS, WEIGHTS, Outcome, examine, judged, known_methods
from tests.conformance.expectations import expected_refusal


def main(arguments: Sequence[str]) -> int:
    """Print the table of all methods, or of those named."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = known_methods()
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"there is no method '{unknown[0]}'. There are: {listed(known)}.", file=sys.stderr)
        return 2
    began = time.perf_counter()
    rows: dict[str, list[Outcome]] = {}
    for method in arguments or known:
        rows[method] = []
        for kind, weights in columns():
            words = expected_refusal(method, kind, weights)
            outcome = examine(known[method], kind, weights)
            rows[method].append(judged(outcome, known[method], kind, weights, words))
    print(rendered(rows))
    print(f"{time.perf_counter() - began:.0f} s")
    return int(any(outcome.failures for outcomes in rows.values() for outcome in outcomes))


def columns() -> list[tuple[str, str]]:
    """(kind, weights) of each column."""
    return [(kind, weights) for kind in (*KINDS, *LANGUAGE_MODELS) for weights in WEIGHTS]


def rendered(rows: dict[str, list[Outcome]]) -> str:
    """The table, its footnotes and the counts as the last line."""
    notes: dict[tuple[str, str | None], tuple[int, str]] = {}
    failures: list[str] = []
    cells: list[list[str]] = [
        ["", *(kind for kind, _ in columns())],
        ["method", *(weights for _, weights in columns())],
    ]
    for method, outcomes in rows.items():
        line = [method]
        for (kind, weights), outcome in zip(columns(), outcomes, strict=True):
            if outcome.failures:
                line.append(f"FAILED: {outcome.failed_checks[0]}" + (" …" if len(outcome.failures) > 1 else ""))
                failures += [f"{method} on {kind}, {weights}: {failure}" for failure in outcome.failures]
            elif outcome.refusal is not None:
                # one footnote for one reason, whatever names of this backbone its wording holds
                reason = (method, expected_refusal(method, kind, weights))
                number, _ = notes.setdefault(reason, (len(notes) + 1, outcome.refusal))
                line.append(f"refused{_raised(number)}")
            else:
                line.append("ok")
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    table.insert(2, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    everything = [outcome for outcomes in rows.values() for outcome in outcomes]
    failing = sum(bool(outcome.failures) for outcome in everything)
    refused = sum(outcome.refusal is not None for outcome in everything)
    footnotes = [f"{_raised(number)} {reason}" for number, reason in notes.values()]
    counts = (
        f"{len(everything) - failing - refused} passed, {refused} refused with a reason, {failing} failing "
        f"({len(rows)} methods × {len(columns())} backbones)"
    )
    blocks = ["\n".join(block) for block in (table, footnotes, failures) if block]
    return "\n\n".join([*blocks, counts])


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
