"""``peftlab bundle FOLDER…``: runs as one archive, which ``peftlab verify`` reads anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peftlab.audit.bundle import write_bundle
from peftlab.errors import counted
from peftlab.terminal import say

DESCRIPTION = """\
Write runs into one zip archive: records, configs, adapters (the best weights), histories, predictions, the table of a
sweep, and the versions of all packages here; no checkpoints. The runs that they start from go with them. Every run is
verified first. The same runs give the same bytes. `peftlab verify FILE.zip` reads it, without network or unpacking."""


def main(arguments: Sequence[str]) -> int:
    """Write the archive, and say what is in it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab bundle", description=DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders of runs")
    parser.add_argument("--out", metavar="FILE", help="the archive (default: <folder>.zip, here)")
    given = parser.parse_args(list(arguments))
    written = write_bundle(given.folders, None if given.out is None else Path(given.out))
    size = written.path.stat().st_size / 2**20
    say(f"{written.path}: {counted(written.runs, 'run')} in {counted(written.files, 'file')}, {size:,.1f} MiB")
    for note in written.notes:
        say(f"note: {note}")
    return 0
