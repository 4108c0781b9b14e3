"""`peftlab report` on made-up records: exact tables, groups, notes, and wrong inputs."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from peftlab.report.build import Request, build
from peftlab.report.render.latex import latex_escaped
from peftlab.report.render.markdown import render_markdown
from tests.alone import peftlab_alone
from tests.conftest import Peftlab
from tests.report.made_up import failed, record, sweep_file, three_methods, write


def folder_of(scratch: Path) -> Path:
    return three_methods(scratch / "outputs" / "t")


def test_the_markdown_table_to_the_letter(scratch: Path) -> None:
    folder = folder_of(scratch)
    sweep_file(folder)
    text = render_markdown(build(Request((str(folder),))))
    assert text.splitlines()[:8] == [
        "# Three methods",
        "",
        "|  | accuracy | trainable |",
        "| --- | ---: | ---: |",
        "| full fine-tuning | **0.8233 ± 0.0153** | 10,000 |",
        "| head only | 0.7100 ± 0.0100 | 100 |",
        "| LoRA | <ins>0.8167 ± 0.0153</ins> | 1,100 |",
        "",
    ]
    assert "Mean ± standard deviation (n − 1) over 3 seeds." in text
    assert "## Against head only" in text
    # By hand: differences 0.10, 0.12, 0.10; t = 16 with 2 degrees of freedom, where p = 1 - t / sqrt(t² + 2), and the
    # interval for two comparisons is ± 6.2053 / 150, where 0.975 / sqrt(2 · 0.9875 · 0.0125) = 6.2053. Of all resamples
    # 1/27 have the mean 0.12, more than the 1.25 % above the interval.
    assert "| LoRA | +0.1067 | [+0.0653, +0.1480] | [+0.1000, +0.1200] | 0.0039 | 0.0078 |" in text
    assert "Reviews: trained on official train, tested on official test; rows 800 / 100 / 400" in text
    assert "- Chosen on validation." in text
    assert "- A note." in text


def test_without_a_sweep_file_runs_are_grouped_by_config(scratch: Path) -> None:
    runs = [
        record(0.8 + rank / 100, key=f"r{rank}{seed}", seed=seed, keys={"peft.rank": rank, "data.path": f"{seed}.csv"})
        for rank in (16, 2)
        for seed in (0, 1)
    ]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert [(group.label, [run.key for run in group.runs]) for group in report.rows] == [
        ("rank=2", ["r20", "r21"]),
        ("rank=16", ["r160", "r161"]),
    ]


def test_a_key_that_follows_from_another_is_in_no_label(scratch: Path) -> None:
    runs = [record(0.8, key=f"r{rank}", keys={"peft.rank": rank, "peft.alpha": 2.0 * rank}) for rank in (2, 4)]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert [group.label for group in report.rows] == ["rank=2", "rank=4"]
    assert report.grouped.implied == ["peft.alpha"]
    assert any("peft.alpha" in note for note in report.notes)


def test_runs_that_start_from_different_runs_are_different_groups(scratch: Path) -> None:
    def start(key: str) -> dict[str, str]:
        return {"backbone.from_run": f"elsewhere/{key}"}

    runs = [
        *(record(0.7, key=f"p{seed}", seed=seed, method="full") for seed in (0, 1)),
        *(record(0.7, key=f"q{seed}", seed=seed, method="full", keys={"optim.lr": 0.5}) for seed in (0, 1)),
        *(record(0.8, key=f"a{seed}", seed=seed, keys=start(f"p{seed}")) for seed in (0, 1)),
        *(record(0.9, key=f"b{seed}", seed=seed, keys=start(f"q{seed}")) for seed in (0, 1)),
    ]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert sorted(tuple(run.key for run in group.runs) for group in report.rows) == [
        ("a0", "a1"),
        ("b0", "b1"),
        ("p0", "p1"),
        ("q0", "q1"),
    ]
    assert len({group.label for group in report.rows}) == 4


def test_missing_and_failed_seeds_are_counted(scratch: Path) -> None:
    folder = folder_of(scratch)
    shutil.rmtree(folder / "lora2")
    logs = folder / ".logs"
    logs.mkdir()
    (logs / "head2.txt").write_text("epoch 1\nKilled\n")
    shutil.rmtree(folder / "head2")
    content = sweep_file(folder)
    content["cells"][1]["failed"] = {"2": "killed by signal 9"}
    (folder / "sweep.json").write_text(json.dumps(content))
    report = build(Request((str(folder),)))
    text = render_markdown(report)
    assert "| head only | 0.7050 ± 0.0071 (2/3 seeds) | 100 | 2/3 seeds |" in text
    assert {(one.title, one.reason, one.tail) for one in report.failures} == {
        ("head only, seed 2", "killed by signal 9", "epoch 1\nKilled"),
        ("LoRA, seed 2", "no record yet", ""),
    }


def test_the_log_that_a_sweep_names_is_linked(scratch: Path, peftlab: Peftlab) -> None:
    folder = folder_of(scratch)
    for name in ("head1", "head2", "lora2", "full2"):
        shutil.rmtree(folder / name)
    (folder / ".logs").mkdir()
    (folder / ".logs" / "job 4.txt").write_text("epoch 1\nout of memory\n")
    (folder / ".logs" / "empty.txt").touch()
    (scratch / "secret.txt").write_text("not below the sweep")
    content = sweep_file(folder)
    content["cells"][1] |= {
        "failed": {"1": "killed", "2": "killed"}, "logs": {"1": ".logs/empty.txt", "2": ".logs/job 4.txt"}
    }  # fmt: skip
    content["cells"][2] |= {"failed": {"2": "killed"}, "logs": {"2": "../../secret.txt"}}
    (folder / "sweep.json").write_text(json.dumps(content))
    report = build(Request((str(folder),)))
    assert {one.title: (one.log and Path(one.log).name, one.tail) for one in report.failures} == {
        "head only, seed 1": ("empty.txt", ""),
        "head only, seed 2": ("job 4.txt", "epoch 1\nout of memory"),
        "LoRA, seed 2": (None, ""),
        "full fine-tuning, seed 2": (None, ""),
    }
    text = render_markdown(report, target=Path("outputs/elsewhere/deep"))
    assert "- head only, seed 2: killed ([log](../../t/.logs/job%204.txt))" in text
    assert "- LoRA, seed 2: killed\n" in text
    assert "- head only, seed 2: killed (log: " in render_markdown(report)
    result = peftlab("report", folder, "--format", "html")
    assert "job 4.txt)" in " ".join(result.out.split())
    page = (folder / "report" / "report.html").read_text()
    assert '<a href="../.logs/job%204.txt">whole log</a>' in page
    assert (page.count("The log is empty."), page.count("There is no log.")) == (1, 2)


def test_a_failed_record_is_a_missing_seed_without_a_sweep_file_too(scratch: Path) -> None:
    good = [record(0.8, key=f"k{seed}", seed=seed) for seed in (0, 1)]
    bad = failed(record(0.0, key="k2", seed=2))
    report = build(Request((str(write(scratch / "t", [*good, bad])),)))
    (group,) = report.rows
    assert (len(group.runs), group.missing) == (2, {"2": "RuntimeError: out of memory"})


def test_a_failed_record_is_its_cells_though_the_file_has_no_key_of_it(scratch: Path) -> None:
    folder = folder_of(scratch)
    shutil.rmtree(folder / "head2")
    write(folder, [failed(record(0.0, key="head2", seed=2, method="head")), record(0.5, key="tried")])
    (folder / ".logs").mkdir()
    (folder / ".logs" / "head2.txt").write_text("out of memory\n")
    content = sweep_file(folder)
    del content["cells"][1]["runs"]["2"]
    content["cells"][1]["failed"] = {"2": "exit status 1"}
    content["cells"][2]["tried"] = [{"run": "tried", "state": "finished"}, {"run": None, "state": "failed"}]
    (folder / "sweep.json").write_text(json.dumps(content))
    report = build(Request((str(folder),)))
    assert [(one.title, one.reason, one.tail) for one in report.failures] == [
        ("head only, seed 2", "exit status 1", "out of memory")
    ]
    assert report.grouped.outside == []
    assert any("1 run of a search" in note for note in report.notes)


def test_runs_of_no_cell_are_named_and_left_out(scratch: Path) -> None:
    folder = folder_of(scratch)
    write(folder, [record(0.99, key="stray")])
    sweep_file(folder)
    report = build(Request((str(folder),)))
    assert any("stray" in note for note in report.notes)
    assert all(run.key != "stray" for run in report.runs)


def test_what_is_mixed_in_a_row_is_said(scratch: Path) -> None:
    runs = [
        record(0.8, key="a", seed=0),
        record(0.8, key="b", seed=1, versions={"torch": "2.12.0"}, data={"hash": "e" * 64, "test_kind": "hold-out"}),
    ]
    notes = " ".join(build(Request((str(write(scratch / "t", runs)),), by=("peft",))).notes)
    assert "Within a row the texts differ (data hash)" in notes
    assert "Within a row what they are tested on differs" in notes
    assert "torch 2.12.0 (1 run), 2.13.0 (1 run)" in notes


def test_rows_on_other_test_sets_are_not_compared(scratch: Path) -> None:
    folder = folder_of(scratch)
    write(folder, [record(0.99, key=f"o{s}", seed=s, data={"data_set": "Other"}, keys={"data.x": 1}) for s in range(3)])
    report = build(Request((str(folder),), baseline="peft=head"))
    other = next(group for group in report.rows if group.runs[0].key == "o0")
    assert report.comparisons[other.id].why_not == "tested on other texts"
    assert [group.label for group in report.rows if report.marks.get(group.id) == "best"] == ["peft=full"]


def test_one_seed_has_no_spread_but_a_sampling_error(scratch: Path) -> None:
    report = build(Request((str(write(scratch / "t", [record(0.8, key="a")])),)))
    assert "| 0.8000 |" in render_markdown(report)
    assert any("binomial standard error" in note and "0.0200" in note for note in report.notes)


def test_a_lower_loss_is_better(scratch: Path) -> None:
    runs = [
        record(0.8, key=k, method=m, metrics={"test": {"loss": v}}) for k, m, v in [("a", "lora", 1), ("b", "head", 2)]
    ]
    folder = str(write(scratch / "t", runs))
    for best, wanted in ((None, "peft=lora"), ("highest", "peft=head")):
        report = build(Request((folder,), metric="metrics.test.loss", best=best))
        assert [g.label for g in report.rows if report.marks.get(g.id) == "best"] == [wanted]


def test_by_and_where(scratch: Path) -> None:
    folder = str(folder_of(scratch))
    grouped = build(Request((folder,), by=("seed",), where=("peft=LORA",)))
    assert [(group.label, len(group.runs)) for group in grouped.rows] == [("seed=0", 1), ("seed=1", 1), ("seed=2", 1)]


def test_damaged_records_are_named_and_the_rest_is_reported(scratch: Path, peftlab: Peftlab) -> None:
    folder = folder_of(scratch)
    (folder / "head0" / "record.json").write_text('{"schema_version": 1, "sta')
    (folder / "head1" / "record.json").write_text('{"schema_version": 99}')
    (folder / "full0" / "record.json").write_text('{"schema_version": 1}')
    (folder / "full1" / "record.json").write_bytes(b"\xff\xfe")
    result = peftlab("report", folder, "--format", "md,json")
    assert result.status == 1
    for name, why in (("head0", "damaged"), ("head1", "version 99"), ("full0", "says no status"), ("full1", "damaged")):
        assert any(name in line and why in line for line in result.err.splitlines()), result.err
    assert "4 left out" in result.err
    assert len(json.loads((folder / "report" / "report.json").read_text())["left_out"]) == 4


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"records": [1, 2]}', "is not a record of peftlab: it has no schema_version"),
        ("[1, 2]", "is not a record of peftlab"),
        ('{"schema_version": "1"}', 'has the schema version "1"; it must be a number'),
    ],
)
def test_what_is_no_record_is_said(content: str, why: str, scratch: Path) -> None:
    folder = folder_of(scratch)
    (folder / "head0" / "record.json").write_text(content)
    (left_out,) = build(Request((str(folder),))).left_out
    assert why in left_out.reason
    assert "damaged" not in left_out.reason


def test_a_record_stands_for_its_folder(scratch: Path, peftlab: Peftlab) -> None:
    record_file = folder_of(scratch) / "lora1" / "record.json"
    assert peftlab("report", record_file, "--format", "md").status == 0
    assert (record_file.parent / "report" / "report.md").is_file()
    assert [run.key for run in build(Request((str(record_file),))).runs] == ["lora1"]


def test_a_copied_run_counts_once(scratch: Path) -> None:
    folder = folder_of(scratch)
    shutil.copytree(folder / "lora0", folder / "lora0_copy")
    report = build(Request((str(folder),)))
    assert len(report.runs) == 9
    assert "same run" in report.left_out[0].reason


def test_all_files_are_written_and_agree(scratch: Path, peftlab: Peftlab) -> None:
    folder = folder_of(scratch)
    sweep_file(folder)
    result = peftlab("report", folder, "--to", "out")
    assert result.status == 0, result.err
    there = {path.name for path in Path("out").iterdir()}
    assert {"report.md", "report.tex", "report.csv", "groups.csv", "report.json", "report.html"} <= there
    for name in ("parameters", "curves", "seeds", "costs"):
        assert {f"{name}.png", f"{name}.pdf", f"{name}.csv"} <= there
    assert "heat.png" not in there
    assert "heat map: it needs two numeric config keys" in Path("out/report.md").read_text()
    with Path("out/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["key"], float(row["metrics.test.accuracy"])) for row in rows} >= {("lora1", 0.83), ("head0", 0.7)}
    groups = {one["group"]: one for one in json.loads(Path("out/report.json").read_text())["groups"]}
    assert groups["lora"]["mean"] == pytest.approx((0.80 + 0.83 + 0.82) / 3)
    with Path("out/groups.csv").open() as file:
        assert {row["group"]: float(row["mean"]) for row in csv.DictReader(file)} == {
            name: one["mean"] for name, one in groups.items()
        }


def test_the_same_records_give_the_same_bytes(scratch: Path, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call, and whether one process reads and draws or several."""
    folder = folder_of(scratch)
    (folder / "head1" / "record.json").write_text('{"schema_version": 99}')
    assert peftlab("report", folder, "--to", "one").status == 1
    assert peftlab("report", folder, "--to", "two").status == 1
    monkeypatch.setattr("peftlab.report.records.MANY_RECORDS", 1)
    monkeypatch.setattr("peftlab.report.figures.gallery.MANY_ROWS", 1)
    monkeypatch.setattr("peftlab.report.forks.cpus", lambda: 2)
    monkeypatch.setattr("peftlab.report.records.cpus", lambda: 2)
    monkeypatch.setattr("peftlab.report.figures.gallery.cpus", lambda: 2)
    assert peftlab("report", folder, "--to", "three").status == 1
    for path in Path("one").iterdir():
        for other in ("two", "three"):
            assert path.read_bytes() == (Path(other) / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], ["no folder 'nowhere'"]),
        (["empty"], ["no record.json", "notes.txt"]),
        (
            ["outputs", "--metric", "metrics.test.acuracy"],
            ["metrics.test.acuracy", "metrics.test.accuracy", "macro_f1"],
        ),
        (["outputs", "--columns", "parameters.trainble"], ["--columns", "parameters.trainable"]),
        (["outputs", "--columns", "foo"], ["no record has a value there", "metrics.test.accuracy", "timing."]),
        (["outputs", "--columns", ","], ["--columns is empty", "parameters.trainable"]),
        (["outputs", "--metric", "config.peft._target_"], ["no number there", "the text 'peftlab.peft."]),
        (["outputs", "--metric", "config.force"], ["no number there, but false"]),
        (["empty/notes.txt"], ["'empty/notes.txt' is a file", "record.json"]),
        (["outputs", "--baseline", "peft=laro"], ["--baseline peft=laro", "Did you mean 'peft=lora'?"]),
        (["outputs", "--baseline", "peft=head", "--where", "peft=lora"], ["no row is called so"]),
        (["outputs", "--by", "peft.rnk"], ["--by peft.rnk", "peft"]),
        (["outputs", "--where", "peft"], ["write key=value"]),
        (["outputs", "--where", "peft=lroa"], ["no run has this value", "lora"]),
        (["outputs", "--format", "pdf"], ["--format pdf", "md"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_inputs(arguments: list[str], said: list[str], scratch: Path, peftlab: Peftlab) -> None:
    folder_of(scratch)
    (scratch / "empty").mkdir()
    (scratch / "empty" / "notes.txt").touch()
    result = peftlab("report", *arguments, "--to", "out")
    assert result.status == 2
    assert "Traceback" not in result.err
    for text in said:
        assert text in result.err
    assert not Path("out").exists()


def test_a_baseline_without_shared_seeds_is_refused(scratch: Path, peftlab: Peftlab) -> None:
    runs = [record(0.8, key="a", seed=0), record(0.8, key="b", seed=1, method="head")]
    result = peftlab("report", write(scratch / "t", runs), "--baseline", "peft=head")
    assert result.status == 2
    assert "no shared seed" in result.err


def test_an_unwritable_target_is_one_clear_line(scratch: Path, peftlab: Peftlab) -> None:
    folder = folder_of(scratch)
    (scratch / "taken").write_text("a file, and no folder")
    result = peftlab("report", folder, "--to", "taken/report", "--format", "md")
    assert result.status == 2
    assert "taken" in result.err
    assert "choose another" in result.err


def test_no_torch_and_no_transformers(scratch: Path) -> None:
    folder = folder_of(scratch)
    done = peftlab_alone("report", folder, "--baseline", "peft=head", COLUMNS="110")
    assert done.status == 0
    assert done.heavy == []


def test_latex_escapes_what_is_special() -> None:
    assert latex_escaped("a_b & 50 % #1 {x} α≤2 é ± 中") == (r"a\_b \& 50 \% \#1 \{x\} $\alpha$$\le$2 é $\pm$ [U+4E2D]")


def test_latex_compiles(scratch: Path, peftlab: Peftlab) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    folder = folder_of(scratch)
    content = sweep_file(folder, title="A_B & C: 100 % of α ~ {x} ^ \\ <é>")
    content["cells"][2] |= {"label": "LoRA_2 $x$ # & 中 “q”", "group": "low_rank & co"}
    (folder / "sweep.json").write_text(json.dumps(content))
    assert peftlab("report", folder, "--to", "out", "--format", "tex").status == 0
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{report.tex}\\end{document}"
    (scratch / "out" / "main.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd="out", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout
    assert (scratch / "out" / "main.pdf").stat().st_size > 1000


@pytest.mark.parametrize("bare", [float("nan"), None])
def test_finished_runs_of_earlier_versions_that_diverged_are_in_no_mean(bare: float | None, scratch: Path) -> None:
    """They trained on without a number, and their test figure is chance; null stands for NaN since JSON has none."""
    good = [record(value, key=f"k{seed}", seed=seed) for seed, value in enumerate([0.8, 0.82, 0.84])]
    lost = [record(0.5, key=f"k{seed}", seed=seed, history=[{"epoch": 0, "train/loss": bare}]) for seed in (3, 4)]
    folder = write(scratch / "t", [*good, *lost])
    text = render_markdown(build(Request((str(folder),))))
    assert "0.8200 ± 0.0200 (diverged 2 of 5)" in text
    assert "3/5 seeds" in text
    assert "Training diverged, its loss is no finite number" in text
    assert "t (seed 3, 4). No mean has these runs in." in text


def test_a_row_whose_runs_all_diverged_says_so(scratch: Path) -> None:
    lost = [
        record(0.5, key=f"f{seed}", seed=seed, method="full", history=[{"epoch": 0, "train/loss": None}])
        for seed in range(2)
    ]
    folder = write(scratch / "t", [*(record(0.8, key=f"k{seed}", seed=seed) for seed in range(2)), *lost])
    text = render_markdown(build(Request((str(folder),))))
    assert next(line for line in text.splitlines() if "diverged 2 of 2" in line).startswith("| full")


def test_runs_that_are_named_one_by_one_are_told_by_what_differs(scratch: Path) -> None:
    """Folders and names tell nothing: of a run that goes on with another, after which epoch it does."""
    made = {"first": 4, "second": 8}
    folders = [
        str(write(scratch / name, [record(0.8, key=f"k{rank}", name=name, keys={"peft.rank": rank})]) / f"k{rank}")
        for name, rank in made.items()
    ]
    assert [row.label for row in build(Request(tuple(folders))).rows] == ["rank=4", "rank=8"]
    more = record(0.8, key="more", name="third", keys={"peft.rank": 4})
    more["config"]["continue_from"], more["continued_from"] = folders[0], {"ends": [2]}
    third = str(write(scratch / "third", [more]) / "more")
    assert [row.label for row in build(Request((folders[0], third))).rows] == [
        "continue_from=after epoch 2",
        "continue_from=null",
    ]
    newer = record(0.8, key="newer", name="fourth", keys={"peft.rank": 4, "trainer.compile": True})
    newer["identity"] = {"bookkeeping": ["name"], "added": {"trainer.compile": False}, "run_folders": []}
    fourth = str(write(scratch / "fourth", [newer]) / "newer")
    labels = [row.label for row in build(Request((folders[0], fourth))).rows]
    assert labels == ["compile=false", "compile=true"], "the record of an earlier version does not have the key"


def marks(folder: Path, accuracies: dict[str, list[float]]) -> tuple[list[str], str]:
    """The mark of each row, in their order, and what is said of them."""
    runs = (
        record(value, key=f"{method}{seed}", seed=seed, method=method)
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    )
    report = build(Request((str(write(folder, runs)),)))
    return [report.marks.get(group.id, "") for group in report.rows], " ".join(report.results.notes)


def test_where_all_rows_show_the_same_none_is_the_best(scratch: Path) -> None:
    """Equal is what the table shows: 0.70004 and 0.69996, and means that only rounding in their sums tells apart."""
    made = {"head": [0.1, 0.2, 0.3], "lora": [0.3, 0.2, 0.1]}
    found, said = marks(scratch / "sums", made)
    assert found == ["", ""]
    assert "No row is marked as the best: all show the same mean." in said
    assert marks(scratch / "digits", {"head": [0.70004] * 3, "lora": [0.69996] * 3})[0] == ["", ""]
    found, said = marks(scratch / "tops", {"full": [0.5] * 3, "head": [0.70004] * 3, "lora": [0.69996] * 3})
    assert found == ["", "best", "best"]
    assert "No row is marked" not in said


def test_sections_that_show_the_same_are_named(scratch: Path) -> None:
    content = sweep_file(three_methods(scratch / "t"))
    write(scratch / "t", [record(0.5, key="more0", method="bitfit"), record(0.5, key="even0", method="ia3")])
    more = [
        {**content["cells"][0], "id": name, "label": name, "group": "even", "runs": {"0": f"{name}0"}}
        for name in ("more", "even")
    ]
    content["cells"] += more
    (scratch / "t" / "sweep.json").write_text(json.dumps(content))
    report = build(Request((str(scratch / "t"),)))
    assert [report.marks.get(group.id, "") for group in report.rows] == ["best", "", "tied", "", ""]
    said = " ".join(report.results.notes)
    assert "Bold: the best mean of each section" in said
    assert "Where all rows show the same mean, none is marked as the best: more; even." in said
