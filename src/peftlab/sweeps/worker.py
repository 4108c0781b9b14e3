"""What a job's process does. The server that jobs are forked from imports this module, and all that a run needs."""

from __future__ import annotations

import importlib
import os
import sys
import time

import datasets  # noqa: F401  the imports that take seconds, done once for all jobs
import lightning.pytorch  # noqa: F401
import torch
import transformers  # noqa: F401

from peftlab import process
from peftlab.config import from_plain
from peftlab.errors import OutOfMemory, PeftlabError, RunError, RunInUse
from peftlab.records.folder import RunFolder
from peftlab.runs.train import train
from peftlab.signals import ASKED, CTRL_C, Interrupted
from peftlab.sweeps.job_spec import IN_USE, OUT_OF_MEMORY, JobSpec
from peftlab.training.ranks import lead


def work(spec: JobSpec) -> int:
    """Train one job; return its exit status."""
    process.STARTED = time.time()
    _as_if_typed(spec)
    torch.set_num_threads(spec.threads)
    try:
        config = from_plain(spec.values)
        folder = RunFolder.of(config)
        if str(folder.path) != spec.folder:
            raise RunError(
                f"the run was {spec.folder} when the sweep looked and is {folder.path} now: its data, weights or the "
                "run that it starts from have changed meanwhile. Start the sweep again."
            )
        with ASKED.heard():
            train(config, argv=["peftlab", *spec.arguments])
    except RunInUse as error:
        print(f"peftlab train: {error}", file=sys.stderr, flush=True)
        return IN_USE
    except OutOfMemory as error:
        print(f"peftlab train: {error}", file=sys.stderr, flush=True)
        return OUT_OF_MEMORY
    except KeyboardInterrupt as error:
        print(f"peftlab train: {str(error) or 'interrupted.'}", file=sys.stderr, flush=True)
        return error.status if isinstance(error, Interrupted) else CTRL_C
    except (PeftlabError, OSError) as error:
        print(f"peftlab train: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, PeftlabError) else 1
    return 0


def _as_if_typed(spec: JobSpec) -> None:
    """Make the process look as one that ``python -m peftlab train …`` has started.

    Lightning starts the other ranks of a DDP run by calling that command again, as it finds it in ``sys.argv`` and in
    the main module: they must get this job's arguments, and neither the launcher's nor those of another job.
    """
    sys.argv[:] = ["peftlab", *spec.arguments]
    sys.modules["__main__"] = importlib.import_module("peftlab.__main__")
    lead(os.path.basename(spec.folder))  # noqa: PTH119
