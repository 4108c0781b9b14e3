"""A class that is moved keeps its name: keys, records and files are those of before, and old names load it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from peftlab import class_names
from peftlab.class_names import place_of, stable_name
from peftlab.composition import checked
from peftlab.config import from_plain
from peftlab.errors import ConfigError
from peftlab.interop.wandb_replay import tags
from peftlab.records.identity import run_key, semantic
from peftlab.records.identity_recorded import earlier_rules
from peftlab.report.build import Request, build
from peftlab.report.records_config import decides, flat, identity_of
from peftlab.schema import import_class
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.estimate import seconds
from peftlab.sweeps.jobs import Job
from peftlab.training.wandb_runs import method_of
from tests.conftest import Peftlab
from tests.report.made_up import record, write
from tests.runs.small_runs import CLASSIFIER, record_of

DATA = '''
from dataclasses import dataclass

from peftlab.data.text_files import TextFiles


@dataclass(kw_only=True)
class Mine(TextFiles):
    """Texts of my own."""

    mark: int = 0
'''
Move = Callable[[str], None]


@pytest.fixture
def move(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Move]:
    """Moves the class ``texts_once.Mine``, which is there at first, to another module."""
    monkeypatch.syspath_prepend(str(scratch))
    folder = scratch / "my_configs" / "data"
    folder.mkdir(parents=True)
    names = {"texts_once"}
    (scratch / "texts_once.py").write_text(DATA)

    def called(name: str) -> None:
        monkeypatch.setenv("PEFTLAB_ALLOW", ",".join(names))
        values = yaml.safe_load((Path(__file__).parents[2] / "conf/data/text_files.yaml").read_text())
        (folder / "mine.yaml").write_text(yaml.safe_dump(values | {"_target_": name, "mark": 0}))

    def to(module: str) -> None:
        names.add(module)
        for name in names:
            (scratch / f"{name}.py").unlink(missing_ok=True)
            sys.modules.pop(name, None)
        (scratch / f"{module}.py").write_text(DATA)
        importlib.invalidate_caches()
        moved = dict.fromkeys(sorted(names - {module}, key=lambda name: name != "texts_once"), module)
        table = {f"{old}.Mine": f"{new}.Mine" for old, new in moved.items()}
        monkeypatch.setattr(class_names, "MOVED", table)
        called(f"{module}.Mine")

    called("texts_once.Mine")
    yield to
    for name in names:
        sys.modules.pop(name, None)


def overrides(reviews: Path, target: str = "") -> list[str]:
    named = [f"data._target_={target}", "+data.mark=0"] if target else []
    return [*CLASSIFIER, f"data.path={reviews}", *named]


def test_nothing_has_moved_that_is_not_there() -> None:
    for name, place in class_names.MOVED.items():
        assert import_class(place, "MOVED").__module__ == place.rpartition(".")[0]
        assert stable_name(place) == stable_name(name)
        assert place not in class_names.MOVED, "an entry names the newest place"


def test_of_several_old_names_the_first_is_the_stable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stable_name(Path) == f"{Path.__module__}.Path"
    monkeypatch.setattr(class_names, "MOVED", {"a.One": "c.One", "b.One": "c.One", "a.Two": "b.Two"})
    for name in ("a.One", "b.One", "c.One"):
        assert (stable_name(name), place_of(name)) == ("a.One", "c.One")
    assert (stable_name("b.Two"), place_of("b.Two"), stable_name("a.Three")) == ("a.Two", "b.Two", "a.Three")


def test_key_and_config_are_those_of_before(move: Move, reviews: Path) -> None:
    before = checked(overrides(reviews, "texts_once.Mine"))
    key, plain = run_key(before), before.plain()
    for module in ("texts_now", "texts_later"):
        move(module)
        for name in ("texts_once.Mine", f"{module}.Mine", "texts_now.Mine"):
            config = checked(overrides(reviews, name))
            assert type(config.data).__module__ == module
            assert config.plain() == plain
            assert config.plain()["data"]["_target_"] == "texts_once.Mine"
            assert semantic(config)["data"]["class"] == "texts_once.Mine"
            assert run_key(config) == key
    assert run_key(from_plain(plain)) == key


def test_a_class_is_loaded_by_its_old_name(move: Move) -> None:
    move("texts_now")
    assert import_class("texts_once.Mine", "k").__module__ == "texts_now"
    with pytest.raises(ConfigError, match="texts_gone"):
        import_class("texts_gone.Mine", "k")


def test_a_finished_run_stays_finished_and_as_recorded(peftlab: Peftlab, move: Move, reviews: Path) -> None:
    arguments = ["--config-dir", "my_configs", *CLASSIFIER, "data=mine", f"data.path={reviews}", "name=t"]
    assert peftlab("train", *arguments).status == 0
    (run,) = Path("outputs/t").iterdir()
    move("texts_now")
    done = peftlab("train", *arguments)
    assert f"{run} is finished already" in done.out, done.err
    result = peftlab("verify", run, "--data", "--rerun-eval")
    assert result.status == 0, result.out
    assert peftlab("evaluate", run, "data.limit_test=8").status == 0
    again = peftlab("train", *arguments, "seed=1")
    assert again.status == 0, again.err
    (other,) = set(Path("outputs/t").iterdir()) - {run}
    assert record_of(other)["config"]["data"]["_target_"] == "texts_once.Mine"
    assert yaml.safe_load((other / "config.yaml").read_text())["data"]["_target_"] == "texts_once.Mine"
    peftlab("report", "outputs/t", "--format", "json")
    (group,) = json.loads(Path("outputs/t/report/report.json").read_text())["groups"]
    assert group["runs"] != [], "one row: both are of one config"
    assert group["n"] == 2


def test_tasks_of_a_mixture_too(move: Move, reviews: Path) -> None:
    def config(target: str) -> list[str]:
        fields = f"path: {reviews}, task: mine, _target_: {target}"
        tasks = f"data.tasks=[{{{fields}}},{{name: text_files, path: {reviews}, task: b}}]"
        return [*(o for o in CLASSIFIER if o != "data=text_files"), "data=multitask", tasks]

    before = checked(config("texts_once.Mine"))
    key, plain = run_key(before), before.plain()
    move("texts_now")
    for name in ("texts_once.Mine", "texts_now.Mine"):
        after = checked(config(name))
        assert after.plain() == plain
        assert run_key(after) == key


def test_records_are_compared_by_stable_names(move: Move, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = "peftlab.peft.lora.LoRA"
    texts = "peftlab.data.text_files.TextFiles"
    monkeypatch.setattr(class_names, "MOVED", {"peftlab.peft.once.LoRA": lora, "once.data.Texts": texts})
    plain = checked(overrides(reviews)).plain()
    assert plain["peft"]["_target_"] == "peftlab.peft.once.LoRA"
    other = {**plain, "peft": {**plain["peft"], "_target_": lora}}
    rules = [earlier_rules(one) for one in (plain, other)]
    assert identity_of(plain, rules[0]) == identity_of(other, rules[1])
    assert method_of(plain) == method_of(other) == "once"
    assert flat(plain)["peft"] == flat(other)["peft"] == "once"
    assert not decides("data.path", rules[0]), "its fields are known"
    assert decides("data.mark", earlier_rules({**plain, "data": {"_target_": "elsewhere.Texts"}}))
    assert "Texts" in tags({"config": {**plain, "data": {**plain["data"], "_target_": texts}}})
    timing = {"train_seconds": 4.0, "total_seconds": 5.0}
    before = {"config": other, "timing": timing, "data": {"rows": {"train": 96}}, "history": [{}, {}, {}]}
    moved = {**other, "data": {**plain["data"], "_target_": texts}}
    elsewhere = {**other, "peft": {"_target_": "a.B"}}
    slow = {"train_seconds": 4.0, "total_seconds": 99.0}
    config = from_plain(plain)
    expected = seconds(config, [before])
    assert expected is not None
    assert seconds(config, [before | {"config": moved}]) == expected
    assert seconds(config, [before, before | {"config": elsewhere, "timing": slow}]) == expected, "of its method alone"


def test_a_report_knows_a_class_by_its_stable_name(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_names, "MOVED", {"peftlab.peft.once.LoRA": "peftlab.peft.lora.LoRA"})
    one, two = (record(0.8, key=f"a{seed}", seed=seed) for seed in range(2))
    one["config"]["peft"]["_target_"] = "peftlab.peft.once.LoRA"
    (group,) = build(Request((str(write(scratch / "t", [one, two])),))).rows
    assert {run.targets["peft"] for run in group.runs} == {"peftlab.peft.once.LoRA"}
    assert len(group.runs) == 2


def test_what_is_remembered_of_jobs_does_not_outlive_a_move(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a", "a", tuple(overrides(reviews)))

    def sources() -> str:
        with ConfigCache() as cache:
            cache.config(job)
            return cache._state._sources

    before = sources()
    assert sources() == before
    monkeypatch.setattr(class_names, "MOVED", {"peftlab.peft.once.LoRA": "peftlab.peft.lora.LoRA"})
    assert sources() != before
