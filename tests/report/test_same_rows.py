"""Only what was measured on the same texts is compared; runs on other data are rows of their own."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import ConfigError
from peftlab.report.build import Request, build
from peftlab.report.figures.numbers import fronts_of, points_of
from peftlab.report.figures.scatter import draw_parameters
from peftlab.report.legends import comparison_legend, legend
from peftlab.report.render.markdown import render_markdown
from peftlab.report.report import Report
from tests.report.made_up import failed, record, sweep_file, three_methods, write

HOLD_OUT = {"test_kind": "hold-out of all texts"}


def of_two(folder: Path, first: dict[str, Any], other: dict[str, Any], **request: Any) -> Report:
    """Heads and full fine-tuning with ``first`` in their records, LoRA with ``other``; three seeds each."""
    runs = [
        record(value + seed * seed / 1000, key=f"{method}{seed}", seed=seed, method=method, **more)
        for method, value, more in (("head", 0.7, first), ("full", 0.75, first), ("lora", 0.8, other))
        for seed in range(3)
    ]
    return build(Request((str(write(folder / "t", runs)),), baseline="peft=head", **request))


def hashes(test: str, validation: str = "v") -> dict[str, Any]:
    return {"split_hashes": {"train": "t", "validation": validation, "test": test}}


def test_rows_with_other_test_texts_are_not_tested_against_each_other(scratch: Path) -> None:
    report = of_two(scratch, {"data": hashes("a1")}, {"data": hashes("b2")})
    assert report.comparisons["peft=lora"].why_not == "tested on other texts"
    assert report.marks == {"peft=full": "best"}
    text = render_markdown(report)
    assert "test texts a1; rows of the table: peft=full; peft=head" in text
    assert "test texts b2; rows of the table: peft=lora" in text
    assert "not all tested on the same texts: there are 2 sets" in text
    assert "no other row to compare it with (peft=lora)" in text


def test_rows_with_the_same_test_texts_are_compared_whatever_else_differs(scratch: Path) -> None:
    other = {"hash": "e" * 64, "test_kind": "official test of another name", "rows": {"train": 5}}
    report = of_two(scratch, {"data": hashes("a1")}, {"data": hashes("a1") | other})
    assert report.comparisons["peft=lora"].n == 3


def test_a_figure_of_validation_asks_for_the_same_validation_texts(scratch: Path) -> None:
    report = of_two(
        scratch, {"data": hashes("a1", "v1")}, {"data": hashes("a1", "v2")}, metric="metrics.validation.accuracy"
    )
    assert report.comparisons["peft=lora"].why_not == "validated on other texts"


@pytest.mark.parametrize(
    ("data", "split_seed", "compared"),
    [
        ({}, 1, True),  # the official test does not depend on the seed
        (HOLD_OUT, 0, True),
        (HOLD_OUT, 1, False),
        ({"test_kind": "official test, 400 of its 25,000 rows"}, 1, False),
        ({"rows_available": {"test": 25_000}}, 1, False),
        ({"files": {"test": "other.csv"}}, 0, False),
    ],
)
def test_older_records_are_told_apart_by_what_they_say(
    data: dict[str, Any], split_seed: int, compared: bool, scratch: Path
) -> None:
    first = data | ({"files": {"test": "one.csv"}} if "files" in data else {})
    seeds = {"split_seed": split_seed}
    report = of_two(scratch, {"data": first}, {"data": data, "seeds": seeds, "keys": {"data.split_seed": split_seed}})
    assert report.comparisons["peft=lora"].n == (3 if compared else 0)


def test_an_older_record_is_compared_with_a_newer_one_of_the_same_kind(scratch: Path) -> None:
    report = of_two(scratch, {"data": {}}, {"data": hashes("a1")})
    assert report.comparisons["peft=lora"].n == 3


def test_texts_that_differ_from_seed_to_seed_are_compared_seed_by_seed(scratch: Path) -> None:
    runs = [
        record(value + seed * seed / 1000, key=f"{method}{seed}", seed=seed, method=method, data=hashes(f"h{texts}"))
        for method, value, shift in (("head", 0.7, 0), ("lora", 0.8, 0), ("full", 0.9, 1))
        for seed in range(3)
        for texts in [(seed + shift) % 3]
    ]
    report = build(Request((str(write(scratch / "t", runs)),), baseline="peft=head"))
    assert {name: found.n for name, found in report.comparisons.items()} == {"peft=lora": 3, "peft=full": 0}
    assert any("Within a row some are tested on other texts" in note for note in report.notes)


def test_records_of_other_files_are_other_rows(scratch: Path) -> None:
    runs = [
        record(
            0.8, key=f"{name}{seed}", seed=seed, data={"hash": name * 64}, keys={"data.path": f"data/{name}/all.csv"}
        )
        for name in "ab"
        for seed in (0, 1)
    ]
    lost = failed(record(0.0, key="b2", seed=2, keys={"data.path": "data/b/all.csv"}))
    report = build(Request((str(write(scratch / "t", [*runs, lost])),)))
    assert [(group.label, len(group.runs), list(group.missing)) for group in report.rows] == [
        ("path=data/a/all.csv", 2, []),
        ("path=data/b/all.csv", 2, ["2"]),
    ]


def test_other_texts_under_one_path_are_told_apart_by_their_hash(scratch: Path) -> None:
    runs = [record(0.8, key=f"{name}", data={"hash": name * 64}) for name in "ab"]
    folder = str(write(scratch / "t", runs))
    assert [group.label for group in build(Request((folder,))).rows] == ["hash=" + "a" * 12, "hash=" + "b" * 12]
    assert [run.key for run in build(Request((folder,), where=("data.hash=" + "b" * 12,))).runs] == ["b"]


def test_the_same_texts_under_two_paths_are_one_row(scratch: Path) -> None:
    runs = [record(0.8, key=f"k{seed}", seed=seed, keys={"data.path": f"copy{seed}.csv"}) for seed in (0, 1)]
    assert len(build(Request((str(write(scratch / "t", runs)),))).rows) == 1


def test_the_legend_says_what_could_not_be_tested(scratch: Path) -> None:
    runs = [record(value, key=method, method=method) for method, value in (("head", 0.7), ("lora", 0.8), ("full", 0.9))]
    runs.append(record(float("nan"), key="bitfit", method="bitfit"))
    text = " ".join(legend(build(Request((str(write(scratch / "t", runs)),)))))
    assert "significantly" not in text
    assert "nderlined" not in text
    assert "Not tested against the best: " in text
    assert "the best has one seed (peft=head; peft=lora)" in text
    assert "a value is not finite (peft=bitfit)" in text


def test_the_legends_say_how_many_comparisons_there_are(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    write(folder, [record(0.75, key="ia3", method="ia3")])
    report = build(Request((str(folder),), baseline="peft=head"))
    assert "over all pairs of the 3 rows" in " ".join(legend(report))
    assert "Not tested against the best: one seed (peft=ia3)." in " ".join(legend(report))
    assert "corrected by Bonferroni over the 2 comparisons that could be tested, of 3." in " ".join(
        comparison_legend(report)
    )


def test_the_front_is_one_for_all_sections_on_one_test_set(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    content = sweep_file(folder)
    cells = [cell | {"group": cell["id"]} for cell in content["cells"]]
    sweep_file(folder, cells=cells)
    report = build(Request((str(folder),)))
    (front,) = fronts_of(points_of(report, "parameters.trainable"), report.same, highest=True)
    drawn = draw_parameters(report)
    assert not isinstance(drawn, str)
    listed = [row["group"] for row in csv.DictReader(io.StringIO(drawn.csv)) if row["on_the_pareto_front"] == "True"]
    assert {point.group.id for point in front} == {"full", "head", "lora"} == set(listed)


def test_each_test_set_has_a_front_of_its_own_in_picture_and_numbers(scratch: Path) -> None:
    report = of_two(scratch, {"data": hashes("a1"), "trainable": 5000}, {"data": hashes("b2"), "trainable": 200})
    points = points_of(report, "parameters.trainable")
    assert [len(front) for front in fronts_of(points, report.same, highest=True)] == [1, 1]
    drawn = draw_parameters(report)
    assert not isinstance(drawn, str)
    assert drawn.csv.count("True") == 2


def test_a_baseline_on_other_texts_than_all_rows_is_refused(scratch: Path) -> None:
    runs = [record(0.8, key=m, method=m, data=hashes(m)) for m in ("head", "lora")]
    with pytest.raises(ConfigError, match="all others are tested on other texts"):
        build(Request((str(write(scratch / "t", runs)),), baseline="peft=head"))


def test_nothing_is_marked_where_nothing_may_be_compared(scratch: Path) -> None:
    runs = [record(0.8, key=m, method=m, data=hashes(m)) for m in ("head", "lora")]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert report.marks == {}
    assert "No row is marked as the best" in " ".join(legend(report))
