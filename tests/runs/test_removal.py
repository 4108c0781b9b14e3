"""`peftlab remove`: what goes, and what must stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.records.folder import RunFolder
from peftlab.runs import removal
from tests.conftest import Peftlab
from tests.report.made_up import failed, record, sweep_file, three_methods, write


@pytest.fixture
def runs(scratch: Path) -> Path:
    """outputs/t with the runs a, b (which starts from a) and c (failed)."""
    start = record(0.8, key="b", seed=1)
    start["config"]["backbone"]["from_run"] = "outputs/t/a"
    write(scratch / "outputs" / "t", [record(0.8, key="a"), start, failed(record(0.8, key="c", seed=2))])
    return scratch / "outputs" / "t"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_by_condition(peftlab: Peftlab, runs: Path) -> None:
    (runs / ".logs").mkdir()
    (runs / ".logs" / "c.txt").write_text("what it said", encoding="utf-8")
    done = peftlab("remove", "outputs", "status=failed", "--yes")
    assert done.out.startswith("removed 1 run (")
    assert left(runs) == ["a", "b"]


def test_the_folder_of_the_last_goes_too(peftlab: Peftlab, runs: Path) -> None:
    assert peftlab("remove", "outputs/t", "--yes").status == 0
    assert not runs.exists()


def test_a_run_that_another_starts_from_stays(peftlab: Peftlab, runs: Path) -> None:
    for words in (["outputs/t/a"], ["outputs/t/c", "outputs/t/a"]):
        refused = peftlab("remove", *words, "--yes")
        assert refused.status == 2
        assert "outputs/t/a is what the run in " in refused.err
        assert "outputs/t/b starts from. Remove that one first, or with it" in refused.err
        assert left(runs) == ["a", "b", "c"]
    assert peftlab("remove", "outputs/t/a", "outputs/t/b", "--yes").status == 0
    assert left(runs) == ["c"]


def test_so_does_one_whose_follower_was_moved_with_it(peftlab: Peftlab, runs: Path) -> None:
    runs.parent.rename(runs.parent.with_name("moved"))
    assert peftlab("remove", "moved/t/a", "--yes").status == 2


def test_a_run_that_is_held_stays(peftlab: Peftlab, runs: Path) -> None:
    with RunFolder(runs / "b").locked():
        refused = peftlab("remove", "outputs/t/b", "--yes")
    assert refused.status == 2
    assert "is in use by process" in refused.err
    assert left(runs) == ["a", "b", "c"]


def test_a_run_of_a_sweep_stays(peftlab: Peftlab, scratch: Path) -> None:
    folder = three_methods(scratch / "outputs" / "s")
    sweep_file(folder)
    write(folder, [record(0.5, key="alone", seed=7)])
    refused = peftlab("remove", "outputs/s", "--yes")
    assert "9 more" not in refused.err
    assert refused.err.count("belongs to the sweep in") == 9
    assert peftlab("remove", "outputs/s/alone", "--yes").status == 0
    (folder / "sweep.json").write_text("{", encoding="utf-8")
    damaged = peftlab("remove", "outputs/s/lora0", "--yes")
    assert damaged.status == 2
    assert "whether a run belongs to that sweep cannot be told" in damaged.err
    assert len(left(folder)) == 10


def test_nobody_is_there_to_be_asked(peftlab: Peftlab, runs: Path) -> None:
    refused = peftlab("remove", "outputs/t/c")
    assert refused.status == 2
    assert "say --yes, as nobody can be asked here" in refused.err
    assert peftlab("remove", "status=failed", "--yes").status == 2
    assert left(runs) == ["a", "b", "c"]


@pytest.mark.parametrize(("answer", "status", "stay"), [("y", 0, 2), ("", 1, 3), ("no", 1, 3), ("yes", 0, 2)])
def test_the_answer(
    peftlab: Peftlab, runs: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, stay: int
) -> None:
    asked = []
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    assert peftlab("remove", "outputs/t/c").status == status
    assert "They cannot be brought back" in asked[0]
    assert len(left(runs)) == stay


def test_links_are_unlinked_and_not_followed(runs: Path, scratch: Path) -> None:
    away = scratch / "away"
    (runs / "c").rename(away)
    (runs / "c").symlink_to(away)
    assert removal.remove(RunFolder(runs / "c")) == 0
    assert (away / "record.json").exists()
    (runs / "b" / "checkpoints").symlink_to(away)
    removal.remove(RunFolder(runs / "b"))
    assert (away / "record.json").exists()
    assert left(runs) == ["a"]
