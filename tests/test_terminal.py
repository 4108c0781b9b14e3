"""Docstrings and heads of files as they stand on a terminal."""

from __future__ import annotations

import shlex

import pytest

from peftlab import terminal
from peftlab.terminal import fitted, flowed, say, say_command

TEXT = """\
A sentence that is
long enough to be flowed anew.

- an item, whose text goes on
  in a second line
- another

    y = f(x)        (eq. 1)        f = a rather long explanation

  peftlab train data=text_files 'data.note=two words' data.path=<a folder or file> peft=lora    from a file
"""


def test_prose_is_flowed_and_the_rest_is_kept() -> None:
    assert flowed(TEXT, 40).splitlines() == [
        "A sentence that is long enough to be",
        "flowed anew.",
        "",
        "- an item, whose text goes on in a",
        "  second line",
        "- another",
        "",
        "    y = f(x)    (eq. 1)",
        "        f = a rather long explanation",
        "",
        "  peftlab train data=text_files \\",
        "      'data.note=two words' \\",
        "      data.path=<a folder or file> \\",
        "      peft=lora",
        "      from a file",
    ]
    assert flowed(TEXT, 200).splitlines()[-1] == TEXT.splitlines()[-1]


def test_a_broken_command_is_the_same_command() -> None:
    command = "  peftlab train data=text_files 'data.note=two words' data.path=reviews.csv peft=lora peft.rank=4"
    assert shlex.split(flowed(command, 40).replace("\\\n", "")) == shlex.split(command)


def test_a_path_is_never_cut() -> None:
    path = "/a/rather/long/path/that-has/hyphens/and-is/longer/than/the/line"
    lines = fitted(f"there is no file {path} here, so give another one", 30).splitlines()
    assert [line.strip() for line in lines] == ["there is no file", path, "here, so give another one"]


def test_a_sentence_is_whole_in_a_file_and_broken_between_words_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "outputs/a_name/0123456789ab is finished already; force=true runs it again."
    say(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(terminal, "columns_of", lambda stream: 40)
    say(text)
    assert capsys.readouterr().out.splitlines() == [
        "outputs/a_name/0123456789ab is finished",
        "  already; force=true runs it again.",
    ]


def test_a_command_is_whole_in_a_file_and_the_same_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["peftlab", "train", "data=text_files", "data.note=it's two words", "name=a_long_name_of_a_run", "seed=3"]
    say_command(shlex.join(words), first="$ ")
    assert capsys.readouterr().out == f"$ {shlex.join(words)}\n"
    monkeypatch.setattr(terminal, "columns_of", lambda stream: 40)
    say_command(shlex.join(words), first="$ ")
    shown = capsys.readouterr().out
    assert all(len(line) <= 40 for line in shown.splitlines())
    assert shlex.split(shown.removeprefix("$ ").replace("\\\n", "")) == words
