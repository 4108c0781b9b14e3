"""What a run is called in Weights & Biases, and whether there is an account. Imports neither wandb nor torch."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.class_names import stable_name
from peftlab.reading import read_json

CELL = "PEFTLAB_CELL"
"""Environment variable in which a sweep says the cell to a job: sweep.json names it when the run is finished."""
Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class Names:
    """Where W&B's pages file a run."""

    group: str
    """The experiment's or the sweep's name."""
    job_type: str
    """The method."""
    name: str
    """``<cell of the sweep, or method>/<key>``."""


def names(config: dict[str, Any], key: str, folder: Path) -> Names:
    """What W&B shows of the run ``key``.

    Args:
        config: the run's resolved config as plain containers.
        key: the run's key.
        folder: the run's folder; the sweep.json beside it, if there is one, says the cell.
    """
    method = method_of(config)
    cell = cell_of(folder, key) or os.environ.get(CELL) or method
    return Names(group=config["name"], job_type=method, name=f"{cell}/{key}")


def method_of(config: dict[str, Any]) -> str:
    """``lora`` for ``peftlab.peft.lora.LoRA``; of other packages the name of the class."""
    module, _, cls = stable_name(str(config["peft"]["_target_"])).rpartition(".")
    return module.rpartition(".")[2] if module.startswith("peftlab.peft.") else cls


def cell_of(folder: Path, key: str) -> str | None:
    """The id of the sweep's cell that the run ``key`` belongs to; None outside of declared sweeps."""
    try:
        sweep = read_json(folder.absolute().parent / "sweep.json")
        return next((str(cell["id"]) for cell in sweep["cells"] if key in cell["runs"].values()), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # only a name: a sweep.json that cannot be read costs no run


def chosen_mode(given: str) -> Mode:
    """``given``, or for ``auto``: $WANDB_MODE, else online where there is an account, else offline."""
    if given in ("online", "offline", "disabled"):
        return given  # type: ignore[return-value]
    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled"):
        return chosen  # type: ignore[return-value]
    return "online" if has_account() else "offline"


def has_account() -> bool:
    """Whether $WANDB_API_KEY is set, or ``wandb login`` has left a key in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
