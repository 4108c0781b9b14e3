"""``peftlab reproduce`` of a record that somebody else has written: nothing in it is a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftlab.audit.reproduce import environment, prepare
from tests.conftest import Peftlab
from tests.runs.small_runs import edit, finished

TOUCH = "_target_: torch.utils.collect_env.run, command: 'touch PWNED'"
"""A Hydra callback that runs a shell command."""


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def words_added(run: Path, *words: str) -> list[str]:
    """The arguments that the record's command is reproduced with, when ``words`` are added to it."""
    edit(run, lambda record: record["argv"].extend(words))
    prepared = prepare(str(run), Path("to"), [])
    return prepared.arguments


@pytest.mark.parametrize(
    "word",
    [
        f"+hydra.callbacks.x={{{TOUCH}}}",
        f"++hydra.callbacks.x={{{TOUCH}}}",
        f"hydra.callbacks={{x: {{{TOUCH}}}}}",
        "hydra/launcher=joblib",
        "+hydra/callbacks=mine",
        "hydra.searchpath=[file:///tmp]",
        "hydra.job.env_set={LD_PRELOAD: /tmp/x.so}",
        "+hydra.job.env_set.LD_PRELOAD=/tmp/x.so",
        "~hydra.launcher",
        "hydra.run.dir=/tmp/elsewhere",
        "--multirun",
        "-m",
        "--info=all",
        "+other.key=1",
    ],
)
def test_what_is_no_part_of_a_run_is_not_passed_on(run: Path, word: str) -> None:
    """Its resolved config is used instead, which holds nothing of Hydra's own."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if path.name != "record.json"}
    arguments = words_added(run, word)
    assert arguments[:2] == ["--config-dir", str(Path("to/configs").absolute())]
    assert not any("hydra" in argument or word == argument for argument in arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_of_configs_that_sets_more_than_the_run(run: Path) -> None:
    """A file of a group that puts something into Hydra's own node; the run's key is the same with it."""
    folder = Path("theirs/optim")
    folder.mkdir(parents=True)
    values = yaml.safe_load((Path(__file__).parents[2] / "conf/optim/sgd.yaml").read_text())
    package = {"optim": values, "hydra": {"callbacks": {"x": {"_target_": "torch.utils.collect_env.run"}}}}
    (folder / "sgd2.yaml").write_text("# @package _global_\n" + yaml.safe_dump(package))

    def use(record: Any) -> None:
        record["argv"][2:2] = ["--config-dir", "theirs"]
        record["argv"][record["argv"].index("optim=sgd")] = "optim=sgd2"

    edit(run, use)
    assert prepare(str(run), Path("to"), []).arguments[1] == str(Path("to/configs").absolute())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "../../conf/train"),
        ("key", "/etc/passwd"),
        ("key", "0123456789AB"),
        ("key", "0123456789a\n"),
        ("key", 12),
        ("argv", "peftlab train"),
        ("argv", [1]),
    ],
)
def test_a_key_is_twelve_hex_digits_and_argv_words(peftlab: Peftlab, run: Path, name: str, value: Any) -> None:
    edit(run, lambda record: record.update({name: value}))
    result = peftlab("reproduce", run, "--print")
    assert result.status == 2
    assert f"its {name} must be" in result.err
    assert not Path("outputs/reproduced").exists()


def test_print_overwrites_no_file(peftlab: Peftlab, run: Path) -> None:
    Path("conf").mkdir()
    Path("conf/train.yaml").write_text("my: precious\n")
    record = json.loads((run / "record.json").read_text())
    edit(run, lambda record: record.update(key=f"{Path.cwd()}/conf/train"))
    assert peftlab("reproduce", run / "record.json", "--print").status == 2
    assert Path("conf/train.yaml").read_text() == "my: precious\n"
    assert record["key"] == run.name


@pytest.mark.parametrize("put", [lambda c: c.update(hydra={"callbacks": {}}), lambda c: c.update(defaults=["x"])])
def test_a_config_holds_nothing_but_the_run(peftlab: Peftlab, run: Path, put: Callable[[Any], None]) -> None:
    edit(run, lambda record: put(record["config"]))
    result = peftlab("reproduce", run, "--print")
    assert result.status == 2
    assert "unknown key" in result.err


def test_nothing_is_imported_from_the_current_folder(peftlab: Peftlab, run: Path) -> None:
    for name in ("peftlab", "torch", "json"):
        Path(f"{name}.py").write_text("from pathlib import Path\nPath('PWNED').touch()\n")
    assert environment()["PYTHONSAFEPATH"] == "1", "for the other ranks, which are started without -P"
    result = peftlab("reproduce", run)
    assert result.status == 0, result.err
    assert not Path("PWNED").exists()
