"""Write the goldens again:  python -m tests.goldens.make keys|cells|runs

A golden is what the code computed at a state that was known to be right; the tests hold the code of today against it.
This must therefore run on the state that is to be kept, with nothing changed in ``src`` and ``conf``, and never to
make a failing test pass. It is legitimate

- before a rewrite, to keep what is there;
- after a change that is *meant* to give other numbers or other keys, with the reason in its commit and CHANGELOG.md;
- to add a config, a cell or a run: the entries that were there before must come out as they were.

Runs of an older format are worth keeping as they are: they show that what people have on their disks can be read.

The figures are of one processor and one torch, which each golden names; elsewhere the tests compare within a tolerance.
Everything is computed on one thread, in a scratch folder, by relative paths: no path of the machine enters a golden.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence

PARTS = ("keys", "cells", "runs")


def main(arguments: Sequence[str]) -> int:
    """Write one sort of goldens."""
    if len(arguments) != 1 or arguments[0] not in PARTS:
        print(f"usage: python -m tests.goldens.make {'|'.join(PARTS)}", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    part = importlib.import_module(f"tests.goldens.{arguments[0]}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["PEFTLAB_CACHE"] = f"{folder}/.cache"
        part.make()
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
