"""Keys: what they were stays, what was changed on purpose is in them, and nobody takes old numbers for new ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peftlab.composition import checked
from peftlab.config import from_plain
from peftlab.records import identity_tags
from peftlab.records.identity import run_key, semantic
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import Job
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, edit, finished, found, record_of, set_at, train
from tests.runs.tagged import SENTENCE, change_numbers

ROWS = ("data=text_files", "data.path=rows.jsonl")
TWO_TASKS = (
    "data=multitask",
    "data.tasks=[{name: text_files, task: a, path: rows.jsonl},"
    "{_target_: peftlab.data.text_files.TextFiles, task: b, path: rows.jsonl}]",
)
TWO_METHODS = ("peft=compose", "peft.methods=[bitfit,{_target_: peftlab.peft.lora.LoRA, rank: 2}]")

# Keys as released: a run that was finished then is finished now.
KEYS: list[tuple[tuple[str, ...], str]] = [
    (("backbone=text_classifier", *ROWS, "peft.targets=[query,value]"), "52fd121e6041"),
    (("backbone=tiny", *ROWS), "5512636eec88"),
    (("backbone=tiny", *ROWS, "peft=head"), "50cf1ad1b101"),
    (("backbone=text_classifier", *ROWS, "peft=dora", "optim=sgd", "peft.targets=[query,value]"), "884edf923eab"),
    (("backbone=tiny", *ROWS, "peft=compose"), "d68144447f34"),
    (("backbone=tiny", *ROWS, "peft=vera", "schedule=constant"), "c41df0ebbb4b"),
    (("backbone=tiny", *ROWS, *TWO_METHODS), "b93dd67638db"),
    (("backbone=tiny", *TWO_TASKS), "b39558e4f9d9"),
]


@pytest.fixture
def rows(scratch: Path) -> Path:
    path = scratch / "rows.jsonl"
    lines = [f'{{"text": "row {number}", "label": "{("bad", "good")[number % 2]}"}}\n' for number in range(8)]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


@pytest.mark.parametrize(
    ("short", "full"),
    [("32", "32-true"), ("'32'", "32-true"), ("64", "64-true"), ("bf16", "bf16-mixed"), ("16", "16-mixed")],
)
def test_two_spellings_of_a_precision_are_one_run(rows: Path, short: str, full: str) -> None:
    """Lightning computes the same for both."""
    spelled = [checked(["backbone=tiny", *ROWS, f"trainer.precision={given}"]) for given in (short, full)]
    assert [config.trainer.precision for config in spelled] == [full, full]
    assert run_key(spelled[0]) == run_key(spelled[1])
    again = from_plain(
        spelled[1].plain() | {"trainer": {**spelled[1].plain()["trainer"], "precision": short.strip("'")}}
    )
    assert run_key(again) == run_key(spelled[1]), "of a record that an earlier version wrote, too"
    assert (run_key(spelled[1]) == dict(KEYS[1:2])["backbone=tiny", *ROWS]) == (full == "32-true"), (
        "the default's holds"
    )


@pytest.mark.parametrize(("overrides", "key"), KEYS, ids=[key for _, key in KEYS])
def test_keys_are_what_they_were(rows: Path, overrides: tuple[str, ...], key: str) -> None:
    config = checked([*overrides, "logger=none"])
    assert run_key(config, []) == key
    assert ("tags" in semantic(config)) == ("peft=dora" in overrides)


def test_a_change_of_numbers_gives_new_keys_to_those_whom_it_concerns(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        return [run_key(checked(["backbone=tiny", *ROWS, "logger=none", peft])) for peft in ("peft=lora", "peft=vera")]

    (lora, vera) = keys()
    change_numbers(monkeypatch, "lora-dropout-1")
    (lora_1, vera_1) = keys()
    change_numbers(monkeypatch, "lora-dropout-1", "lora-dropout-2")
    (lora_2, vera_2) = keys()
    assert vera == vera_1 == vera_2
    assert len({lora, lora_1, lora_2}) == 3
    config = checked(["backbone=tiny", *ROWS, "logger=none", "peft=lora"])
    assert semantic(config)["tags"] == ["lora-dropout-1", "lora-dropout-2"]
    assert [run_key(config, tags) for tags in ([], ["lora-dropout-1"])] == [lora, lora_1]


def test_released_changes_have_names_of_their_own() -> None:
    names = [tag.name for tag in identity_tags.TAGS]
    assert len(set(names)) == len(names)
    for tag in identity_tags.TAGS:
        assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*-\d+", tag.name)
        assert tag.since
        assert not tag.since.endswith(".")


def test_a_run_from_before_is_not_finished_and_the_record_says_what_held(
    peftlab: Peftlab, run: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record_of(run)["identity_tags"] == []
    assert (
        peftlab("train", *CLASSIFIER[:6], "peft=head", "trainer.max_epochs=1", f"data.path={reviews}", "name=h").status
        == 0
    )
    (other,) = Path("outputs/h").iterdir()
    change_numbers(monkeypatch, "lora-dropout-1")
    again = train(peftlab, reviews)
    assert again.name != run.name
    assert record_of(again)["identity_tags"] == ["lora-dropout-1"]
    assert json.loads((again / "adapter.json").read_text())["run"] == again.name
    assert {path.name for path in Path("outputs/t").iterdir()} == {run.name, again.name}
    done = peftlab("train", *CLASSIFIER, f"data.path={reviews}", "name=t")
    assert f"{again} is finished already" in done.out
    done = peftlab("train", *CLASSIFIER[:6], "peft=head", "trainer.max_epochs=1", f"data.path={reviews}", "name=h")
    assert f"{other} is finished already" in done.out
    shown = peftlab("check", "--config", *CLASSIFIER, f"data.path={reviews}", "name=t").out
    assert (
        f"# key {again.name}, folder {again}: finished\n# in the key, as earlier versions computed otherwise: " in shown
    )
    assert shown.endswith(" (lora-dropout-1)\n")


def test_verify_names_what_is_computed_otherwise_since_then(
    peftlab: Peftlab, run: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_numbers(monkeypatch, "lora-dropout-1")
    again = train(peftlab, reviews)
    change_numbers(monkeypatch, "lora-dropout-1", "lora-scale-1")
    result = peftlab("verify", run, again)
    assert result.status == 0, result.out
    today = run_key(from_plain(record_of(run)["config"]))
    assert today not in (run.name, again.name)
    both = [
        f"    note: identity_tags: computed before {name}; since then: {SENTENCE}"
        for name in ("lora-dropout-1", "lora-scale-1")
    ]
    key = f"    note: key: run today, its config has the key {today}"
    assert result.out.splitlines() == [
        f"ok         {run}", *both, key, f"ok         {again}", both[1], key, "2 runs: 2 as recorded",
    ]  # fmt: skip
    (told,) = json.loads(peftlab("verify", again, "--json").out)["runs"]
    assert [one["about"] for one in told["notes"]] == ["identity_tags", "key"]
    assert told["differences"] == []


def test_verify_says_which_changes_it_does_not_know(
    peftlab: Peftlab, run: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of a later version, and one of a change that does not concern it."""
    with monkeypatch.context() as later:
        change_numbers(later, "lora-dropout-1")
        again = train(peftlab, reviews)
    result = peftlab("verify", again)
    assert result.status == 0, result.out
    assert "computed with lora-dropout-1, which this peftlab does not know: a later one ran it" in result.out
    assert f"its config has the key {run.name}" in result.out
    monkeypatch.setattr(identity_tags, "TAGS", (identity_tags.Tag("lora-dropout-1", lambda config: False, SENTENCE),))
    assert (
        "recorded with lora-dropout-1 (the dropout is drawn once a batch), which does not concern"
        in peftlab("verify", again).out
    )


def test_tags_that_were_edited_are_found(peftlab: Peftlab, run: Path) -> None:
    edit(run, lambda record: record.pop("identity_tags"))
    assert found(peftlab, run) == {}, "records of earlier versions have none"
    edit(run, set_at("identity_tags", ["lora-dropout-1"]))
    assert "key" in found(peftlab, run)
    edit(run, set_at("identity_tags", "lora-dropout-1"))
    assert "must be a list of names" in found(peftlab, run)["record.json"]
    result = peftlab("reproduce", run, "--print")
    assert result.status == 2
    assert "must be a list of names" in result.err
    result = peftlab("report", run)
    assert result.status == 2
    assert "must be a list of names" in result.err


def test_reproduce_finds_the_command_and_says_why_the_key_is_another(
    peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = peftlab("reproduce", run, "--print").out
    assert "identity" not in before
    assert "computed" not in before
    change_numbers(monkeypatch, "lora-dropout-1")
    result = peftlab("reproduce", run, "--print")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[-1] == before.splitlines()[-1], "the record's own command"
    assert f"The run was computed before lora-dropout-1; since then: {SENTENCE}." in lines
    today = run_key(from_plain(record_of(run)["config"]))
    assert any(line.startswith(f"Hence the new run has the key {today}, not {run.name}: same config") for line in lines)
    assert "the content of a file" not in result.out
    assert "its resolved config does" not in result.out
    monkeypatch.setattr(identity_tags, "TAGS", ())
    edit(run, set_at("identity_tags", ["later-7"]))
    assert (
        "The run was computed with later-7, which this peftlab does not know"
        in peftlab("reproduce", run, "--print").out
    )


def test_the_report_of_both_shows_two_rows_and_says_so(
    peftlab: Peftlab, run: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other seeds of one config: they would be one mean."""
    change_numbers(monkeypatch, "lora-dropout-1")
    train(peftlab, reviews, "seed=1")
    result = peftlab("report", "outputs/t", "--format", "md")
    assert result.status == 0, result.err
    text = Path("outputs/t/report/report.md").read_text()
    assert "before lora-dropout-1" in text
    (table,) = re.findall(r"^\| computed .*\n\| ---.*\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert len(table.splitlines()) == 2


def test_a_condition_may_ask_for_a_field_that_the_record_does_not_have(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropped(config: object) -> bool:
        return bool(config["peft"]["dropout"] == 0)  # type: ignore[index]

    monkeypatch.setattr(identity_tags, "TAGS", (identity_tags.Tag("dropout-1", dropped, SENTENCE),))
    record = record_of(run)
    value = record["config"]["peft"].pop("dropout")
    assert identity_tags.standing(record).lacking == (("dropout-1",) if value == 0 else ())
    record["config"]["peft"]["_target_"] = "gone.Gone"
    assert identity_tags.standing(record) == identity_tags.AS_TODAY


def test_what_is_remembered_of_jobs_does_not_outlive_a_change(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a", "a", ("backbone=tiny", *ROWS, "logger=none"))

    def remembered() -> object:
        with ConfigCache() as cache:
            first = run_key(cache.config(job))
        with ConfigCache() as cache:
            return first == run_key(cache.config(job)), cache._state._sources

    before = remembered()
    assert remembered() == before
    change_numbers(monkeypatch, "lora-dropout-1")
    assert remembered() != before
