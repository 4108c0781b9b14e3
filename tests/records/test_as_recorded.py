"""What is read back is compared with what the record says of it, by everything that uses a finished run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab import load_adapter, load_run
from peftlab.errors import PeftlabError, RunError
from peftlab.records.integrity import HASHED
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, edit, finished, record_of, set_at

USES: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "RUN", "--text", "a fine film"),
    "evaluate": ("evaluate", "RUN"),
    "export": ("export", "RUN", "--to", "exported"),
    "inspect": ("inspect", "RUN"),
    "start from it": ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=next", "backbone.from_run=RUN"),
}
FILES = (*HASHED, "vocabulary.json")


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def flip(path: Path, seed: int = 0) -> None:
    """Turn one bit of the file, somewhere."""
    data = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(data) * 8)
    data[at // 8] ^= 1 << (at % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("use", USES)
def test_every_use_refuses_another_adapter(peftlab: Peftlab, run: Path, use: str) -> None:
    flip(run / "adapter.safetensors", seed=3)
    result = peftlab(*(word.replace("RUN", str(run)) for word in USES[use]))
    assert result.status == 2
    assert f"{run}/adapter.safetensors is not the file that the run wrote" in result.err
    assert "force=true" in result.err
    assert result.out == ""
    assert not Path("exported").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(3))
def test_no_bit_of_any_file_goes_unseen(run: Path, name: str, seed: int) -> None:
    flip(run / name, seed)
    with pytest.raises(RunError, match=rf"{name} is not the file that the run wrote"):
        load_run(run)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunError, match=f"cannot read .*{name}: No such file"):
        load_run(run)


def test_names_of_labels_in_another_order(peftlab: Peftlab, run: Path) -> None:
    facts = json.loads((run / "adapter.json").read_text())
    facts["label_names"].reverse()
    (run / "adapter.json").write_text(json.dumps(facts))
    result = peftlab("predict", run, "--text", "a fine film")
    assert (result.status, result.out) == (2, "")
    assert "adapter.json is not the file that the run wrote" in result.err


def test_load_adapter_knows_the_record_too(run: Path) -> None:
    flip(run / "adapter.safetensors", seed=3)
    with pytest.raises(PeftlabError, match=r"adapter.safetensors is not the file"):
        load_adapter(_model(), run)


def _model() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(2, 2))


def _lose_checksum(record: Any) -> None:
    del record["checksum"]


@pytest.mark.parametrize(
    "change", [set_at("metrics.test.accuracy", 1.0), set_at("data.label_names", ["good", "bad"]), _lose_checksum]
)
def test_a_record_that_was_changed_is_not_used(peftlab: Peftlab, run: Path, change: Callable[[Any], None]) -> None:
    edit(run, change, sealed=False)
    result = peftlab("predict", run, "--text", "a fine film")
    assert (result.status, result.out) == (2, "")
    assert "record.json" in result.err
    assert "checksum" in result.err


def test_a_finished_run_is_not_shown_from_a_changed_record(peftlab: Peftlab, run: Path) -> None:
    edit(run, set_at("metrics.test.accuracy", 1.0), sealed=False)
    result = peftlab("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t")
    assert result.status == 2
    assert "was changed after it was written" in result.err


def test_records_of_earlier_versions_are_read_with_a_note(peftlab: Peftlab, run: Path) -> None:
    def as_they_were(record: Any) -> None:
        del record["checksum"]
        record["files"] = {"adapter.safetensors": record["files"]["adapter.safetensors"]}
        for split in record["metrics"].values():
            split.pop("matthews", None)

    before = peftlab("predict", run, "--text", "a fine film").out
    edit(run, as_they_were)
    result = peftlab("predict", run, "--text", "a fine film")
    assert (result.status, result.out) == (0, before)
    assert "note: the record" in result.err
    assert "no sha256 of config.yaml, metrics.csv, adapter.json" in result.err
    flip(run / "adapter.safetensors", seed=3)
    assert peftlab("predict", run, "--text", "a fine film").status == 2


def test_what_a_method_starts_from_is_compared(peftlab: Peftlab, run: Path, tmp_path: Path) -> None:
    """By its files' folder, whatever the method calls it."""
    from peftlab.config import from_plain
    from peftlab.records.folder import RunFolder, read_config_values
    from peftlab.runs.assemble import _require_sources_as_recorded

    config = from_plain(read_config_values(RunFolder(run)))
    config.peft.files = lambda: [run / "adapter.safetensors"]  # type: ignore[method-assign]
    _require_sources_as_recorded(config)
    flip(run / "adapter.safetensors", seed=3)
    with pytest.raises(RunError, match="not the file that the run wrote"):
        _require_sources_as_recorded(config)


def test_whole_runs_may_be_copied_and_moved(peftlab: Peftlab, run: Path) -> None:
    shutil.copytree(run, "elsewhere")
    assert peftlab("predict", "elsewhere", "--text", "a fine film").status == 0
    assert record_of(Path("elsewhere"))["key"] == run.name
