"""The command line of a copy of the project, in one process: what every command imports is imported once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SERVE = """
import contextlib, io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from peftlab.cli import main
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(json.loads(line))
        except SystemExit as error:
            status = int(error.code or 0)
    print(json.dumps([status, said.getvalue()]), file=answers, flush=True)
"""


@contextmanager
def command_line(project: Path) -> Iterator[Callable[..., str]]:
    """``call(*arguments, status=0)`` of the copy in ``project``: what it printed, if it ended with that status."""
    environment = os.environ | {"PYTHONPATH": str(project / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def call(*arguments: str, status: int = 0) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(arguments), file=process.stdin, flush=True)
        found, said = json.loads(process.stdout.readline())
        assert found == status, said
        return str(said)

    with process:
        yield call
        process.stdin.close()
