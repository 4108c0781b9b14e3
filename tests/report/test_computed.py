"""Runs from before and after a change of numbers: rows of their own, and words about it in every output."""

from __future__ import annotations

import csv
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from peftlab.records import identity_tags
from peftlab.report.build import Request, build
from peftlab.report.render.data import render_json
from peftlab.report.report import Report
from peftlab.sweeps.table import render_csv, render_markdown
from tests.conftest import Peftlab
from tests.report.made_up import failed, record, sweep_file, three_methods, write
from tests.runs.tagged import SENTENCE, change_numbers
from tests.sweeps.made_up import declared

NEW = {"identity_tags": ["lora-dropout-1"]}
SAID = f"Computed before lora-dropout-1; since then: {SENTENCE}."


def before_and_after(folder: Path) -> Path:
    """LoRA with seeds 0 and 1 before the change and 2 after it, and a method that it does not concern."""
    old = [record(0.6 + seed / 10, key=f"old{seed}", seed=seed) for seed in range(2)]
    new = [record(0.9, key="new2", seed=2, **NEW)]
    heads = [record(0.5, key=f"head{seed}", seed=seed, method="head") for seed in range(3)]
    return write(folder, [*old, *new, *heads])


def report_of(folder: Path, **more: Any) -> Report:
    return build(Request((str(folder),), **more))


def rows_of(report: Report) -> dict[str, list[str]]:
    return {group.label: [run.key for run in group.runs] for group in report.rows}


def test_without_changes_nothing_is_said(scratch: Path) -> None:
    report = report_of(three_methods(scratch / "t"))
    assert not re.search("computed|identity", render_json(report).lower())


def test_two_rows_and_a_note(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    report = report_of(before_and_after(scratch / "t"))
    label = "peft=lora computed=before lora-dropout-1"
    assert rows_of(report) == {
        "peft=head": ["head0", "head1", "head2"], "peft=lora": ["new2"], label: ["old0", "old1"],
    }  # fmt: skip
    assert f"{SAID} Rows: {label}." in report.notes
    assert [report.summaries[group.id].mean for group in report.rows] == pytest.approx([0.5, 0.9, 0.65])


def test_every_output_says_it(scratch: Path, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    before_and_after(scratch / "t")
    result = peftlab("report", "t", "--format", "md,tex,csv,json,html")
    assert result.status == 0, result.err
    made = {name: Path("t/report", f"report.{name}").read_text() for name in ("md", "tex", "csv", "json", "html")}
    assert SAID in " ".join(result.out.split())
    assert len(re.findall(r"^ *lora .*\b(?:1 seed|2 seeds)", result.out, re.MULTILINE)) == 2
    assert SAID in made["md"].replace("\\", "")
    assert "| lora | before lora-dropout-1 | 0.6500 ± 0.0707 |" in made["md"]
    assert "| lora |  | **0.9000** |" in made["md"]
    assert SAID in unescape(made["html"])
    assert made["html"].count("before lora-dropout-1</td>") == 1
    assert "before lora-dropout-1" in made["tex"]
    content = json.loads(made["json"])
    assert [(group["label"], group.get("computed")) for group in content["groups"]] == [
        ("peft=head", None), ("peft=lora", None),
        ("peft=lora computed=before lora-dropout-1", "before lora-dropout-1"),
    ]  # fmt: skip
    assert any(note.startswith(SAID) for note in content["notes"])
    runs = {row["key"]: row["computed"] for row in csv.DictReader(io.StringIO(made["csv"]))}
    assert runs == {f"head{seed}": "" for seed in range(3)} | {
        "new2": "", "old0": "before lora-dropout-1", "old1": "before lora-dropout-1",
    }  # fmt: skip
    groups = list(csv.DictReader(io.StringIO(Path("t/report/groups.csv").read_text())))
    assert [group["computed"] for group in groups] == ["", "", "before lora-dropout-1"]


def test_one_row_from_before_is_said_too(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    folder = write(scratch / "t", [record(0.7, key="a"), record(0.5, key="b", method="head")])
    report = report_of(folder)
    assert [note for note in report.notes if note.startswith(SAID)]
    assert rows_of(report) == {"peft=head": ["b"], "peft=lora computed=before lora-dropout-1": ["a"]}


def test_grouped_by_one_key_they_are_apart_too(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    folder = before_and_after(scratch / "t")
    report = report_of(folder, by=("data",))
    assert rows_of(report) == {
        "data=TextFiles": ["head0", "head1", "head2", "new2"],
        "data=TextFiles computed=before lora-dropout-1": ["old0", "old1"],
    }
    assert list(rows_of(report_of(folder, by=("computed", "peft")))) == [
        "peft=head", "peft=lora", "computed=before lora-dropout-1 peft=lora",
    ]  # fmt: skip
    only = report_of(folder, where=("computed=before lora-dropout-1",))
    assert [run.key for run in only.runs] == ["old0", "old1"]


def test_a_later_peftlabs_change_and_one_that_does_not_concern_are_said(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    runs = [
        record(0.7, key="a", **NEW),
        record(0.8, key="b", seed=1, identity_tags=["lora-dropout-1", "later-3"]),
        record(0.5, key="c", method="head", **NEW),
    ]
    report = report_of(write(scratch / "t", runs))
    assert rows_of(report) == {
        "peft=lora": ["a"], "peft=head computed=with lora-dropout-1": ["c"],
        "peft=lora computed=with later-3": ["b"],
    }  # fmt: skip
    notes = " ".join(report.notes)
    assert "Computed with later-3, which this peftlab does not know" in notes
    assert f"Recorded with lora-dropout-1 ({SENTENCE}), which does not concern its config" in notes
    monkeypatch.setattr(identity_tags, "TAGS", ())
    report = report_of(scratch / "t")
    assert "Computed with lora-dropout-1, which this peftlab does not know" in " ".join(report.notes)
    assert len(report.rows) == 3


def test_a_failed_run_is_a_missing_seed_of_its_own_time(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    runs = [
        record(0.7, key="a"),
        failed(record(0.0, key="b", seed=1)),
        record(0.8, key="c", method="ia3"),
        failed(record(0.0, key="d", seed=3, method="ia3")),
    ]
    report = report_of(write(scratch / "t", runs))
    assert {group.label: list(group.missing) for group in report.rows} == {
        "peft=ia3": ["3"], "peft=lora computed=before lora-dropout-1": ["1"],
    }  # fmt: skip
    write(scratch / "t", [record(0.7, key="e", **NEW)])
    report = report_of(scratch / "t")
    assert [(group.label, list(group.missing)) for group in report.rows if "lora" in group.label] == [
        ("peft=lora", []), ("peft=lora computed=before lora-dropout-1", ["1"]),
    ]  # fmt: skip


def test_where_no_run_of_its_time_has_finished_a_failed_one_is_of_those_as_today(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    after = [record(0.7, key="a", **NEW), failed(record(0.0, key="b", seed=1))]
    (group,) = report_of(write(scratch / "after", after)).rows
    assert list(group.missing) == ["1"]
    before = [record(0.7, key="a"), failed(record(0.0, key="b", seed=1, **NEW))]
    rows = {group.label: list(group.missing) for group in report_of(write(scratch / "before", before)).rows}
    assert rows == {"t": ["1"], "computed=before lora-dropout-1": []}


def test_where_all_are_from_before_a_note_is_enough(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    keys = [{"optim.lr": lr} for lr in (0.1, 0.2)]
    report = report_of(write(scratch / "t", [record(0.7, key=f"a{one['optim.lr']}", keys=one) for one in keys]))
    assert [group.label for group in report.rows] == ["lr=0.1", "lr=0.2"]
    assert f"{SAID} Rows: lr=0.1; lr=0.2." in report.notes
    assert not any(note.startswith("In no label") for note in report.notes)


def test_runs_that_start_from_runs_of_before_and_after_are_apart(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    runs = [
        record(0.7, key="p0"),
        record(0.7, key="q0", **NEW),
        record(0.8, key="a", seed=0, method="full", keys={"backbone.from_run": "elsewhere/p0"}),
        record(0.9, key="b", seed=1, method="full", keys={"backbone.from_run": "elsewhere/q0"}),
    ]
    rows = rows_of(report_of(write(scratch / "t", runs)))
    later = {label: keys for label, keys in rows.items() if keys in (["a"], ["b"])}
    assert len(later) == 2
    assert [keys for label, keys in later.items() if "computed before lora-dropout-1" in label] == [["a"]]


def test_a_cell_of_both_is_two_rows(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However sweep.json came to name both; the baseline and the missing seeds stay with the first."""
    change_numbers(monkeypatch, "lora-dropout-1")
    folder = three_methods(scratch / "t")
    made = json.loads((folder / "lora2" / "record.json").read_text())
    (folder / "lora2" / "record.json").write_text(json.dumps(made | NEW))
    content = sweep_file(folder, baseline="lora", seeds=[0, 1, 2, 3])
    report = report_of(folder)
    rows = {group.label: ([run.key for run in group.runs], list(group.missing)) for group in report.rows}
    assert rows == {
        "full fine-tuning": (["full0", "full1", "full2"], ["3"]),
        "head only": (["head0", "head1", "head2"], ["3"]),
        "LoRA": (["lora2"], ["3"]),
        "LoRA, computed before lora-dropout-1": (["lora0", "lora1"], []),
    }
    assert f"{SAID} Rows: LoRA, computed before lora-dropout-1." in report.notes
    assert report.baseline is not None
    assert report.baseline.label == "LoRA"
    content["cells"][2]["runs"] = {"2": "lora2"}
    (folder / "sweep.json").write_text(json.dumps(content))
    notes = " ".join(report_of(folder).notes)
    assert "2 runs beside a sweep.json, of none of its cells, not shown: lora0, lora1." in notes
    assert "Of these, 2 computed before lora-dropout-1." in notes


def test_the_table_of_a_sweep_has_two_rows_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    sweep = declared(
        cells=[
            {"id": "lora", "label": "LoRA", "overrides": ["peft=lora"]},
            {"id": "head", "label": "head only", "overrides": ["peft=head"]},
        ],
        expected=[
            {"cell": "lora", "column": "metrics.test.accuracy", "value": 0.9, "tolerance": 0.01, "source": "a paper"}
        ],
        published=[
            {
                "cell": "lora",
                "column": "metrics.test.accuracy",
                "value": 0.9,
                "source": "another",
                "provenance": "memory",
            }
        ],
    )
    old = {("lora", seed): record(0.6 + seed / 5, key=f"old{seed}", seed=seed) for seed in range(2)}
    heads = {("head", seed): record(0.5, key=f"head{seed}", seed=seed, method="head") for seed in range(3)}
    mixed = {**old, ("lora", 2): record(0.9, key="new2", seed=2, **NEW), **heads}
    table = render_markdown(sweep, mixed).replace("\\", "").splitlines()
    assert table[2:5] == [
        "| LoRA | 0.9000 (1/3 seeds) | 1,000 (1/3 seeds) |",
        "| LoRA, computed before lora-dropout-1 | 0.7000 ± 0.1414 (2/3 seeds) | 1,000 (2/3 seeds) |",
        "| head only | 0.5000 ± 0.0000 | 1,000 |",
    ]
    assert f"- {SAID} Rows: LoRA, computed before lora-dropout-1." in table
    assert "The head's 100 are counted in: trainable." in " ".join(table)
    assert "- LoRA: a paper gives 0.9; measured 0.9000 (1/3 seeds), 0.0000: within ± 0.01." in table
    about = "- LoRA, computed before lora-dropout-1: a paper gives 0.9; measured 0.7000 ± 0.1414 (2/3 seeds), "
    assert f"{about}−0.2000: outside ± 0.01." in table
    assert "- LoRA: another gives 0.9 (from memory); measured 0.9000 (1/3 seeds)." in table
    lines = csv.DictReader(io.StringIO(render_csv(sweep, mixed)))
    assert {line["key"]: line["computed"] for line in lines if line["cell"] == "lora"} == {
        "old0": "before lora-dropout-1", "old1": "before lora-dropout-1", "new2": "",
    }  # fmt: skip
    all_old = render_markdown(sweep, {**old, **heads}).replace("\\", "").splitlines()
    assert all_old[2] == "| LoRA | 0.7000 ± 0.1414 (2/3 seeds) | 1,000 (2/3 seeds) |"
    assert f"- {SAID} Rows: LoRA." in all_old
    monkeypatch.setattr(identity_tags, "TAGS", ())
    assert "computed" not in render_markdown(sweep, {**old, **heads}) + render_csv(sweep, {**old, **heads})
