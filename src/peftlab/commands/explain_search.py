"""What of all that can be configured has some words in its name or its meaning, the best first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from peftlab.reference import ABOUT, every_key, option, option_names, plain

MOST = 12
"""Lines."""
_ENDINGS = (
    "ations",
    "ation",
    "ating",
    "ated",
    "ates",
    "ate",
    "ings",
    "ing",
    "ions",
    "ion",
    "ers",
    "ies",
    "ed",
    "es",
    "s",
)
_SHORTEST = 4
"""Letters of a word that remain when its ending is taken away."""
_SENTENCE_ENDS = re.compile(r"(?<=\.)(?<!et al\.)\s+")


@dataclass(frozen=True)
class _Entry:
    name: str
    """As it is asked for: ``trainer.precision``, ``peft=lora``."""
    text: str


def found_lines(words: str, width: int) -> list[str]:
    """A line for each of the best: its name, and the sentence that has the words. Nothing if none has.

    Where no entry has all the words, those that have most of them, at least half.
    """
    stems = [_stem(word) for word in re.findall(r"[a-z0-9]+", words.lower())]
    if not stems or re.search("[.=]", words):
        return []
    rated: dict[str, tuple[tuple[int, ...], _Entry]] = {}
    for place, entry in enumerate(_entries()):
        rate = (*_rate(entry, stems), -place)
        if rate > rated.get(entry.name, ((),))[0]:
            rated[entry.name] = rate, entry
    most = max(rate[0] for rate, _ in rated.values())
    if 2 * most < len(stems) or most == 0:
        return []
    best = sorted((one for one in rated.values() if one[0][0] == most), key=lambda one: one[0], reverse=True)[:MOST]
    longest = max(len(entry.name) for _, entry in best)
    return [_line(entry, stems, longest, width) for _, entry in best]


def _entries() -> Iterator[_Entry]:
    for group, _, key in every_key():
        yield _Entry(f"{group}.{key.name}" if group else key.name, plain(key.meaning))
    for group, about in ABOUT.items():
        yield _Entry(group, f"{about[0].upper()}{about[1:]}.")
        for name in option_names(group):
            yield _Entry(f"{group}={name}", option(group, name).summary)


def _rate(entry: _Entry, stems: list[str]) -> tuple[int, int, int, int]:
    """How many of the words it has, in its name, as the name's beginning; and how early in its text."""
    own = re.split(r"[.=]", entry.name.lower())[-1].replace("_", " ")
    name, text = entry.name.lower(), entry.text.lower()
    has = sum(stem in name or stem in text for stem in stems)
    first = min((text.find(stem) for stem in stems if stem in text), default=len(text))
    return has, sum(stem in own for stem in stems), sum(own.startswith(stem) for stem in stems), -first


def _stem(word: str) -> str:
    """``word`` without its ending, so that accumulation is found in accumulate."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST:
            return word.removesuffix(ending)
    return word


def _line(entry: _Entry, stems: list[str], longest: int, width: int) -> str:
    elsewhere = [stem for stem in stems if stem not in entry.name.lower()]
    said = max(_SENTENCE_ENDS.split(entry.text), key=lambda sentence: sum(s in sentence.lower() for s in elsewhere))
    line = f"  {entry.name.ljust(longest)}  {said}"
    return line if len(line) <= width else f"{line[: width - 1].rsplit(' ', maxsplit=1)[0].rstrip(' ,;:')}…"
