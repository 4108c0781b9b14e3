"""`peftlab explain`: every key has a meaning, and what is said of it is what holds."""

from __future__ import annotations

import re

import pytest
import yaml

from peftlab.commands import explain
from peftlab.commands.methods import explain as explain_method
from peftlab.config import GROUPS
from peftlab.errors import ConfigError
from peftlab.peft.base import methods
from peftlab.reference import ABOUT, RECIPES, Key, class_of, every_key, in_words, keys_of, option, option_names
from peftlab.report.render.terminal import PlainConsole
from peftlab.schema import validate
from peftlab.shipped import config_folder
from tests.conftest import Peftlab

EVERY = list(every_key())
OPTIONS = [(group, name) for group in ABOUT for name in option_names(group)]


def test_every_group_is_there() -> None:
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()} - {"hydra"}
    assert set(ABOUT) == folders == {*GROUPS, "trainer", *RECIPES}


def test_every_key_of_every_file_is_explained() -> None:
    """As many as the files of conf/ have, each with a meaning in a sentence."""
    known = {(group, name, key.name) for group, names, key in EVERY for name in names}
    in_files = set()
    for group, name in OPTIONS:
        if group in RECIPES:
            continue
        path = config_folder() / group / f"{name}.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        in_files |= {(group, name, key) for key in values if key not in ("_target_", "defaults")}
    assert in_files <= known
    assert {one for one in known if one[0] != "trainer"} == {one for one in in_files if one[0] != "trainer"}
    without = [f"{group}.{key.name}" for group, _, key in EVERY if not key.meaning.endswith((".", ")"))]
    assert without == []
    assert [f"{group}={name}" for group, name in OPTIONS if len(option(group, name).summary) < 20] == []


def test_what_a_number_takes_is_what_is_checked() -> None:
    """The limits in words against what the schema does at them."""
    tried = 0
    for group, names, key in EVERY:
        if (
            not names
            or (found := re.fullmatch(r"a (whole )?number, (at least|greater than) (\d+)", key.allowed)) is None
        ):
            continue
        cls, least = class_of(option(group, names[0])), int(found[3])
        inside, outside = (least, least - 1) if found[2] == "at least" else (least + 1, least)
        with pytest.raises(ConfigError, match=rf"{group}\.{key.name}={outside}"):
            validate({**_required(cls), key.name: outside}, cls, group)
        try:
            validate({**_required(cls), key.name: inside}, cls, group)
        except ConfigError as error:  # another rule of the class, not this one's limit
            assert "must be at least" not in str(error), error  # noqa: PT017
        tried += 1
    assert tried > 20


def _required(cls: type) -> dict[str, object]:
    """Something for what has no default."""
    return {key.name: 1e-3 if "number" in key.allowed else "x" for key in keys_of(cls) if not key.default}


def test_types_in_words() -> None:
    assert in_words(int | None) == "a whole number; or null"
    assert in_words(dict[str, list[float]]) == "a mapping, from text to: a list, of each: a number"
    precision = next(key for group, _, key in EVERY if (group, key.name) == ("trainer", "precision"))
    assert precision.allowed.startswith("one of 32, 64, bf16")
    assert isinstance(precision, Key)


def test_the_command(peftlab: Peftlab) -> None:
    assert "data      " in peftlab("explain").out
    for group, name in [(group, option_names(group)[0]) for group in ABOUT]:
        assert peftlab("explain", group).status == 0
        assert peftlab("explain", f"{group}={name}").out.startswith(f"{group}={name}")
    one = peftlab("explain", "trainer.precision").out
    assert "trainer=gpu: bf16-mixed" in one
    ranks = peftlab("explain", "rank").out
    assert ranks.count("peft.rank") == 5
    assert "part of a run's key" in ranks
    assert "Rank r of the update. Takes a whole number, at least 1." in peftlab("explain", "peft=lora").out
    assert "no part of a run's key" in " ".join(peftlab("explain", "trainer.keep_memory").out.split())
    assert "it is not the default" in " ".join(peftlab("explain", "trainer.compile").out.split())
    for word, says in (
        ("raank", "there is no group and no key 'raank'. Did you mean 'rank'?"),
        ("dta=x", "there is no group 'dta'. Did you mean 'data'?"),
        ("peft=lroa", "there is no peft=lroa. Did you mean 'lora'?"),
    ):
        refused = peftlab("explain", word)
        assert (refused.status, says in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["micro-batch"], {"data.batch_size", "trainer.accumulate_grad_batches"}),
        (["gradient", "accumulation"], {"trainer.accumulate_grad_batches"}),
        (["gradient checkpointing"], {"backbone.gradient_checkpointing"}),
        (["checkpoints"], {"trainer.keep_checkpoints", "trainer.checkpoint_every_n_steps"}),
        (["lora"], {"peft=lora"}),
        (["ranks"], {"peft.rank"}),
        (["early", "stopping"], {"trainer.early_stopping_patience"}),
    ],
)
def test_words_that_are_no_key_find_those_that_have_them(
    words: list[str], first: set[str], peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of them among the first three, a line each."""
    monkeypatch.setattr(explain, "console", lambda: PlainConsole(width=80))
    said = peftlab("explain", *words)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    found = [line.split()[0] for line in lines if line.startswith("  ")]
    assert first <= set(found[:3])
    assert len(found) == len(set(found)) <= 12


def test_what_is_said_of_a_key_holds_for_it() -> None:
    """Whether a value enters the key, where a general sentence is easily wrong: against the hash itself."""
    roles = {(group, key.name): key.role for group, _, key in EVERY}
    for name in ("path", "train", "validation", "test"):
        assert roles["data", name] == "content"
    assert {roles["backbone", "from_run"], roles["peft", "path"], roles["peft", "source"]} == {"content"}
    assert roles["", "continue_from"] == "content"
    assert {role for (group, _), role in roles.items() if group == "logger"} == {"bookkeeping"}
    assert roles["data", "num_workers"] == "bookkeeping"


def test_what_must_be_given_is_said_in_words(peftlab: Peftlab) -> None:
    out = " ".join(peftlab("explain", "backbone=hf").out.split())
    assert "name_or_path (must be given)" in out
    assert "Takes a hub id, such as FacebookAI/roberta-base, or a folder." in out
    assert "(In a run's key by the content of what it names, not by the path.)" in out


@pytest.mark.parametrize("width", [80, 200])
def test_no_word_is_cut_and_no_line_too_long(width: int, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    """All options, all methods, and the longest header of a key."""
    monkeypatch.setattr(explain, "console", lambda: PlainConsole(width=width))
    asked = [f"{group}={name}" for group, name in OPTIONS] + ["backbone.name_or_path", "trainer.precision"]
    screens = {word: peftlab("explain", word).out for word in asked}
    screens |= {name: explain_method(cls, width) for name, cls in methods()}
    for word, screen in screens.items():
        assert "``" not in screen
        assert not re.search(":(mod|class|meth|func|data|attr):", screen), word
        for line in screen.splitlines():
            assert len(line) <= width or len(line.split()) <= 2, f"{word}: {line}"
    assert "arXiv:2106.09685)." in screens["lora"].split()
