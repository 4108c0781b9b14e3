"""Which modules a ``_target_`` may name: importing one runs its code, and configs and records come from anywhere."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from peftlab.errors import ConfigError

ALLOW = "PEFTLAB_ALLOW"
"""Environment variable of the person who runs: names of modules or packages, with commas between them."""
ENTRY_POINTS = ("peftlab.methods", "peftlab.configs")
"""Groups in which installed packages name their modules: those of methods, and those of all other config classes."""

_OWN = ("peftlab.backbones", "peftlab.data", "peftlab.peft", "peftlab.training")


def require_trusted(module: str, said: str) -> None:
    """Refuse to import ``module`` because of ``said`` (``data._target_=a.B``), unless somebody here vouches for it.

    That are peftlab's own config classes, packages that were installed for it, what the program has imported already,
    and what :data:`ALLOW` names; never anything that a config or a record says.

    Raises:
        ConfigError: naming the module and the variable.
    """
    if module in sys.modules or _inside(module, _OWN) or _inside(module, _allowed()):
        return
    installed = [entry.value.partition(":")[0] for group in ENTRY_POINTS for entry in entry_points(group=group)]
    if _inside(module, installed):
        return
    raise ConfigError(
        f"{said}: '{module}' is no module of peftlab's config classes, and importing it would run its code. If it is "
        f"yours, or you trust it: {ALLOW}={module.partition('.')[0]} in the environment (several with commas)."
    )


def _allowed() -> list[str]:
    return [name for part in os.environ.get(ALLOW, "").split(",") if (name := part.strip())]


def _inside(module: str, names: list[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)
