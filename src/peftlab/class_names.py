"""The name of a config class that keys and records know, wherever the class is now.

A run's key hashes the name of each config class, and configs, records and adapter files hold it as ``_target_``. So a
class that is moved to another module keeps the name that it was released under: :data:`MOVED` says where it is now.
Whatever writes, hashes or compares the name of a class asks :func:`stable_name`; whatever loads one, :func:`place_of`.
Imports nothing.
"""

from __future__ import annotations

MOVED: dict[str, str] = {}
"""Name that a class had once → its name now, both as ``package.module.Class``.

Append only. A class that moves again keeps its entry, which then names its newest place; the place in between gets an
entry of its own behind it, since files may name that too: of several old names the first is the stable one. No new
class may take an old name.
"""


def stable_name(of: type | str) -> str:
    """The name under which keys and records know a class: the one it was released under.

    Args:
        of: the class, or any name that it has or had.
    """
    name = of if isinstance(of, str) else f"{of.__module__}.{of.__qualname__}"
    place = place_of(name)
    return next((old for old, new in MOVED.items() if new == place), name)


def place_of(name: str) -> str:
    """Where the class that is or was called ``name`` is now, as ``package.module.Class``."""
    return MOVED.get(name, name)
