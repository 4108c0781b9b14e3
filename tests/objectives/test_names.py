"""Only objectives know figures by name: everything else is told by them."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCE = REPOSITORY / "src"
NAMES = re.compile(r"\b(accuracy|macro_f1|pearson)\b")
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if "objectives" not in path.parts]


def code(path: Path) -> list[str]:
    """The lines of a file without comments and docstrings."""
    kept, before = [], tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.STRING and before == tokenize.NEWLINE:  # a statement of its own
            continue
        before = token.type
        kept.append(token.string)
    return kept


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_names_a_figure(path: Path) -> None:
    named = [piece for piece in code(path) if NAMES.search(piece)]
    assert not named, f"{path}: {named}"


def test_the_test_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""Of accuracy."""\n\nx = {"accuracy": 1}  # accuracy\n', encoding="utf-8")
    assert [piece for piece in code(file) if NAMES.search(piece)] == ['"accuracy"']


def test_what_is_known_of_objectives_costs_no_torch() -> None:
    asked = "import sys; from peftlab.objectives.base import objectives; objectives(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
