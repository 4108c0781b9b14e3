"""The figures that `make bench` has written, as one table in Markdown and one picture.

    python benchmarks/speed_table.py FOLDER [--picture FILE.png]

FOLDER holds trainer.json, products.json, growth.json and sweep.json, those that there are. Of each row: the median of
the ratios of its turns, and the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    rows = [*speeds(read(given.folder, "trainer")), *sweep(read(given.folder, "sweep"))]
    print("| beside transformers.Trainer + HF peft | peftlab | the other | ratio (turns) |")
    print("| --- | ---: | ---: | ---: |")
    for what, ours, theirs, turns in rows:
        print(f"| {what} | {ours} | {theirs} | {spread(turns)} |")
    print()
    for line in (
        *learning(read(given.folder, "trainer")),
        *product(read(given.folder, "products")),
        *growth(read(given.folder, "growth")),
    ):
        print(line)
    if given.picture is not None:
        draw([(what, turns) for what, _, _, turns in rows if not what.endswith("MiB")], given.picture)


Row = tuple[str, str, str, list[float]]


def read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def speeds(found: dict[str, Any]) -> list[Row]:
    """Training of each row; of evaluation and memory those of LoRA without dropout."""
    rows = [row(f"{name}: samples/s", sides, "samples_per_second", ".1f")
            for name, sides in found.items() if "ratios" in sides]  # fmt: skip
    for name in ("LoRA", "LoRA, dropout"):
        if name in found:
            rows.append(row(f"{name}: evaluated/s", found[name], "evaluated_per_second", ".1f"))
            rows.append(row(f"{name}: peak MiB", found[name], "peak_mib", ",.0f"))
    return rows


def row(what: str, sides: dict[str, Any], key: str, form: str) -> Row:
    mine, theirs = ([turn[key] for turn in sides[side]] for side in ("peftlab", "peer"))
    turns = [a / b for a, b in zip(mine, theirs, strict=True)]
    return what, format(statistics.median(mine), form), format(statistics.median(theirs), form), turns


def sweep(found: dict[str, Any]) -> list[Row]:
    """How many times as fast the sweep was, and how much earlier the first step."""
    rows: list[Row] = []
    if "sweep" in found:
        one = found["sweep"]
        rows.append((f"{len(one['train_seconds'])} short jobs", f"{one['peftlab']:.0f} s", f"{one['peer']:.0f} s",
                     [one["ratio"]]))  # fmt: skip
    if "first_step" in found:
        one = found["first_step"]
        mine, theirs = statistics.median(one["peftlab"]), statistics.median(one["peer"])
        rows.append(("first step after", f"{mine:.1f} s", f"{theirs:.1f} s", [1 / ratio for ratio in one["ratios"]]))
    return rows


def learning(found: dict[str, Any]) -> list[str]:
    if "learning" not in found:
        return []
    one = found["learning"]
    lines = []
    for what, (difference, low, high) in one["differences"].items():
        mine, theirs = (statistics.mean(run[what] for run in one[side]) for side in ("peftlab", "peer"))
        runs = f"{len(one['peer'])} seeds of {one['peer'][0]['steps']} steps"
        lines.append(f"Learning, {runs}, test {what}: {mine:.4f} beside {theirs:.4f}, difference "
                     f"{difference:+.4f} ({low:+.4f} … {high:+.4f})")  # fmt: skip
    return lines


def product(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    return [f"Share of the speed of the matrix products alone, LoRA without dropout: {spread(found['shares'])}"]


def growth(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    first = next(iter(found.values()))
    lines = []
    for rows, turns in list(found.items())[1:]:
        slower, larger = (
            [turn[key] / base[key] for turn, base in zip(turns, first, strict=True)]
            for key in ("ms_a_text", "peak_mib")
        )
        lines.append(f"{int(rows):,} reviews beside {int(next(iter(found))):,}: {spread(slower)} of the time a text, "
                     f"{spread(larger)} of the memory")  # fmt: skip
    return lines


def spread(turns: list[float]) -> str:
    middle = f"{statistics.median(turns):.2f}"
    return middle if len(turns) == 1 else f"{middle} ({min(turns):.2f} … {max(turns):.2f})"


def draw(rows: list[tuple[str, list[float]]], file: Path) -> None:
    """A dot a turn on a line a row; the line at 1 is the other side's speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 0.8 + 0.32 * len(rows)), layout="constrained")
    for place, (_, turns) in enumerate(rows):
        axes.plot(turns, [place] * len(turns), "o", color="#4477aa", alpha=0.5, markersize=5)
        axes.plot([statistics.median(turns)], [place], "|", color="#222222", markersize=13, markeredgewidth=1.6)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(range(len(rows)), [what.partition(": samples")[0] for what, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("times as fast as transformers.Trainer + HF peft\n(dots: turns, stroke: median)")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
