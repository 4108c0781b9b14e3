"""``peftlab explain WORD``: a group, an option of it, or a key of the config."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from peftlab.commands.explain_search import found_lines
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
from peftlab.sweeps.record_columns import column_meanings
from peftlab.terminal import filled, flowed

DESCRIPTION = """\
Explain what can be configured: a group (data), an option of it (data=text_files), or a key (trainer.precision). Other
words (checkpoint, gradient accumulation) are looked for in the names and meanings of all."""


def main(arguments: Sequence[str]) -> int:
    """Print what is asked for.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab explain", description=DESCRIPTION)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="a group, group=option, or a key; else what to look for; columns: of tables; none: all groups",
    )
    parser.add_argument("-cd", "--config-dir", help="a further folder of configs")
    given = parser.parse_args(list(arguments))
    with also_in(given.config_dir):
        _explain(" ".join(given.words))
    return 0


def _explain(word: str) -> None:
    if not word:
        _groups()
    elif word == "columns":
        _columns()
    elif "=" in word:
        _option_or_key(word)
    elif word in ABOUT:
        _group(word)
    else:
        _key(word)


def _groups() -> None:
    print("Groups: choose with group=option\n")
    print_facts(console(), ((f"  {group}", about) for group, about in ABOUT.items()))
    print("\nKeys of no group: set with key=value\n")
    _print_keys("", top_level(), at_the_top())
    print("\npeftlab explain data lists the options of a group, explain data=text_files the keys of one.")


def _columns() -> None:
    out = console()
    said = "Columns of a sweep's file (columns: [{value: …}]) and of report and runs (--columns): places in a record"
    print("\n".join([*filled(said, out.width), ""]))
    print_facts(out, ((f"  {place}", meaning) for place, meaning in column_meanings().items()))


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
    width = console().width
    print("\n".join([*filled(f"{word}    {source_file(found)}", width, then="    "), ""]))
    print(f"{flowed(found.about, width)}\n")
    if group in RECIPES:
        print("It chooses:\n")
        print_facts(console(), ((f"  {key}", written(value)) for key, value in _flat(found.values)))
        return
    print(f"Keys (set with {group}.<key>=…):\n")
    _print_keys(group, keys_of(class_of(found)), found.values)


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _print_keys(group: str, keys: Sequence[Key], values: dict[str, object]) -> None:
    width, inside = console().width, " " * 6
    for key in keys:
        here = written(values[key.name]) if key.name in values else key.default
        is_open = here in ("", "???")
        said = f"{key.name}    (must be given)" if is_open else f"{key.name} = {here}"
        print("\n".join(filled(said, width, first="  ", then=inside)))
        about = f"{plain(key.meaning)} Takes {_allowed(f'{group}.{key.name}', key, is_open=is_open)}."
        if key.role in ("bookkeeping", "content"):
            about += f" ({ROLES[key.role].capitalize()}.)"
        print("\n".join(filled(about, width, first=inside, then=inside)))


def _allowed(name: str, key: Key, *, is_open: bool) -> str:
    """What ``key`` takes; in the words for it, where a file of ``conf/`` leaves it open."""
    return (is_open and left_open(name)) or key.allowed


def _key(word: str) -> None:
    """The key ``word``: whole, or the last part of it, wherever it is."""
    every = list(every_key())
    named = [(f"{group}.{key.name}" if group else key.name, options, key) for group, options, key in every]
    found = [one for one in named if one[0] == word] or [one for one in named if one[2].name == word]
    if not found:
        _look_for(word, [*(name for name, _, _ in named), *(key.name for _, _, key in named), *ABOUT])
        return
    out = console()
    for number, (name, options, key) in enumerate(found):
        group = name.rpartition(".")[0]
        is_open = any(option(group, one).values.get(key.name) == "???" for one in options)
        facts = [("meaning", plain(key.meaning)), ("takes", _allowed(name, key, is_open=is_open))]
        facts += [("default", key.default or "none: it must be given")]
        facts += [(" in", said) for said in _elsewhere(group, options, key)]
        facts += [("identity", ROLES[key.role])]
        head = name + (f"    of {_of(group, options)}" if group else "")
        print(("" if number == 0 else "\n") + "\n".join(filled(head, out.width, then="    ")))
        print_facts(out, ((f"  {title}", text) for title, text in facts))


def _look_for(words: str, known: Sequence[str]) -> None:
    """List what has ``words`` in its name or its meaning.

    Raises:
        ConfigError: if nothing has.
    """
    out = console()
    if not (lines := found_lines(words, out.width)):
        raise ConfigError(
            f"there is no group and no key '{words}'.{nearest(words, known)} The groups are: {listed(ABOUT)}; "
            "`peftlab explain GROUP` leads to their keys."
        )
    print("\n".join(filled(f"No group and no key is called '{words}'. What has it in its name or meaning:", out.width)))
    print()
    print("\n".join(lines))
    print("\npeftlab explain KEY, or GROUP=OPTION, says all of one.")


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
