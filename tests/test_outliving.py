"""The reader of a pipe leaves; what was begun is done all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.report.made_up import three_methods


def test_a_report_is_written_though_nobody_reads_its_table(scratch: Path) -> None:
    """``peftlab report FOLDER | head -0``; what is said behind that says nothing of pipes."""
    three_methods(scratch / "t")
    command = [sys.executable, "-m", "peftlab", "report", "t", "--format", "md,tex"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in Path("t/report").iterdir()} >= {"report.md", "report.tex"}
