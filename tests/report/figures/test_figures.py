"""What the pictures of a report say: ticks, titles, labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from peftlab.report.build import Request, build
from peftlab.report.figures import scatter, spectra
from peftlab.report.figures.direct import Spot, name_directly
from peftlab.report.figures.labels import fitting
from peftlab.report.figures.runs import draw_curves
from peftlab.report.figures.style import blank, lay_out
from peftlab.report.figures.ticks import MOST_TICKS, tick_text, ticks_between
from tests.report.made_up import record, sweep_file, write


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (18, 660, "20 50 100 200 500"),
        (95, 310, "100 150 200 300"),
        (20_000, 1_100_000, "20k 50k 100k 200k 500k 1M"),
        (456, 67_000_000, "1,000 10k 100k 1M 10M"),
        (1, 1e12, "1 1,000 1M 1B 1000B"),
        (1000, 1100, "1,000 1,025 1,050 1,075 1,100"),
        (0.004, 0.02, "0.005 0.01 0.02"),
    ],
)
def test_ticks_are_few_round_and_written_out(low: float, high: float, said: str) -> None:
    ticks = ticks_between(low, high)
    assert len(ticks) <= MOST_TICKS
    assert " ".join(map(tick_text, ticks)) == said


def test_long_labels_stay_different() -> None:
    start = "low-rank adapters on query and value of every layer of the backbone, with a learning rate of"
    for labels in (
        [f"{start} 0.00{n}" for n in range(9)],
        [f"rank {n}: {start} 0.001 and a schedule that falls to zero" for n in range(9)],
        [f"{start} 0.00{n} {start}" for n in range(9)],
        [f"{'x' * 90}{n}{'y' * 90}" for n in range(12)],
        ["short", "a $5 label", start],
    ):
        found = fitting(labels, 44, lines=2)
        assert len(set(found)) == len(labels)
        assert all(len(line) <= 44 + line.count("\\$") for text in found for line in text.split("\n"))
        assert all(text.count("\n") < 2 for text in found)


def test_a_label_that_fits_is_left_as_it_is() -> None:
    assert fitting(["LoRA of rank 2", "a b"], 44, lines=2) == ["LoRA of rank 2", "a b"]
    assert fitting(["one two three"], 8, lines=2) == ["one two\nthree"]


def test_alike_labels_stay_alike() -> None:
    assert len(set(fitting(["x " * 80, "x " * 80], 44, lines=2))) == 1


@pytest.mark.parametrize(
    ("asking", "rows", "said"),
    [
        (0, 3, "over seeds"),
        (2, 3, "over seeds (the 2 rows that ask for one)"),
        (12, 14, "over seeds (the best 10 of the 12 rows that ask for one)"),
        (0, 14, "over seeds (the best 10 of 14 rows)"),
    ],
)
def test_the_title_of_the_curves_says_which_rows(asking: int, rows: int, said: str, scratch: Path) -> None:
    runs = [record(0.5 + number / 100, key=f"k{number}", keys={"peft.rank": number}) for number in range(rows)]
    folder = write(scratch / "t", runs)
    cells = [{"id": f"c{n}", "runs": {"0": f"k{n}"}, "curve": n < asking} for n in range(rows)]
    sweep_file(folder, cells=cells, seeds=[0], baseline=None)
    drawn = draw_curves(build(Request((str(folder),))))
    assert not isinstance(drawn, str)
    assert drawn.title.endswith(said)


def test_costs_begin_at_nothing_where_they_are_near_each_other(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(scatter, "finish", lambda figure, *_: seen.append(figure))
    for most in (512.0, 40_000.0):
        made = [record(0.8, key=f"a{most}", memory={"peak_mib": 510.0}, method="ia3")]
        made.append(record(0.7, key=f"b{most}", memory={"peak_mib": most}))
        scatter.draw_costs(build(Request((str(write(scratch / str(most), made)),))))
    near, far = (figure.axes[0] for figure in seen)
    assert near.get_xlim()[0] == 0
    assert near.get_xlim()[1] > 512
    assert far.get_xscale() == "log"
    assert 0 < far.get_xlim()[0] < 510


def test_names_of_many_layers_stay_readable() -> None:
    for layers, named in ((17, 17), (200, 67)):
        axes = blank(10.0, 14.0)[1][0]
        many = [spectra.Spectrum(f"part_{number}.query", [1.0, 0.5], 0.1) for number in range(layers)]
        spectra._draw_sizes_by_name(axes, many, {layer.kind: "#000000" for layer in many})
        assert len(axes.get_yticklabels()) == named
        assert {label.get_fontsize() for label in axes.get_yticklabels()} == {8.0}
        assert len(axes.patches) == layers


def test_names_beside_points_lie_on_nothing(scratch: Path) -> None:
    """Twenty-four, ten of them crowded: each inside the axes, on no other name and on no point."""
    drawn = random.Random(0)
    spots = [
        Spot(
            drawn.uniform(4, 6) if n < 10 else drawn.uniform(0, 10), drawn.uniform(0, 1), 0.02, f"a method, number {n}"
        )
        for n in range(24)
    ]
    figure, (panel,) = blank(9.6, 6.6)
    panel.plot([spot.x for spot in spots], [spot.y for spot in spots], "o")
    lay_out(figure, "title")
    assert name_directly(panel, spots) == 0
    extents = [text.get_window_extent() for text in panel.texts]
    assert sorted(text.get_text() for text in panel.texts) == sorted(spot.name for spot in spots)
    frame = panel.get_window_extent()
    for n, one in enumerate(extents):
        assert frame.contains(one.x0, one.y0)
        assert frame.contains(one.x1, one.y1)
        assert not any(one.overlaps(other) for other in extents[n + 1 :])
        assert not any(one.contains(*panel.transData.transform((spot.x, spot.y))) for spot in spots)


def test_a_name_without_room_is_counted_and_not_written() -> None:
    figure, (panel,) = blank(2.0, 2.0)
    panel.plot([0, 1], [0, 1])
    lay_out(figure, "title")
    assert name_directly(panel, [Spot(0.5, 0.5, name="a name that is wider than the whole of the axes")]) == 1
    assert not panel.texts


@pytest.mark.parametrize(("rows", "legend"), [(8, 8), (20, 0), (60, 0)])
def test_a_long_legend_becomes_names_beside_points(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, rows: int, legend: int
) -> None:
    """Of many rows the front and the best have a name, and the others are grey."""
    found: list[Any] = []
    monkeypatch.setattr(scatter, "finish", lambda figure, *_: found.append(figure))
    runs = [
        record(
            0.5 + 0.4 * (n * 7 % rows) / rows,
            key=f"{n:012x}",
            keys={"optim.lr": n + 1.0},
            trainable=100 * 2 ** (n % 16) + n,
        )
        for n in range(rows)
    ]
    report = build(Request((str(write(scratch / "t", runs)),)))
    scatter.draw_parameters(report)
    (figure,) = found
    names = [text.get_text() for text in figure.axes[0].texts]
    keys = [text.get_text() for of in figure.legends for text in of.get_texts()]
    assert sum("lr" in key for key in keys) == legend
    if not legend:
        assert len(names) == (rows if rows <= scatter.MOST_NAMED_POINTS else 10)
        assert (f"{rows - 10} other rows" in keys) == (rows > 24)
