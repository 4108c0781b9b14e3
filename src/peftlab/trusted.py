"""Which modules a ``_target_`` may name: importing one runs its code, and configs and records come from anywhere."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from peftlab.allowed import importable
from peftlab.errors import ConfigError

ALLOW = "PEFTLAB_ALLOW"
"""Environment variable of the person who runs: names of modules or packages, with commas between them."""
ENTRY_POINTS = ("peftlab.methods", "peftlab.configs")
"""Groups in which installed packages name their modules: those of methods, and those of all other config classes."""

_OWN = ("peftlab.backbones", "peftlab.data", "peftlab.peft", "peftlab.training")


def require_trusted(module: str, said: str) -> None:
    """Refuse to import ``module`` because of ``said`` (``data._target_=a.B``), unless somebody here vouches for it.

    That are peftlab's own config classes, packages that were installed for it, what the program has imported already,
    what :data:`ALLOW` names, and what was allowed for this folder (:mod:`peftlab.allowed`); never anything that a
    config or a record says, or a file that lies beside it.

    Raises:
        NotTrusted: naming the module, and how it is allowed.
    """
    if module in sys.modules or _inside(module, _OWN) or _inside(module, [*_allowed(), *importable()]):
        return
    installed = [entry.value.partition(":")[0] for group in ENTRY_POINTS for entry in entry_points(group=group)]
    if _inside(module, installed):
        return
    raise NotTrusted(module, said)


class NotTrusted(ConfigError):
    """A module that nobody here vouches for."""

    def __init__(self, module: str, said: str) -> None:
        top = module.partition(".")[0]
        self.module = module
        super().__init__(
            f"{said}: '{module}' is no module of peftlab's config classes, and importing it would run its code. If it "
            f"is yours, or you trust it: `peftlab allow {top}`, once in this folder, or {ALLOW}={top} in the "
            "environment (several with commas)."
        )


def registered_methods() -> list[str]:
    """Names under which other packages have registered methods, without importing any."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS[0])})


def _allowed() -> list[str]:
    return [name for part in os.environ.get(ALLOW, "").split(",") if (name := part.strip())]


def _inside(module: str, names: list[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)
