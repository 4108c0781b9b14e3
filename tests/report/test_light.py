"""Lists and comparisons of runs import neither torch nor Hydra, nor what checks configs: people ask for them often."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.made_up import record

HEAVY = ("torch", "hydra", "omegaconf", "numpy", "transformers", "pydantic", "peftlab.config")


@pytest.mark.parametrize("words", [["runs", "many"], ["diff", "many/a", "many/b"], ["status", "many"]])
def test_what_is_imported(words: list[str], scratch: Path) -> None:
    for key, rank in (("a", 4), ("b", 8)):
        (scratch / "many" / key).mkdir(parents=True)
        made = record(0.5, key=key, keys={"peft.rank": rank})
        (scratch / "many" / key / "record.json").write_text(json.dumps(made))
    code = (
        "import sys; from peftlab.cli import main; status = main(sys.argv[1:]); "
        f"print(status, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"
