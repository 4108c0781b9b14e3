"""``peftlab train``: a Hydra application that fine-tunes once, or launches a sweep with ``-m``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from omegaconf import DictConfig

from peftlab.composition import run_as_hydra_application
from peftlab.config import RunConfig, check
from peftlab.errors import PeftlabError, RunError, SweepFailed
from peftlab.process import uncollected
from peftlab.records.continuing import parent_of
from peftlab.records.divergence import STATUS
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder
from peftlab.runs.finished import finished_record
from peftlab.signals import ASKED, Interrupted
from peftlab.terminal import fitted
from peftlab.training.ranks import Ranks, lead, led_to


def main(arguments: Sequence[str]) -> int:
    """Compose, check and run; a finished run is printed and skipped.

    Returns:
        0; 1 if jobs of a sweep failed, or the training diverged; in another rank than 0, what it was interrupted with.
    """

    ended: list[dict[str, Any]] = []
    ranks = Ranks.here()

    def task(composed: DictConfig) -> None:
        config = check(composed)  # a mistake costs an import of torch, and of nothing heavier
        config.trainer = ranks.settle(config.trainer)
        ranks.require(config.trainer)
        folder = known_folder(config)
        if ranks.met:
            ended.append(_train_together(config, folder, arguments, ranks))
            return
        if ranks.rank == 0:
            if (record := finished_record(config, folder)) is not None:
                ended.append(record)
                return
            parent_of(config, folder)  # what keeps it from going on with that run is said before anything is imported
            lead(folder.key)
        else:
            _require_same_run(folder)
        ended.append(_train(config, arguments, ranks))

    if {"--help", "-h"} & set(arguments):
        try:
            with redirect_stdout(io.StringIO()) as said:
                run_as_hydra_application(arguments, task)
        finally:  # Hydra leaves with SystemExit
            print(fitted(said.getvalue()), end="")
        return 0
    try:
        with ASKED.heard():
            run_as_hydra_application(arguments, task)
    except SweepFailed as error:
        print(f"peftlab train: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        if ranks.rank == 0:
            raise
        return error.status  # rank 0 says it
    return 1 if any(record.get("status") == STATUS for record in ended) else 0


def _train(config: RunConfig, arguments: Sequence[str], ranks: Ranks, meeting: Any = None) -> dict[str, Any]:
    with uncollected():
        from peftlab.runs.train import train

    return train(config, argv=["peftlab", "train", *arguments], ranks=ranks, meeting=meeting)


def _train_together(config: RunConfig, folder: RunFolder, arguments: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    """One of several processes that srun or torchrun has started: none of them begins, or ends, without the others."""
    with uncollected():
        from peftlab.training.meeting import Decision, Meeting

    meeting = Meeting(ranks)
    if ranks.rank != 0:
        try:
            return _train(config, arguments, ranks, meeting)
        finally:
            meeting.leave()
    status = 1
    try:
        record = finished_record(config, folder)
        if record is None:
            record = _train(config, arguments, ranks, meeting)
        status = 0
        return record
    except PeftlabError:
        status = 2
        raise
    except Interrupted as error:
        status = error.status
        raise
    finally:  # whoever waits for a decision hears this one; whoever trains ends
        meeting.tell(Decision(train=False, status=status))
        meeting.end(status)


def _require_same_run(folder: RunFolder) -> None:
    """In a further rank of a DDP run: end with rank 0, and never train another run in its process group.

    Raises:
        RunError: if this rank has composed another run than rank 0.
    """
    from peftlab.sweeps.processes import die_with_parent  # a run of one process needs nothing of sweeps

    die_with_parent()
    wanted = led_to()
    if folder.key != wanted:
        raise RunError(
            f"this rank has composed the run {folder.key}, and rank 0 trains {wanted}: the config files have changed "
            "since the job began."
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
