"""``hydra/sweeper=process``: Hydra's basic sweeper, which leaves composing the jobs to the process launcher.

The basic sweeper composes every job to see that it can be composed, a fifth of a second each, and throws the result
away; the process launcher then does it again. With the process launcher once is enough, and for jobs that it remembers
even that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from hydra_plugins.peftlab_process_launcher import ProcessLauncher


class ProcessSweeper(BasicSweeper):
    """All combinations of the values that are given, separated by commas or as ranges."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check the jobs of all batches before the first batch runs; a single batch the launcher checks itself."""
        if not isinstance(self.launcher, ProcessLauncher):
            super().validate_batch_is_legal(batch)
        elif self.batch_index == 1 and self.overrides is not None and len(self.overrides) > 1:
            self.launcher.checked([overrides for batch in self.overrides for overrides in batch], 0)
