"""A record says what its key is made of: whoever reads it needs neither the classes of its config nor torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftlab.composition import checked
from peftlab.config import from_plain
from peftlab.records.identity import key_of, recorded, run_key, semantic_of
from peftlab.records.identity_recorded import earlier_rules
from peftlab.records.identity_tags import recorded_tags
from peftlab.report.build import Request, build
from tests.alone import peftlab_alone
from tests.conftest import Peftlab
from tests.goldens import keys, runs
from tests.goldens.changed import with_defaults_of_then
from tests.report.made_up import record, write
from tests.runs.small_runs import CLASSIFIER, edit, finished, found, record_of, set_at, train

GOLDEN = json.loads(keys.KEYS.read_text(encoding="utf-8"))
EARLIER = sorted((runs.RUNS / "finished").glob("*/*/record.json"))
"""Records of peftlabs that did not write it down."""


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def key_in(record: dict[str, Any]) -> str:
    return key_of(semantic_of(record["config"], record["identity"], recorded_tags(record)))


def test_the_key_follows_from_what_is_written_down(scratch: Path) -> None:
    """From JSON alone, and it is the key that there always was; tests/goldens walk every kind of config."""
    keys.write_files(scratch)
    for *overrides, key in GOLDEN[::6]:
        config = checked([override.replace("{folder}", ".") for override in with_defaults_of_then(overrides)])
        written = json.loads(json.dumps({"config": config.plain(), "identity": recorded(config)}))
        assert key_in(written) == key, overrides


def has(config: dict[str, Any], key: str) -> bool:
    """Whether the field ``key`` is in a plain config: others came later."""
    group, dot, field = key.partition(".")
    return group in config and (not dot or field in config[group])


def test_of_earlier_records_the_tables_know_what_the_classes_say(scratch: Path) -> None:
    runs.write_data(scratch)
    shutil.copytree(runs.RUNS / "adapter", "adapter")
    shutil.copytree(runs.RUNS / "finished", "outputs")
    for path in EARLIER:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        assert "identity" not in earlier
        config = earlier["config"]
        said, known = recorded(from_plain(config)), earlier_rules(config)
        of_then = {key for key in [*said["bookkeeping"], *said["run_folders"]] if has(config, key)}
        assert of_then <= known.bookkeeping
        there = {f"{group}.{name}" for group, part in config.items() if isinstance(part, dict) for name in part}
        assert known.bookkeeping & there - {"logger"} <= {*said["bookkeeping"]}
        assert known.added == {name: default for name, default in said["added"].items() if name in there}


def test_earlier_records_are_verified_without_torch(scratch: Path) -> None:
    """Their keys too: every one of them depends on the content of files."""
    runs.write_data(scratch)
    shutil.copytree(runs.RUNS / "adapter", "adapter")
    shutil.copytree(runs.RUNS / "finished", "outputs")
    done = peftlab_alone("verify", "outputs", "--json")
    told = json.loads(done.out)
    assert done.heavy == []
    assert told["ok"] == len(EARLIER)
    assert not [one for run in told["runs"] for one in run["not_checked"] if one["about"] == "key"]
    for name in ("reviews.jsonl", "topics.jsonl", "adapter/adapter_config.json"):
        file = Path(name)
        file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    told = json.loads(peftlab_alone("verify", "outputs", "--json").out)
    assert told["differs"] == len(EARLIER)
    assert all([one["about"] for one in run["differences"]] == ["key"] for run in told["runs"])


def test_a_file_that_changed_is_told_from_a_config_that_did(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    reviews.write_text(reviews.read_text().replace("great", "gr8"))
    assert found(peftlab, run) == {
        "key": f"{run_key(checked([*CLASSIFIER, f'data.path={reviews}']))} here, not {run.name}: the content of a file "
        "it reads is another one (data_content)"
    }
    edit(run, set_at("config.seed", 5))
    assert found(peftlab, run)["key"].endswith("the config is another one")


def test_a_key_is_checked_though_the_files_are_gone(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    reviews.unlink()
    assert found(peftlab, run) == {}
    edit(run, set_at("config.seed", 5))
    assert "the config is another one" in found(peftlab, run)["key"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("identity.bookkeeping", ["name"]),
        ("identity.content.data_content.train", "0" * 64),
        ("identity.values", {"data": {"tasks": []}}),
    ],
)
def test_what_is_written_down_cannot_be_edited(peftlab: Peftlab, run: Path, path: str, value: Any) -> None:
    edit(run, set_at(path, value))
    assert "the config is another one" in found(peftlab, run)["key"]


@pytest.mark.parametrize("value", [None, [], {"bookkeeping": 3}])
def test_a_record_whose_identity_is_nonsense(peftlab: Peftlab, run: Path, value: Any) -> None:
    edit(run, set_at("identity", value))
    assert "is not as peftlab writes it" in found(peftlab, run)["record.json"]
    assert "1 left out" in peftlab("report", run, "--format", "csv").err or peftlab("report", run).status == 2


METHOD = '''
from dataclasses import dataclass

from peftlab.fields import bookkeeping
from peftlab.peft.lora import LoRA


@dataclass(kw_only=True)
class Mine(LoRA, name="mine"):
    """LoRA under another name."""

    note: str = bookkeeping("")
'''


def test_a_method_from_elsewhere_is_verified_and_reported_unimported(
    peftlab: Peftlab, reviews: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its own bookkeeping is, only the record can say."""
    monkeypatch.syspath_prepend(str(scratch))
    monkeypatch.setenv("PEFTLAB_ALLOW", "mine_elsewhere")
    (scratch / "mine_elsewhere.py").write_text(METHOD)
    folder = scratch / "my/peft"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "_target_: mine_elsewhere.Mine\nrank: 2\ntargets: [hidden]\nalpha: 4.0\nnote: ''\n"
    )
    kept = [o for o in CLASSIFIER if not o.startswith("peft.") and o != "peft=lora"]
    for seed, note in ((0, "a"), (1, "b")):
        typed = ["--config-dir", "my", *kept, "peft=mine", f"peft.note={note}", f"seed={seed}"]
        done = peftlab("train", *typed, f"data.path={reviews}", "name=t")
        assert done.status == 0, done.err
    (scratch / "mine_elsewhere.py").unlink()
    sys.modules.pop("mine_elsewhere")
    result = peftlab_alone("verify", "outputs")
    assert "2 runs: 2 as recorded" in result.out
    assert result.heavy == []
    assert peftlab("report", "outputs", "--format", "json").status == 0
    (group,) = json.loads(Path("outputs/report/report.json").read_text())["groups"]
    assert group["n"] == 2, "one row: the note decides nothing"


def test_fields_that_came_later_are_left_out_at_their_defaults_alone(scratch: Path) -> None:
    before, after, other = (record(0.8, key=f"a{seed}", seed=seed, keys=keys) for seed, keys in enumerate(LATER))
    bookkeeping = sorted(earlier_rules(before["config"]).bookkeeping)
    said = {"bookkeeping": bookkeeping, "added": {"data.mark": 0}, "run_folders": []}
    after["identity"] = other["identity"] = said
    report = build(Request((str(write(scratch / "t", [before, after, other])),)))
    assert sorted(len(group.runs) for group in report.rows) == [1, 2]


LATER: tuple[dict[str, Any], ...] = ({}, {"data.mark": 0}, {"data.mark": 1})


def test_a_mixture_and_an_earlier_run_are_written_down(
    peftlab: Peftlab, run: Path, reviews: Path, scratch: Path
) -> None:
    later = train(peftlab, reviews, f"backbone.from_run={run}")
    said = record_of(later)["identity"]
    assert said["content"]["from_run"]["run"] == run.name
    assert "backbone.from_run" in said["run_folders"]
    assert key_in(record_of(later)) == later.name
    tasks = "[{task: a, name: text_files, path: reviews.jsonl}, {task: b, name: text_files, path: reviews.jsonl}]"
    kept = [o for o in CLASSIFIER if o != "data=text_files"]
    assert peftlab("train", *kept, "data=multitask", f"data.tasks={tasks}", "name=m").status == 0
    (mixed,) = Path("outputs/m").iterdir()
    written = record_of(mixed)
    assert [task["task"] for task in written["identity"]["values"]["data"]["tasks"]] == ["a", "b"]
    assert set(written["identity"]["content"]["data_content"]) == {"a/train", "b/train"}
    assert key_in(written) == mixed.name


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["verify", "--help"], ["report", "outputs"]])
def test_what_only_reads_records_imports_no_torch(run: Path, arguments: list[str]) -> None:
    done = peftlab_alone(*arguments)
    assert (done.status, done.heavy) == (0, [])


def test_rooms_that_read_records_import_no_torch() -> None:
    modules = "peftlab.audit.verify, peftlab.records.find, peftlab.audit.compare, peftlab.report.build, peftlab.config"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
