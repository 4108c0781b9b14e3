"""Run keys are what they were: with another key, a finished run would be trained again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftlab.records import identity_tags
from tests.goldens.changed import with_defaults_of_then
from tests.goldens.keys import CONFIGS, KEYS, PATH_IS_PART_OF_THE_KEY, key_of, options, write_files

GOLDEN: list[list[str]] = json.loads(KEYS.read_text(encoding="utf-8"))
"""Overrides of the command line, and then the key."""


@pytest.fixture(autouse=True)
def without_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goldens are from before the first change of numbers; what each tag concerns is tested with the tags."""
    monkeypatch.setattr(identity_tags, "TAGS", ())


def _differences(goldens: list[list[str]], folder: Path | str) -> str:
    found = [(overrides, key, key_of(with_defaults_of_then(overrides), folder)) for *overrides, key in goldens]
    wrong = [(overrides, key, now) for overrides, key, now in found if now != key]
    return f"{len(wrong)} of {len(found)} keys differ:\n" * bool(wrong) + "\n".join(
        f"  {' '.join(overrides)}\n    expected {key}, got {now}" for overrides, key, now in wrong
    )


def test_every_key_is_what_it_was(scratch: Path) -> None:
    write_files(scratch)
    differences = _differences(GOLDEN, ".")
    assert not differences, differences


def test_a_key_knows_nothing_of_the_folder(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By absolute paths, from files elsewhere; of the many configs on the same reviews a few are enough."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_files(elsewhere)
    others = [golden for golden in GOLDEN if any("{folder}" in o and "reviews.jsonl" not in o for o in golden)]
    others = [golden for golden in others if not any(_has_its_path(override) for override in golden)]
    differences = _differences([*GOLDEN[:3], *others], elsewhere)
    assert not differences, differences


def _has_its_path(override: str) -> bool:
    return "{folder}" in override and override.startswith(PATH_IS_PART_OF_THE_KEY)


def test_the_goldens_are_of_these_configs() -> None:
    assert [tuple(overrides) for *overrides, _ in GOLDEN] == list(CONFIGS)


def test_every_file_of_conf_is_in_a_golden() -> None:
    named = {override for *overrides, _ in GOLDEN for override in overrides}
    defaults = {"data=imdb_packaged", "backbone=minilm"}  # of the config without any override
    assert options() - named - defaults == set()
