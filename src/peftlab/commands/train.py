"""``peftlab train``: a Hydra application that fine-tunes once, or launches a sweep with ``-m``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from peftlab.composition import run_as_hydra_application
from peftlab.config import check
from peftlab.errors import RunError, SweepFailed
from peftlab.process import uncollected
from peftlab.records.divergence import STATUS
from peftlab.records.folder import RunFolder
from peftlab.runs.finished import finished_record
from peftlab.sweeps.job_spec import RUN_KEY
from peftlab.sweeps.processes import die_with_parent


def main(arguments: Sequence[str]) -> int:
    """Compose, check and run; a finished run is printed and skipped.

    Returns:
        0; 1 if jobs of a sweep failed, or the training diverged.
    """

    ended: list[dict[str, Any]] = []

    def task(composed: DictConfig) -> None:
        config = check(composed)  # a mistake costs an import of torch, and of nothing heavier
        folder = RunFolder.of(config)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            if (record := finished_record(config, folder)) is not None:
                ended.append(record)
                return
            os.environ[RUN_KEY] = folder.key
        else:
            _require_same_run(folder)
        with uncollected():
            from peftlab.runs.train import train

        ended.append(train(config, argv=["peftlab", "train", *arguments]))

    try:
        run_as_hydra_application(arguments, task)
    except SweepFailed as error:
        print(f"peftlab train: {error}", file=sys.stderr)
        return 1
    return 1 if any(record.get("status") == STATUS for record in ended) else 0


def _require_same_run(folder: RunFolder) -> None:
    """In a further rank of a DDP run: end with rank 0, and never train another run in its process group.

    Raises:
        RunError: if this rank has composed another run than rank 0.
    """
    wanted = os.environ.get(RUN_KEY)
    if wanted is None:  # started by a cluster's own launcher, which starts every rank alike
        return
    die_with_parent()
    if folder.key != wanted:
        raise RunError(
            f"this rank has composed the run {folder.key}, and rank 0 trains {wanted}: the config files have changed "
            "since the job began."
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
