"""What a run leaves that came to no result: refused, failed, diverged, or begun anew."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import Diverged, PeftlabError
from peftlab.objectives.recorded import FIELD as OBJECTIVE
from peftlab.records.divergence import STATUS
from peftlab.records.folder import ASIDE, RunFolder
from peftlab.records.history import write_metrics_csv
from peftlab.runs import record


@contextmanager
def leaving_no_empty(folders: Sequence[Path]) -> Iterator[None]:
    """Take those of ``folders``, from the inner to the outer, away again that a refused run has made and left empty."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except PeftlabError:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise


def write_diverged(
    config: RunConfig, folder: RunFolder, argv: list[str], error: Diverged, *, said: dict[str, Any]
) -> dict[str, Any]:
    """Write down that the training diverged, which ends the run: started again, it would do so again."""
    history = error.facts.pop("history")
    write_metrics_csv(folder.metrics, history)
    written = record.head(config, folder, argv, STATUS, said=said) | {
        OBJECTIVE: config.data.what_is_learned().facts(),
        "error": str(error),
        STATUS: error.facts,
        "history": history,
    }
    folder.write_record(written)
    return folder.read_record() or written


def note_failure(
    config: RunConfig, folder: RunFolder, argv: list[str], error: BaseException, *, said: dict[str, Any]
) -> None:
    """Write down that the run failed, so that reports can list it; starting it again resumes it."""
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        message = f"{type(error).__name__}: {error}"
        folder.write_record(record.head(config, folder, argv, status, said=said) | {"error": message})
    except (PeftlabError, OSError) as second:  # a full disk: the first error is the one to show
        print(f"could not note the failure in {folder.record}: {second}", file=sys.stderr)


def forget(folder: RunFolder) -> None:
    """Start anew; but go on with what an earlier ``force=true`` has begun aside, if it has not ended."""
    if folder.path.name.startswith(ASIDE) and not folder.record.exists():
        return
    folder.record.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def remove_if_untouched(folder: RunFolder) -> None:
    """Remove the folder of a run that never began, if nothing but its config is in it."""
    if {path.name for path in folder.path.iterdir()} <= {".lock", folder.config.name}:
        shutil.rmtree(folder.path, ignore_errors=True)
        with suppress(OSError):  # others are in it
            folder.path.parent.rmdir()
