"""What a job's process does. The server that jobs are forked from imports this module, and all that a run needs."""

from __future__ import annotations

import sys
import time

import datasets  # noqa: F401  the imports that take seconds, done once for all jobs
import lightning.pytorch  # noqa: F401
import transformers  # noqa: F401

from peftlab import cli
from peftlab.composition import checked
from peftlab.errors import PeftlabError
from peftlab.runs.train import train


def work(overrides: list[str]) -> int:
    """Train one job; return its exit status."""
    cli.STARTED = time.time()
    try:
        train(checked(overrides, real=True), argv=["peftlab", "train", *overrides])
    except (PeftlabError, OSError) as error:
        print(f"peftlab train: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, PeftlabError) else 1
    return 0
