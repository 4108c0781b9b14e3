"""A method of one's own whose code changed is another run; nothing of it is imported to verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftlab.records.own_code import FIELD, _hash, code_content
from tests.config.test_allowed import home, project
from tests.conftest import TINY, Peftlab, run_folder

__all__ = ["home", "project"]


def edit(before: str, after: str) -> None:
    """Edit the module, and forget that it was imported."""
    file = Path("my_lora.py")
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    sys.modules.pop("my_lora")


def test_an_edited_method_is_another_run(peftlab: Peftlab, project: Path, reviews: Path) -> None:
    peftlab("allow", "my_lora", "-cd", "configs")
    command = ("train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "peft=mine", "name=t")
    peftlab(*command)
    first = run_folder("t")
    record = json.loads((first / "record.json").read_text())
    assert list(record["identity"]["content"][FIELD]) == ["peft"]
    assert "code of my_lora.MyLoRA" in peftlab("verify", str(first)).out
    edit('"""LoRA of my own."""', '"""LoRA of mine."""  # a remark')
    assert "is finished already" in peftlab(*command).out
    assert "is not what the run" not in peftlab("predict", str(first), "--text", "good").err
    edit("rank: int = 3", "rank: int = 3\n    more: int = 0")
    told = peftlab("predict", str(first), "--text", "good")
    assert "note: the code of peft=MyLoRA is not what the run in" in told.err
    assert told.status == 0
    assert "is finished already" not in peftlab(*command).out
    assert len(list(Path("outputs/t").glob("*/record.json"))) == 2
    sys.modules.pop("my_lora")
    Path("IMPORTED").unlink()
    assert peftlab("verify", str(first)).status == 0
    assert not Path("IMPORTED").exists()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("class A:\n    # said\n    x: int = 1\n    'A field.'\n", True),
        ("class A:\n    'Mine.'\n\n    x : int=1", True),
        ("class A:\n    x: int = 2", False),
        ("class A:\n    x: int = 1\nA.x = 2", False),
    ],
)
def test_what_code_says_counts(other: str, same: bool) -> None:
    assert (_hash("class A:\n    x: int = 1\n") == _hash(other)) is same


def test_peftlabs_own_code_has_tags_instead() -> None:
    from peftlab.composition import checked
    from peftlab.config import GROUPS

    assert code_content(checked([*TINY, "data.path=x.jsonl"]), [*GROUPS]) == {}
