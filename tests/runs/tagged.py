"""Changes of numbers that there are not, for tests: of LoRA, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from peftlab.records import identity_tags
from peftlab.records.identity_tags import Tag

SENTENCE = "the dropout is drawn once a batch"


def is_lora(config: Mapping[str, Any]) -> bool:
    return bool(config["peft"]["_target_"] == "peftlab.peft.lora.LoRA")


def change_numbers(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make ``names`` the tags that there are; they hold for LoRA."""
    monkeypatch.setattr(identity_tags, "TAGS", tuple(Tag(name, is_lora, SENTENCE) for name in names))
