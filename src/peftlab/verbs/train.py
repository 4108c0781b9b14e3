"""``peftlab train``: a Hydra application that fine-tunes once, or launches a sweep with ``-m``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from peftlab.composition import run_as_hydra_application
from peftlab.config import check
from peftlab.runs.finished import finished_record
from peftlab.runs.folder import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Compose, check and run; a finished run is printed and skipped."""

    def task(composed: DictConfig) -> None:
        config = check(composed)  # reads the schema only: a mistake costs no import of torch
        if finished_record(config, RunFolder.of(config)) is not None:
            return
        from peftlab.runs.train import train

        train(check(composed, real=True), argv=["peftlab", "train", *arguments])

    run_as_hydra_application(arguments, task)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
