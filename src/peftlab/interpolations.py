"""What the files of ``conf/`` may interpolate beside OmegaConf's own: the default name, and fields of one model only.

Both follow from the config and the chosen files alone. Of the environment they may read what is no secret: a config is
written into records, and its name into folders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

DEFAULT_NAME = "default_name"
OF_ITS_MODEL = "of_its_model"
NAMES = (DEFAULT_NAME, OF_ITS_MODEL)

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY|_KEY$", re.IGNORECASE)
"""What is in the names of environment variables that hold one: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
_LONGEST = 40
"""Characters of a model or a set in a name."""


def register() -> None:
    """Make the interpolations known to OmegaConf; again does no harm."""
    OmegaConf.register_new_resolver(DEFAULT_NAME, _default_name, replace=True)
    OmegaConf.register_new_resolver(OF_ITS_MODEL, _of_its_model, replace=True)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(variable: str, *default: Any) -> Any:
    """The environment variable, as ``oc.env`` reads it.

    Raises:
        ValueError: for one that holds a secret, by its name.
    """
    if _SECRET.search(variable):
        raise ValueError(
            f"{variable} holds a secret by its name, and a config is written into records: it may not be interpolated. "
            "What needs it (the hub, W&B) reads it from the environment itself."
        )
    return oc.env(variable, *default)


def _default_name(*, _root_: DictConfig) -> str:
    """``<data>-<backbone>-<peft>``, by the chosen files; the files for any model and any set give theirs."""
    choices = HydraConfig.get().runtime.choices
    parts = {group: str(choices.get(group)) for group in ("data", "backbone", "peft")}
    if parts["backbone"] == "hf":
        parts["backbone"] = folder_name(_given(_root_, "backbone.name_or_path")) or parts["backbone"]
    if parts["data"] == "hub":
        said = (_given(_root_, f"data.{field}") for field in ("id", "config"))
        parts["data"] = "-".join(filter(None, map(folder_name, said))) or parts["data"]
    return "-".join(parts.values())


def _given(config: DictConfig, key: str) -> str | None:
    value = OmegaConf.select(config, key, throw_on_missing=False)
    return value if isinstance(value, str) else None


def folder_name(given: str | None) -> str:
    """The last part of a hub id or path, in the characters that a folder of runs may have; empty if none is left."""
    if given is None:
        return ""
    last = Path(given).expanduser().absolute().resolve().name if given.strip("./") == "" else Path(given).name
    return re.sub(r"[^A-Za-z0-9._+]+", "-", last).strip("-._+")[:_LONGEST].rstrip("-._+")


def _of_its_model(value: Any, *ids: str, _parent_: DictConfig) -> Any:
    """``value`` while the file's own model is trained: its package, or one of the hub's ``ids``; else null."""
    own = _parent_.get("package") is not None or _parent_.get("name_or_path") in ids
    return value if own else None
