"""A table inside a Markdown file of people's own, between two markers."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import ConfigError, listed
from peftlab.files import write_atomically


def require_markers(path: Path, name: str) -> None:
    """Raise ConfigError unless ``path`` has a place for the table of ``name``."""
    begin, end = _markers(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--publish {path}: it cannot be read ({error}).") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ConfigError(f"--publish {path}: the table goes between the lines {listed([begin, end])}; put them there.")


def replace_table(path: Path, name: str, table: str) -> None:
    """Put ``table``, which ends in a newline, between the markers of ``name`` in ``path``."""
    begin, end = _markers(name)
    before, rest = path.read_text(encoding="utf-8").split(begin)
    write_atomically(path, f"{before}{begin}\n{table}{end}{rest.split(end)[1]}")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- table {name} -->", f"<!-- end of table {name} -->"
