"""``peftlab verify``: records that are none, and records whose checksum or hashes are broken or gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Peftlab
from tests.runs.small_runs import edit, failed, finished, found, set_at


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def test_the_checksum_is_of_records_of_unfinished_runs_too(peftlab: Peftlab, run: Path) -> None:
    edit(run, set_at("status", "failed"), sealed=False)
    assert set(found(peftlab, run)) == {"record.json", "status"}

    edit(run, failed)
    assert found(peftlab, run) == {}
    edit(run, set_at("error", "KeyboardInterrupt: "), sealed=False)
    assert set(found(peftlab, run)) == {"record.json"}


@pytest.mark.parametrize("lost", ["checksum", "files", "checksum and files", "one"])
def test_a_record_cannot_lose_its_seal(peftlab: Peftlab, run: Path, lost: str) -> None:
    """Its figures are of a kind that only versions write which write the seal too."""

    def lose(record: Any) -> None:
        if "checksum" in lost:
            del record["checksum"]
        if "files" in lost:
            record["files"] = {"adapter.safetensors": record["files"]["adapter.safetensors"]}
        if lost == "one":
            del record["files"]["metrics.csv"]

    edit(run, lose)
    expected = {"config.yaml", "metrics.csv", "adapter.json", "vocabulary.json"} if "files" in lost else set()
    expected |= {"record.json"} if "checksum" in lost else set()
    assert set(found(peftlab, run)) == (expected or {"metrics.csv"})


# (what stands in record.json, what is said of it)
NO_RECORDS: list[tuple[bytes, str]] = [
    (b"\xff\xfe", "record.json is damaged"),
    (b"[" * 100_000, "record.json is damaged"),
    (b'{"a": ' * 100_000, "record.json is damaged"),
    (b'{"some": "program"}', "record.json is no record of peftlab: it says no schema_version."),
    (b"[]", "record.json is no record of peftlab: it says no schema_version."),
    (b'{"schema_version": "1"}', 'its schema_version is "1", and must be a whole number (this peftlab reads 1)'),
    (b'{"schema_version": true}', "its schema_version is true, and must be a whole number (this peftlab reads 1)"),
    (b'{"schema_version": 1}', "it says no status"),
    (b'{"schema_version": 2, "status": "finished"}', "has schema version 2; this peftlab reads version 1."),
]


@pytest.mark.parametrize(("content", "said"), NO_RECORDS, ids=range(len(NO_RECORDS)))
def test_what_is_no_record_is_said_in_a_line_and_the_next_run_is_verified(
    peftlab: Peftlab, run: Path, content: bytes, said: str
) -> None:
    other = run.with_name("0")
    other.mkdir()
    (other / "record.json").write_bytes(content)
    result = peftlab("verify", "outputs")
    assert result.status == 1
    assert said in result.out
    assert "Traceback" not in result.err
    assert "2 runs: 1 as recorded, 1 not as recorded" in result.out
    refused = peftlab("reproduce", other, "--print")
    assert refused.status == 2
    assert said in refused.err
    assert len(refused.err.splitlines()) <= 2
    shutil.copy(other / "record.json", "copied.json")
    elsewhere = peftlab("reproduce", "copied.json", "--print")
    assert said.replace("record.json", "copied.json") in elsewhere.err
    assert "Delete the file" not in elsewhere.err, "it may be anybody's"


@pytest.mark.parametrize("name", ["config.yaml", "adapter.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 20_000], ids=["bytes", "brackets"])
def test_other_files_that_nothing_can_read(peftlab: Peftlab, run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert set(found(peftlab, run)) == {name}


def test_a_record_without_hashes_is_told_by_what_is_left(peftlab: Peftlab, run: Path) -> None:
    """Older records have the adapter's hash alone, no checksum, and no correlation of Matthews."""

    def older(record: Any) -> None:
        del record["checksum"]
        del record["metrics"]["test"]["matthews"]
        record["files"] = {"adapter.safetensors": record["files"]["adapter.safetensors"]}

    edit(run, older)
    result = peftlab("verify", run)
    assert result.status == 0
    for name in ("config.yaml", "metrics.csv", "adapter.json"):
        assert f"{name}: the record has no sha256 of it" in result.out
    assert "record.json: has no checksum" in result.out
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("rank: 2", "rank: 4"))
    assert found(peftlab, run) == {"config.yaml": "peft.rank=4, but the record has 2"}


def test_parts_of_another_kind_are_no_older_record(peftlab: Peftlab, run: Path) -> None:
    edit(run, lambda record: record.pop("checksum"))
    edit(run, set_at("metrics", [1]))
    assert "record.json" in found(peftlab, run)
    result = peftlab("wandb-sync", run, "--dry-run")
    assert result.status == 1
    assert result.out.startswith(f"left out  {run}: record.json has lost its checksum")
