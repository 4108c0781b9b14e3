"""Data that cannot be used is known before anything runs: read once, in files that are here, and never fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftlab.commands import check, sweep, train
from peftlab.commands.estimate import main as estimate
from peftlab.composition import checked
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.in_words import found_in_words
from peftlab.data.text_files import TextFiles
from peftlab.errors import ConfigError, DataError, PeftlabError
from peftlab.records.folder import RunFolder
from peftlab.sweeps import readable, soundness
from peftlab.sweeps.readable import require_readable
from tests.conftest import TINY, write_reviews

MESSY = """\
text,label
a fine film,good
,bad
dull,bad,really
superb,good
awful,bad
"""


@pytest.fixture
def messy(scratch: Path) -> Path:
    (scratch / "messy.csv").write_text(MESSY, encoding="utf-8")
    return scratch / "messy.csv"


def config_of(*overrides: str) -> RunConfig:
    return checked([*TINY, *overrides])


def refused(command: object, *arguments: str) -> str:
    with pytest.raises(DataError) as error:
        command(arguments)  # type: ignore[operator]
    return str(error.value)


def test_check_fails_with_the_very_error_of_training(messy: Path) -> None:
    words = [*TINY, f"data.path={messy}"]
    said = refused(check.main, *words)
    assert "messy.csv, row 2 (line 3): the text (column 'text') is empty" in said
    assert "row 3 (line 4): 3 fields, but the header has 2" in said
    assert said == refused(lambda typed: estimate([*typed, "--shapes"]), *words)
    with pytest.raises(DataError) as error:
        train.main(words)
    assert str(error.value) == said
    assert not Path("outputs").exists()


def test_check_says_what_it_found(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_reviews(scratch, rows=100)  # 20 held out as test, then 8 of 80 for validation
    assert check.main(["--config", *TINY, f"data.path={path}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert lines[:3] == [
        "# data: train file (reviews.jsonl, 100 rows): 72 rows (bad 36, good 36)",
        "#       validation: 8 rows",
        "#       test, hold-out of reviews.jsonl: 20 rows",
    ]
    assert lines[3].startswith("# key ")


def test_labels_are_counted_where_there_are_more_than_two(scratch: Path) -> None:
    file = scratch / "kinds.csv"
    file.write_text("text,label\n" + "".join(f"text {row},{'abc'[row % 3]}\n" for row in range(60)), encoding="utf-8")
    data = checked(["data=text_files", f"data.path={file}"]).data
    train_rows, *_ = found_in_words(data, data.load_here())
    assert train_rows.endswith("(3 labels: a 14, b 14, c 15)"), train_rows


def test_a_language_model_learns_texts_not_labels(scratch: Path) -> None:
    file = scratch / "pairs.csv"
    file.write_text("text,label\n" + "".join(f"text {row},{row % 2}\n" for row in range(60)), encoding="utf-8")
    words = [
        "data=instructions",
        f"data.path={file}",
        "data.template={prompt: '{text}', response: '{label}', words: {label: {0: no, 1: yes}}}",
    ]
    data = checked([*words, "backbone=llama"]).data
    said = list(found_in_words(data, data.load_here()))
    assert said[0].endswith("(texts of 2 labels)")
    assert not [line for line in said[1:] if "label" in line]


def test_what_a_hub_has_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["backbone=tiny", "data=imdb"]) == 0
    assert re.search("^data +not read", capsys.readouterr().out, re.MULTILINE)


def test_a_task_in_files_is_read_beside_one_of_the_hub(messy: Path) -> None:
    said = refused(
        check.main,
        "backbone=tiny", "data=multitask", f"data.tasks=[{{task: mine, name: text_files, path: {messy}}}, imdb]",
    )  # fmt: skip
    assert said.startswith("data.tasks[0] (mine): ")
    assert "row 2 (line 3)" in said


def test_the_probe_is_read_too(scratch: Path, messy: Path) -> None:
    config = config_of(f"data.path={write_reviews(scratch, rows=20)}")
    assert readable.read_here(config) is not None
    config.probe = {"file": str(messy)}
    with pytest.raises(DataError, match=r"probe.file: .*row 2 \(line 3\)"):
        readable.read_here(config)


@dataclass(kw_only=True)
class Counted(TextFiles):
    """Says how often it is loaded."""

    def is_here(self) -> bool:
        return True

    def load(self) -> Splits:
        LOADED.append(str(self.path))
        return super().load()


@dataclass(kw_only=True)
class Elsewhere(Counted):
    """Might fetch: nobody has said that it does not."""

    def is_here(self) -> bool:
        return super(Counted, self).is_here()


LOADED: list[str] = []


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    LOADED.clear()
    monkeypatch.setattr(readable, "_SOUND", {})
    return LOADED


def counting(path: Path, *overrides: str, kind: type[TextFiles] = Counted) -> RunConfig:
    config = config_of(f"data.path={path}", *overrides)
    fields = {name: value for name, value in config.plain()["data"].items() if name != "_target_"}
    config.data = kind(**fields)
    return config


def test_data_that_is_loaded_alike_is_read_once(scratch: Path, loaded: list[str]) -> None:
    path = write_reviews(scratch, rows=60)
    configs = [
        counting(path, *more) for more in ((), ("data.max_length=32",), ("peft.rank=2",), ("data.batch_size=4",))
    ]
    lines = require_readable([(str(number), config) for number, config in enumerate(configs)], "job")
    assert loaded == [str(path)]
    assert lines == [
        "data: 43 training, 5 validation and 12 test rows (train file (reviews.jsonl, 60 rows); hold-out of "
        "reviews.jsonl)"
    ]
    require_readable([("limited", counting(path, "data.limit_train=10"))], "job")
    assert len(loaded) == 2, "which rows there are is another thing"
    path.write_text(path.read_text() + '{"text": "", "label": "bad"}\n')
    with pytest.raises(DataError, match="row 61"):
        require_readable([("0", counting(path))], "job")


def test_what_is_said_of_a_file_is_said_once(
    scratch: Path, loaded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (scratch / "a.csv").write_text("text;label\n" + "".join(f"{n};{'abBA'[n % 4]}\n" for n in range(80)))
    named = [(f"{limit}", counting(scratch / "a.csv", f"data.limit_train={limit}")) for limit in (20, 30)]
    require_readable(named, "job")
    assert len(loaded) == 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said))
    assert any("separated by the semicolon" in line for line in said)
    assert any("'A' (20 rows) and 'a' (20 rows); 'B' (20 rows) and 'b' (20 rows)" in line for line in said)
    TextFiles(path=str(scratch / "a.csv")).load()
    assert len(caplog.records) > len(said), "afterwards everything is said again"


def test_each_fault_once_with_the_jobs_that_have_it(scratch: Path, messy: Path, loaded: list[str]) -> None:
    path = write_reviews(scratch, rows=60)
    named = [("good", counting(path)), *((f"bad {rank}", counting(messy, f"peft.rank={rank}")) for rank in (1, 2))]
    with pytest.raises(DataError) as error:
        require_readable(named, "job")
    assert loaded == [str(path), str(messy)]
    said = str(error.value)
    assert said.startswith("2 of 3 jobs cannot run, so none is started:\n  jobs bad 1, bad 2: ")
    assert said.count("is empty") == 1


def test_a_class_that_might_fetch_is_not_loaded(messy: Path, loaded: list[str]) -> None:
    assert require_readable([("0", counting(messy, kind=Elsewhere))], "job")[0].startswith("data: not read")
    assert not loaded


def test_jobs_that_have_ended_are_not_read_again(scratch: Path, loaded: list[str]) -> None:
    path = write_reviews(scratch, rows=60)
    config = config_of(f"data.path={path}")
    RunFolder.of(config).checkpoints.mkdir(parents=True)
    assert require_readable([("0", config)], "job") == []


SWEEP = """\
name: least
seeds: [0]
overrides: [{overrides}]
cells: [{{id: lora, overrides: [peft=lora]}}, {{id: head, overrides: [peft=head]}}]
"""


@pytest.mark.parametrize("command", [check.main, sweep.main, lambda typed: sweep.main([*typed, "--dry-run"])])
def test_a_declared_sweep(command: object, scratch: Path, messy: Path) -> None:
    file = scratch / "least.yaml"
    file.write_text(SWEEP.format(overrides=", ".join([*TINY, f"data.path={messy}"])))
    typed = [str(file), "--no-counts"] if command is check.main else [str(file)]
    assert refused(command, *typed).startswith("2 of 2 cells cannot run, so none is started:\n  cells 'lora', 'head'")
    assert not Path("outputs").exists()


@pytest.mark.parametrize("words", [["-m", "peft.rank=1,2"], []])
def test_what_is_submitted(words: list[str], messy: Path) -> None:
    from peftlab.cluster.work import train_work

    with pytest.raises(PeftlabError, match="row 2"):
        train_work([*TINY, f"data.path={messy}", *words])


def test_the_jobs_of_check(messy: Path) -> None:
    typed = ("-m", "--no-counts", *TINY, f"data.path={messy}", "peft.rank=1,2")
    assert refused(check.main, *typed).count("is empty") == 1


def test_faults_of_data_and_of_shapes_are_said_together(messy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the jobs of ``train -m``, of a sweep, and of workers."""
    asked: list[int] = []

    def answered(_: object, configs: list[object]) -> list[object]:
        asked.append(len(configs))
        return [None, ("the rank is too high", ConfigError)]

    monkeypatch.setattr(soundness.processes, "asked", answered)
    named = [(f"{rank}", config_of(f"data.path={messy}", f"peft.rank={rank}")) for rank in (2, 99)]
    with pytest.raises(PeftlabError) as error:
        soundness.Soundness().require(named, "job")
    told = str(error.value).splitlines()
    assert told[0] == "2 of 2 jobs cannot run, so none is started:"
    assert told[1].startswith("  jobs 2, 99: ")
    assert told[-1] == "  job 99: the rank is too high"
    assert asked == [2]
