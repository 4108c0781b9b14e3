"""What the pictures of a report say: ticks, titles, labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from peftlab.report.build import Request, build
from peftlab.report.figures import heat, scatter, spectra
from peftlab.report.figures import runs as runs_module
from peftlab.report.figures.direct import Spot, name_directly
from peftlab.report.figures.labels import fitting
from peftlab.report.figures.runs import draw_curves
from peftlab.report.figures.style import Gallery, blank, lay_out, percent_texts
from peftlab.report.figures.ticks import MOST_TICKS, tick_text, ticks_between
from peftlab.report.render.page import render_page
from peftlab.report.render.page_data import page_data
from peftlab.report.report import Report
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
    assert drawn.title == f"Learning curves{said.removeprefix('over seeds')}", "of one run each there is no deviation"


def drawn_figures(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Any]:
    """The figures that ``module`` draws from now on, which are not written."""
    found: list[Any] = []
    monkeypatch.setattr(module, "finish", lambda figure, *_: found.append(figure))
    return found


def grid(folder: Path, spread: float, *, seeds: int = 4, form: str = "percent", epochs: int = 3) -> Report:
    """Rank by rate: means of 0.80, 0.81, 0.81 and 0.82, and seeds that lie ``spread`` beside them."""
    cells: dict[str, dict[str, str]] = {}
    runs = []
    for n, (rank, rate) in enumerate(((4, 0.1), (4, 0.2), (8, 0.1), (8, 0.2))):
        for seed in range(seeds):
            key, value = f"{n}{seed}", 0.80 + 0.01 * (n > 0) + 0.01 * (n == 3) + spread * (-1) ** seed
            cells.setdefault(f"c{n}", {})[str(seed)] = key
            history = [
                {"epoch": e, "train/loss": 1 / (e + 2 + seed), "validation/accuracy": value} for e in range(epochs)
            ]
            runs.append(record(value, key=key, seed=seed, keys={"peft.rank": rank, "optim.lr": rate}, history=history,
                               trainable=100 * rank))  # fmt: skip
    write(folder, runs)
    columns = [{"title": "accuracy", "value": "metrics.test.accuracy", "format": form}]
    arms = [{"id": name, "runs": of} for name, of in cells.items()]
    sweep_file(folder, cells=arms, seeds=list(range(seeds)), baseline=None, columns=columns)
    return build(Request((str(folder),)))


@pytest.mark.parametrize(("spread", "width"), [(0.02, 4 * 0.02 * (4 / 3) ** 0.5), (0.001, 0.02)])
def test_colours_of_a_heat_map_say_how_much_is_noise(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, spread: float, width: float
) -> None:
    """Four seeds at ± s have the deviation s √(4/3); ± 2 of these, or the range of the means if that is more."""
    found = drawn_figures(monkeypatch, heat)
    heat.draw_heat(grid(scratch / "t", spread))
    panel, bar = found[0].axes
    low, high = panel.images[0].get_clim()
    assert high - low == pytest.approx(width)
    assert (low + high) / 2 == pytest.approx(0.81)
    assert bar.get_ylabel() == "accuracy (%)\nspans at least ± 2 std over seeds"
    assert "81.00\n± " in panel.texts[1].get_text()


def test_colours_of_single_seeds_say_what_the_test_rows_leave_open(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = drawn_figures(monkeypatch, heat)
    heat.draw_heat(grid(scratch / "t", 0.0, seeds=1, form="score"))
    panel, bar = found[0].axes
    low, high = panel.images[0].get_clim()
    assert high - low == pytest.approx(4 * (0.8 * 0.2 / 400) ** 0.5)
    assert bar.get_ylabel() == "accuracy\nspans at least ± 2 binomial errors"


def test_figures_have_the_form_of_the_column(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = grid(scratch / "t", 0.02)
    of_runs, of_points = drawn_figures(monkeypatch, runs_module), drawn_figures(monkeypatch, scatter)
    for draw in (draw_curves, runs_module.draw_seeds, scatter.draw_parameters, scatter.draw_costs):
        draw(report)
    curves, seeds = of_runs
    axes = [curves.axes[1].yaxis, seeds.axes[0].xaxis, of_points[0].axes[0].yaxis, of_points[1].axes[1].yaxis]
    for axis in axes:
        assert all(70 < float(text) < 90 for text in axis.get_major_formatter().format_ticks([0.795, 0.8]))
    assert [axis.get_label_text() for axis in axes[:3]] == ["validation accuracy (%)", "accuracy (%)", "accuracy (%)"]
    assert curves.axes[0].yaxis.get_major_formatter().format_ticks([0.5]) != ["50"], "a loss is no share"
    data = page_data(report, scratch)
    assert data["quantities"][1] == "validation/accuracy (%)"
    assert data["rows"][0]["runs"][0][-1][1][1][0] == pytest.approx(82.0)


def test_ticks_in_percent_have_the_digits_that_one_needs() -> None:
    assert percent_texts([0.785, 0.79, 0.795]) == ["78.5", "79.0", "79.5"]
    assert percent_texts([-0.01, 0.0, 0.07]) == ["−1", "0", "7"]


def test_of_one_epoch_there_is_no_curve(scratch: Path) -> None:
    said = draw_curves(grid(scratch / "t", 0.02, epochs=1))
    assert isinstance(said, str)
    assert said.startswith("learning curves: no history has more than one row")


def test_a_legend_names_the_fronts_that_are_drawn(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheaper row is the better one: of trainable parameters there is no line, of memory one."""
    found = drawn_figures(monkeypatch, scatter)
    runs = [
        record(0.9, key="a", trainable=100, memory={"peak_mib": 600.0}),
        record(0.8, key="b", trainable=200, memory={"peak_mib": 500.0}, method="ia3"),
    ]
    report = build(Request((str(write(scratch / "t", runs)),)))
    scatter.draw_parameters(report)
    scatter.draw_costs(report)
    for figure, fronts in zip(found, (0, 1), strict=True):
        lines = [line for panel in figure.axes for line in panel.lines if line.get_drawstyle() == "steps-post"]
        named = [text for of in figure.legends for text in of.get_texts() if "Pareto" in text.get_text()]
        assert (len(lines), len(named)) == (fronts, fronts)


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


def test_runs_of_the_same_figure_are_seen_each(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dot lies on another; its place along the axis is its value still, and the line is its row's."""
    values = [0.8, 0.8, 0.8, 0.81, 0.8]
    runs = [record(value, key=f"k{seed}", seed=seed) for seed, value in enumerate(values)]
    drawn = drawn_figures(monkeypatch, runs_module)
    runs_module.draw_seeds(build(Request((str(write(scratch / "t", runs)),))))
    (panel,) = drawn[0].axes
    dots = panel.lines[0]
    assert list(dots.get_xdata()) == values
    assert max(map(abs, dots.get_ydata())) <= runs_module.ROOM + 1e-9
    assert len(set(zip(dots.get_xdata(), dots.get_ydata(), strict=True))) == len(values)
    assert min(label.get_fontsize() for label in [*panel.get_yticklabels(), *panel.get_xticklabels()]) >= 9


def test_a_page_shows_pictures_at_a_size_whose_letters_are_legible(scratch: Path) -> None:
    """A narrow window scrolls them: an inch of the picture is an inch, 96 pixels, at least."""
    runs = [record(0.8 + seed / 100, key=f"k{seed}", seed=seed) for seed in range(2)]
    report = build(Request((str(write(scratch / "t", runs)),)))
    drawn = runs_module.draw_seeds(report)
    assert not isinstance(drawn, str)
    assert drawn.width == round(7.2 * 96)
    page = render_page(report, Gallery([drawn]), scratch, files=False)
    assert f'style="min-width: {drawn.width}px"' in page


def test_points_of_one_cost_stand_beside_each_other(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(scatter, "finish", lambda figure, *_: found.append(figure))
    costs = (100, 100, 100, 200)
    runs = [record(0.5, key=f"{n:012x}", keys={"optim.lr": n + 1.0}, trainable=cost) for n, cost in enumerate(costs)]
    scatter.draw_parameters(build(Request((str(write(scratch / "t", runs)),))))
    (figure,) = found
    figure.canvas.draw()
    panel = figure.axes[0]
    dots = [line for line in panel.lines if line.get_marker() not in ("None", "", "_")]
    places = sorted(line.get_transform().transform(line.get_xydata())[0][0] * 72 / figure.dpi for line in dots)
    assert len(places) == 4
    assert places[1] - places[0] == pytest.approx(scatter.POINT_APART)
    assert places[2] - places[1] == pytest.approx(scatter.POINT_APART)
    assert places[1] * figure.dpi / 72 == pytest.approx(
        panel.transData.transform((100, 0.5))[0]
    )  # the middle one is there
    low, high = panel.get_xlim()
    assert low < 100 < 200 < high
