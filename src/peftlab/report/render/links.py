"""Links from a report to the files it is made of."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def relative(path: str, target: Path) -> str:
    """``path`` as a link from a page in ``target``."""
    return quote(os.path.relpath(path, target).replace(os.sep, "/"))
