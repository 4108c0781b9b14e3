"""What jobs compose to is remembered, and never when anything that decided it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from peftlab.composition import checked, composed
from peftlab.config import check
from peftlab.errors import PeftlabError
from peftlab.files import cache_folder
from peftlab.records.folder import RunFolder
from peftlab.sweeps import cache as cache_module
from peftlab.sweeps import template
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import Job
from peftlab.sweeps.template import divided

BASE = ("backbone=text_classifier", "data=text_files", "data.path=reviews.jsonl", "peft.targets=[hidden]")


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every composition by Hydra."""
    calls: list[object] = []

    def counted(overrides: Any, **options: Any) -> Any:
        calls.append(overrides)
        return composed(overrides, **options)

    for module in (cache_module, template):
        monkeypatch.setattr(module, "composed", counted)
    return calls


def said_of(call: Callable[[], object]) -> object:
    """What ``call`` returns, or the words of its error."""
    try:
        return call()
    except PeftlabError as error:
        return str(error)


def plain(job: Job) -> dict[str, Any]:
    with ConfigCache() as cache:
        return cache.config(job).plain()


def extra(text: str = "peft: {rank: 5}") -> str:
    """A folder of configs with ``experiment=mine``."""
    folder = Path("configs/experiment")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    return str(Path("configs").resolve())


def test_it_is_what_hydra_composes(reviews: Path, compositions: list[object]) -> None:
    """Whatever the overrides, from the template and from memory."""
    earlier = ["peft.rank=7", "+peft.rank_pattern.a=2", "peft.alpha=3"]
    sets = [
        (), ("peft.rank=3", "seed=2"), ("peft.rank=3", "peft.rank=4"),
        ("seed=1", "name=x-${seed}", "optim=sgd", "optim.lr=1"), ("peft=head",), ("peft=full", "~peft", "+peft=lora"),
        ("peft.rank=2", "experiment=first_run", "data=text_files"),
        (*earlier, "peft.rank=5"), ("+peft.rank_pattern={hidden: 2}", "~peft.rank_pattern.hidden", "peft.rank=1"),
        ("peft.targets=[hidden,output]", "optim.lr=${peft.dropout}1"), ("debug=fast", "trainer=default"),
    ]  # fmt: skip
    for _ in range(2):
        with ConfigCache() as cache:
            for overrides in sets:
                job = Job("a", "a", (*BASE, *overrides))
                expected = said_of(partial(checked, job.overrides))
                assert said_of(partial(cache.config, job)) == expected, overrides


def test_jobs_that_differ_in_values_are_composed_once(reviews: Path, compositions: list[object]) -> None:
    jobs = [Job(str(i), "", (*BASE, f"peft.rank={i}", "seed=0")) for i in range(1, 20)]
    with ConfigCache() as cache:
        configs = [cache.config(job) for job in jobs]
    assert len(compositions) == 1
    assert [config.peft.rank for config in configs] == list(range(1, 20))  # type: ignore[attr-defined]
    with ConfigCache() as cache:
        assert [cache.config(job) for job in jobs] == configs
    assert len(compositions) == 1, "the second time nothing is composed"
    assert len({RunFolder.of(config).key for config in configs}) == 19


def test_values_move_behind_files_only() -> None:
    assert divided(["a.b=1", "peft=lora", "seed=2"]) == (("peft=lora",), ("a.b=1", "seed=2"))
    assert divided(["a.b=1", "+a.c=1", "a.c=2"]) == (("a.b=1", "+a.c=1"), ("a.c=2",))
    assert divided(["a.b=1", "~a.b"]) == (("a.b=1", "~a.b"), ())
    assert divided(["hydra.searchpath=[x]", "a.b=1"]) == (("hydra.searchpath=[x]",), ("a.b=1",))


def in_config_dir() -> Callable[[], object]:
    return lambda: extra("peft: {rank: 6}")


def same_size_and_time() -> Callable[[], object]:
    path = Path("configs/experiment/mine.yaml")
    stat = path.stat()

    def change() -> None:
        path.write_text(path.read_text().replace("5", "6"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return change


def environment() -> Callable[[], object]:
    return lambda: os.environ.__setitem__("RANK_OF_MINE", "6")


def no_environment() -> Callable[[], object]:
    return lambda: os.environ.pop("RANK_OF_MINE")


CHANGES = {
    "a config file": ("peft: {rank: 5}", (), in_config_dir),
    "a config file, same size and time": ("peft: {rank: 5}", (), same_size_and_time),
    "a variable in a file": ("peft: {rank: '${oc.decode:${oc.env:RANK_OF_MINE}}'}", (), environment),
    "a variable with a default": ("peft: {rank: '${oc.decode:${oc.env:RANK_OF_MINE,7}}'}", (), no_environment),
    "a variable in an override": ("peft: {alpha: 5}", ("peft.rank=${oc.env:RANK_OF_MINE}",), environment),
}


@pytest.mark.parametrize(("text", "overrides", "prepare"), CHANGES.values(), ids=CHANGES)
def test_what_decides_a_config_is_looked_at(
    reviews: Path,
    compositions: list[object],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    overrides: tuple[str, ...],
    prepare: Callable[[], Callable[[], object]],
) -> None:
    monkeypatch.setenv("RANK_OF_MINE", "5")
    job = Job("a", "a", (*BASE, "experiment=mine", *overrides), extra(text))
    before = plain(job)
    number = len(compositions)
    assert plain(job) == before
    plain(job)
    remembered = len(compositions) == number
    prepare()()
    after = plain(job)
    expected = check(composed(job.overrides, config_dir=job.config_dir)).plain()
    assert after == expected
    assert after["peft"] != before["peft"]
    assert remembered or "oc.decode" in text + "".join(overrides), "the test would prove nothing"


def test_plain_variables_are_remembered_and_looked_at(
    reviews: Path, compositions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE_OF_MINE", "one")
    job = Job("a", "a", (*BASE, "output_dir=${oc.env:PLACE_OF_MINE}"))
    assert plain(job)["output_dir"] == plain(job)["output_dir"] == "one"
    assert len(compositions) == 1
    monkeypatch.setenv("PLACE_OF_MINE", "two")
    assert plain(job)["output_dir"] == "two"
    monkeypatch.setenv("PLACE_OF_MINE", "one")
    assert plain(job)["output_dir"] == "one"


def test_the_working_directory_counts(reviews: Path, compositions: list[object]) -> None:
    job = Job("a", "a", (*BASE, "output_dir=${hydra:runtime.cwd}"))
    plain(job)
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    Path("reviews.jsonl").write_text(reviews.read_text())
    assert plain(job)["output_dir"].endswith("elsewhere")


def test_the_key_is_never_remembered(reviews: Path) -> None:
    """Data, weights and the run to start from are looked at each time."""
    job = Job("a", "a", BASE)
    with ConfigCache() as cache:
        before = RunFolder.of(cache.config(job)).key
    text = reviews.read_text()
    reviews.write_text(text.replace("fine", "fini"))
    with ConfigCache() as cache:
        assert RunFolder.of(cache.config(job)).key != before
    reviews.unlink()
    with ConfigCache() as cache, pytest.raises(PeftlabError, match="no such file"):
        RunFolder.of(cache.config(job))


def test_peftlabs_sources_and_versions_count(
    reviews: Path, compositions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("a", "a", BASE)
    plain(job)
    plain(job)
    assert len(compositions) == 1
    monkeypatch.setattr(cache_module, "__version__", "999")
    plain(job)
    assert len(compositions) == 2
    copy = Path("copy/peftlab")
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    (copy / "schema.py").write_text("a = 1\n")
    monkeypatch.setattr(cache_module, "SOURCES", copy)
    plain(job)
    plain(job)
    assert len(compositions) == 3
    (copy / "schema.py").write_text("a = 22\n")
    plain(job)
    assert len(compositions) == 4


def test_what_changes_by_itself_is_not_remembered(reviews: Path, compositions: list[object]) -> None:
    job = Job("a", "a", (*BASE, "output_dir=${now:%Y}"))
    plain(job)
    plain(job)
    assert len(compositions) == 2
    mistaken = Job("a", "a", (*BASE, "peft.rank=0"))
    for _ in range(2):
        with pytest.raises(PeftlabError, match=r"on the command line: peft\.rank=0"):
            plain(mistaken)


@pytest.mark.parametrize("damage", ["", "x", "cut", "flip", "list"])
def test_a_damaged_memory_is_ignored(reviews: Path, compositions: list[object], damage: str) -> None:
    job = Job("a", "a", (*BASE, "peft.rank=3"))
    before = plain(job)
    (path,) = (cache_folder() / "configs").iterdir()
    text = path.read_text()
    changed = {"cut": text[: len(text) // 2], "flip": text.replace('"rank":3', '"rank":4'), "list": "[]"}
    path.write_text(changed.get(damage, damage))
    assert path.read_text() != text
    assert plain(job) == before
    assert len(compositions) == 2
    assert plain(job) == before
    assert len(compositions) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    reviews: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "file").write_text("")
    monkeypatch.setenv("PEFTLAB_CACHE", str(scratch / "file" / "cache"))
    job = Job("a", "a", BASE)
    assert plain(job) == plain(job)


def test_two_launchers_keep_each_others_memories(reviews: Path, compositions: list[object]) -> None:
    one, two = Job("a", "a", (*BASE, "seed=1")), Job("b", "b", (*BASE, "optim=sgd", "optim.lr=1"))
    first, second = ConfigCache(), ConfigCache()
    first.config(one)
    second.config(two)
    first.save()
    second.save()
    number = len(compositions)
    plain(one)
    plain(two)
    assert len(compositions) == number
