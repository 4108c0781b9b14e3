"""Imported first by the fork server, and only there: leaves the terminal's process group, then imports what jobs need.

Ctrl-C reaches every process of the terminal's group. The launcher alone shall hear it and end the jobs in order; the
server must not die of it half-way through its imports.
"""

from __future__ import annotations

import os

os.setpgid(0, 0)

from peftlab.process import uncollected  # noqa: E402

with uncollected():
    import peftlab.sweeps.warm
    import peftlab.sweeps.worker  # noqa: F401
