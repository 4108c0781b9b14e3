"""Runs in one archive: the same bytes again, verified where it is, and refused with its reason if it is not whole."""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.audit.bundle import LIST, BadBundle, unpacked, write_bundle
from peftlab.errors import RunError
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, finished


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_in_it_and_verified_elsewhere(
    peftlab: Peftlab, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = ["train", *CLASSIFIER, "data.path=reviews.jsonl", "name=more", "trainer.max_epochs=4"]
    assert peftlab(*child, f"continue_from={run}").status == 0
    Path("outputs/more/table.md").write_text("a table\n")
    result = peftlab("bundle", "outputs/more", "--out", "first.zip")
    assert result.status == 0, result.err
    assert re.match(r"first.zip: 2 runs in \d+ files, \d.\d MiB\n", result.out)
    assert f"note: {run} is in it too: outputs/more/" in result.out, "what it goes on with"
    write_bundle(["outputs/more"], Path("second.zip"))
    assert Path("first.zip").read_bytes() == Path("second.zip").read_bytes()
    members = _members(Path("first.zip"))
    assert {name.rpartition("/")[2] for name in members} == {
        "record.json", "config.yaml", "metrics.csv", "adapter.json", "adapter.safetensors", "predictions.parquet",
        "vocabulary.json", "curves.png", "table.md", "packages.txt", LIST,
    }  # fmt: skip
    assert members[f"t/{run.name}/adapter.safetensors"] == (run / "adapter.safetensors").read_bytes()
    assert re.search(rb"^torch==\d", members["packages.txt"], re.MULTILINE)
    assert not any(str(tmp_path).encode() in members[name] for name in ("packages.txt", LIST))
    # elsewhere, where none of the runs is
    (tmp_path / "elsewhere").mkdir()
    shutil.move("first.zip", "elsewhere/it.zip")
    shutil.rmtree("outputs")
    Path("reviews.jsonl").rename("elsewhere/reviews.jsonl")
    monkeypatch.chdir("elsewhere")
    verified = peftlab("verify", "it.zip")
    assert verified.status == 0, verified.out
    assert f"ok         it.zip:t/{run.name}" in verified.out
    assert "2 runs: 2 as recorded" in verified.out
    assert "needs files" not in verified.out, "the run that is gone on with was found in the archive"
    folder = json.loads(peftlab("verify", "it.zip", "--json").out)["runs"][0]["folder"]
    assert folder.startswith("it.zip:more/")


def test_what_is_not_as_recorded_is_not_bundled(peftlab: Peftlab, run: Path) -> None:
    (run / "metrics.csv").write_text("changed\n")
    with pytest.raises(RunError, match=rf"not as recorded, so nothing was written:\n  {run}: metrics.csv"):
        write_bundle([str(run)], None)
    assert not list(Path().glob("*.zip"))
    shutil.rmtree(run)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("name: t\n")
    with pytest.raises(RunError, match="none of these runs has ended"):
        write_bundle(["outputs"], None)
    Path("outputs.zip").touch()
    with pytest.raises(RunError, match=r"outputs.zip is there already"):
        write_bundle(["outputs"], None)


def _rewritten(change: Callable[[dict[str, bytes]], object], listed: bool = True) -> None:
    """Make ``bad.zip`` of ``good.zip``; ``listed``: with a list that fits, as somebody who knows of it would."""
    import hashlib

    members = _members(Path("good.zip"))
    change(members)
    if listed and LIST in members:
        listing = json.loads(members[LIST])
        listing["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items() if name != LIST
        }  # fmt: skip
        members[LIST] = json.dumps(listing).encode()
    with zipfile.ZipFile("bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _refusal() -> str:
    with pytest.raises(BadBundle) as error, unpacked(Path("bad.zip")):
        pass
    return str(error.value)


def test_what_is_damaged_or_hostile_is_refused(peftlab: Peftlab, run: Path) -> None:
    write_bundle([str(run)], Path("good.zip"))
    first = f"t/{run.name}/config.yaml"
    whole = Path("good.zip").read_bytes()

    for name in ("../outside", "/etc/outside", "t/../../outside", "t\\outside", "C:/outside", "t/./x", "t//x", "x/"):
        _rewritten(lambda members, name=name: members.update({name: b"x"}))  # type: ignore[misc]
        assert "Nothing was unpacked" in _refusal(), name
    assert not (Path("..") / "outside").exists()

    _rewritten(lambda members: members.pop(first), listed=False)
    assert f"lacks {first}, which its list names" in _refusal()
    _rewritten(lambda members: members.update({first: b"name: other\n"}), listed=False)
    assert f"{first} has other content than its list says" in _refusal()
    _rewritten(lambda members: members.update({"t/more": b"x"}), listed=False)
    assert "has t/more, which its list does not name" in _refusal()
    _rewritten(lambda members: members.pop(LIST))
    assert f"it has no {LIST}" in _refusal()
    _rewritten(lambda members: members.update({LIST: b'{"format": 2, "files": {}}'}), listed=False)
    assert "has the form 2, and this peftlab reads 1" in _refusal()
    for text in (b"{", b"[]", b'{"format": 1}', b'{"format": 1, "files": {"x": 1}}', b"[" * 100_000):
        _rewritten(lambda members, text=text: members.update({LIST: text}), listed=False)  # type: ignore[misc]
        assert f"its {LIST} is not as peftlab writes it" in _refusal()

    link = zipfile.ZipInfo("t/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    shutil.copy("good.zip", "bad.zip")
    with zipfile.ZipFile("bad.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "'t/link' is a link" in _refusal()
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("t/x", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("t/x", "2")
    assert "has t/x twice" in _refusal()

    middle = len(whole) // 2
    for damaged in (b"", b"no zip", whole[:middle], whole[:middle] + b"\0" * 64 + whole[middle + 64 :]):
        Path("bad.zip").write_bytes(damaged)
        assert "bad.zip" in _refusal()
    assert peftlab("verify", "bad.zip").status == 2
    # a record that was changed by somebody who made a list that fits: verify says it, as of a folder
    _rewritten(lambda members: members.update({first: members[first].replace(b"seed: 0", b"seed: 1")}))
    told = peftlab("verify", "bad.zip")
    assert told.status == 1
    assert "config.yaml" in told.out
