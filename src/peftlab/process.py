"""Facts of this process that others must be able to set: when it began its work."""

from __future__ import annotations

import time

STARTED = time.time()
"""When this process began its work (seconds since the epoch), for the record's start-to-first-step time; a process
that is forked for a job sets it anew."""
