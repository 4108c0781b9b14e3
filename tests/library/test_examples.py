"""The examples run, and say what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(file), run_name="__main__")
    said = capfd.readouterr().out
    expected = {"attach": "right 100%", "fit_dataframe": "is finished already", "compare_runs": "peft.rank"}
    assert expected[file.stem] in said


def test_there_are_three() -> None:
    assert len(EXAMPLES) == 3
