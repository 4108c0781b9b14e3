"""``peftlab explain WORD``: a group, an option of it, or a key of the config."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence

from peftlab.errors import ConfigError, listed, nearest
from peftlab.reference import (
    ABOUT,
    RECIPES,
    ROLES,
    Key,
    Option,
    also_in,
    at_the_top,
    class_of,
    every_key,
    keys_of,
    left_open,
    option,
    option_names,
    plain,
    source_file,
    top_level,
    written,
)
from peftlab.report.render.terminal import console, print_facts

DESCRIPTION = """\
Explain what can be configured: a group (data), an option of it (data=text_files), or a key (trainer.precision)."""


def main(arguments: Sequence[str]) -> int:
    """Print what is asked for.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab explain", description=DESCRIPTION)
    parser.add_argument("word", nargs="?", help="a group, group=option, or a key; none: all groups")
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs")
    given = parser.parse_args(list(arguments))
    with also_in(given.config_dir):
        _explain(given)
    return 0


def _explain(given: argparse.Namespace) -> None:
    if given.word is None:
        _groups()
    elif "=" in given.word:
        _option_or_key(given.word)
    elif given.word in ABOUT:
        _group(given.word)
    else:
        _key(given.word)


def _groups() -> None:
    print("Groups: choose with group=option\n")
    print_facts(console(), ((f"  {group}", about) for group, about in ABOUT.items()))
    print("\nKeys of no group: set with key=value\n")
    _print_keys("", top_level(), at_the_top())
    print("\npeftlab explain data lists the options of a group, explain data=text_files the keys of one.")


def _group(group: str) -> None:
    print(f"{group}: {ABOUT[group]}\n")
    options = [option(group, name) for name in option_names(group)]
    print_facts(console(), ((f"  {group}={one.name}", one.summary) for one in options))
    if group in RECIPES:
        print(f"\npeftlab explain {group}={options[0].name} says what one chooses.")
        return
    classes = {one.target for one in options}
    if len(classes) == 1:
        print()
        _print_keys(group, keys_of(class_of(options[0])), {})
    else:
        print(f"\npeftlab explain {group}={options[0].name} explains the keys of one.")


def _option_or_key(word: str) -> None:
    group, _, name = word.partition("=")
    if group not in ABOUT:
        if "." in group or any(group == key.name for key in top_level()):
            _key(group)
            return
        raise ConfigError(f"there is no group '{group}'.{nearest(group, ABOUT)} The groups are: {listed(ABOUT)}.")
    found = option(group, name)
    print(f"{word}    {source_file(found)}\n")
    print(f"{_wrapped(found.about, console().width)}\n")
    if group in RECIPES:
        print("It chooses:\n")
        print_facts(console(), ((f"  {key}", written(value)) for key, value in _flat(found.values)))
        return
    print(f"Keys (set with {group}.<key>=…):\n")
    _print_keys(group, keys_of(class_of(found)), found.values)


def _wrapped(text: str, width: int) -> str:
    """``text`` no wider than the terminal; lines that begin with spaces, as commands do, stay as they are."""
    parts: list[str] = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        whole = [] if any(line.startswith(" ") for line in lines) else textwrap.wrap(" ".join(lines), width)
        parts.append("\n".join(whole or lines))
    return "\n\n".join(parts)


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _print_keys(group: str, keys: Sequence[Key], values: dict[str, object]) -> None:
    width = console().width
    for key in keys:
        here = written(values[key.name]) if key.name in values and values[key.name] != "???" else key.default
        print(f"  {key.name} = {here}" if here else f"  {key.name}    (must be given)")
        about = f"{plain(key.meaning)} Takes {key.allowed}."
        if key.role == "bookkeeping":
            about += f" ({ROLES[key.role].capitalize()}.)"
        if said := left_open(f"{group}.{key.name}"):
            about += f" Such as {said}."
        print(textwrap.fill(about, width, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _key(word: str) -> None:
    """The key ``word``: whole, or the last part of it, wherever it is."""
    every = list(every_key())
    named = [(f"{group}.{key.name}" if group else key.name, options, key) for group, options, key in every]
    found = [one for one in named if one[0] == word] or [one for one in named if one[2].name == word]
    if not found:
        known = {name for name, _, _ in named} | {key.name for _, _, key in named} | set(ABOUT)
        raise ConfigError(
            f"there is no group and no key '{word}'.{nearest(word, known)} The groups are: {listed(ABOUT)}; "
            "`peftlab explain GROUP` leads to their keys."
        )
    for number, (name, options, key) in enumerate(found):
        group = name.rpartition(".")[0]
        facts = [("meaning", plain(key.meaning)), ("takes", key.allowed)]
        facts += [("default", key.default or "none: it must be given")]
        facts += [(" in", said) for said in _elsewhere(group, options, key)]
        facts += [("identity", ROLES[key.role])]
        print(("" if number == 0 else "\n") + name + (f"    of {_of(group, options)}" if group else ""))
        print_facts(console(), ((f"  {title}", text) for title, text in facts))


def _of(group: str, options: Sequence[str]) -> str:
    if len(options) == len(option_names(group)):
        return f"all {group}=…"
    return ", ".join(f"{group}={name}" for name in options)


def _elsewhere(group: str, options: Sequence[str], key: Key) -> Iterator[str]:
    """Files that say another value than the default."""
    for name in options:
        values: Option = option(group, name)
        if key.name in values.values and (said := written(values.values[key.name])) != key.default and said != "???":
            yield f"{group}={name}: {said}"
