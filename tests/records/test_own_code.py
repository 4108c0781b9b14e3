"""A method of one's own whose code changed is another run; nothing of it is imported to verify."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftlab.composition import checked
from peftlab.config import GROUPS
from peftlab.records.identity import recorded
from peftlab.records.own_code import FIELD, _hash, code_content, recorded_code
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
    second = next(run for run in first.parent.glob("*") if run.is_dir() and run != first)
    peftlab("report", "outputs/t", "--format", "json", "--to", "compared")
    groups = json.loads(Path("compared/report.json").read_text())["groups"]
    assert [group["n"] for group in groups] == [1, 1], "no mean over both"
    assert "peft.code" in peftlab("diff", str(first), str(second)).out
    assert peftlab("runs", "outputs/t").out.count("code=") == 2
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


SCRIPT = """
from dataclasses import dataclass
from types import SimpleNamespace
from peftlab.records.own_code import code_content

@dataclass
class Mine:
    "Of a script."
    rank: int = 3

    def more(self) -> int:
        return 2 * self.rank

print(code_content(SimpleNamespace(peft=Mine()), ["peft"])["peft"])
"""


def test_of_a_script_its_classes_count(scratch: Path) -> None:
    """As of a notebook: what stands around them changes all the time."""

    def code(script: str) -> str:
        Path("script.py").write_text(script)
        return subprocess.run([sys.executable, "script.py"], check=True, capture_output=True, text=True).stdout

    found = code(SCRIPT)
    assert len(found.strip()) == 64
    assert code(f"{SCRIPT}\nmore = 3\n".replace('"Of a script."', '"Of mine."  # said')) == found
    assert code(SCRIPT.replace("2 * self", "3 * self")) != found


@pytest.mark.parametrize("said", [None, 3, "abc", {"content": []}, {"content": {FIELD: "abc"}}])
def test_a_record_may_say_anything(said: Any) -> None:
    assert recorded_code({"identity": said}) == {}


def test_a_logger_decides_no_number(project: Path) -> None:
    Path("my_lora.py").write_text(
        "from dataclasses import dataclass\nfrom peftlab.training.loggers import CSV\n\n"
        "@dataclass(kw_only=True)\nclass MyCSV(CSV):\n    pass\n"
    )
    sys.path.insert(0, str(project))
    try:
        import my_lora  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(project))
    config = checked([*TINY, "data.path=x.jsonl"])
    Path("x.jsonl").write_text("{}")
    assert recorded(replace(config, logger=my_lora.MyCSV()))["content"].keys() == recorded(config)["content"].keys()


def test_peftlabs_own_code_has_tags_instead() -> None:
    assert code_content(checked([*TINY, "data.path=x.jsonl"]), [*GROUPS]) == {}
