"""Templates of documents: files of this folder, filled in by Jinja."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).with_name("templates")


def environment(**options: Any) -> Environment:
    """Where templates are looked up; a name that a template has misspelled is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not where nothing is written

    return Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
