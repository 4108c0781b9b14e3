"""``hydra/sweeper=process``: Hydra's basic sweeper, which leaves composing the jobs to the process launcher.

The basic sweeper composes every job to see that it can be composed, a fifth of a second each, and throws the result
away; the process launcher then does it again. With the process launcher once is enough, and for jobs that it remembers
even that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from hydra_plugins.peftlab_process_launcher import ProcessLauncher
from peftlab.errors import PeftlabError


class ProcessSweeper(BasicSweeper):
    """All combinations of the values that are given, separated by commas or as ranges."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; if none was started, nothing is left of it."""
        assert self.config is not None
        place = Path(self.config.hydra.sweep.dir)
        new = [folder for folder in (place, *place.parents) if not folder.exists()]
        try:
            return super().sweep(arguments)
        except PeftlabError:
            if new and isinstance(self.launcher, ProcessLauncher) and not self.launcher.started:
                (place / "multirun.yaml").unlink(missing_ok=True)
                for folder in new:
                    with suppress(OSError):  # somebody else's is in it
                        folder.rmdir()
            raise

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check the jobs of all batches before the first batch runs; a single batch the launcher checks itself."""
        if not isinstance(self.launcher, ProcessLauncher):
            super().validate_batch_is_legal(batch)
        elif self.batch_index == 1 and self.overrides is not None and len(self.overrides) > 1:
            self.launcher.checked([overrides for batch in self.overrides for overrides in batch], 0)
