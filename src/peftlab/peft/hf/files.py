"""The two files of a folder in HF peft's format. Imports no torch: what is missing is found in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.errors import PeftlabError
from peftlab.peft.hf.config import require_possible
from peftlab.reading import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
"""The classification head, where `peftlab export --trunk-only` has written it beside the adapter."""


def adapter_files(given: str | None) -> list[Path]:
    """The files of the folder ``given`` as ``peft.path``.

    Raises:
        PeftlabError: if there is no such folder, or it lacks one of them.
    """
    if given is None:
        raise PeftlabError(
            "peft.path is needed: the folder of an adapter that HF peft (save_pretrained) or `peftlab export` has "
            "written."
        )
    path = Path(given).expanduser()
    if not path.is_dir():
        raise PeftlabError(
            f"peft.path={given} is no folder. Give one that holds {CONFIG_FILE} and {WEIGHTS_FILE}; an adapter on the "
            "hub is fetched with `hf download <owner>/<name> --local-dir <folder>`."
        )
    read_config(path)
    return [path / CONFIG_FILE, weights_file(path), *(file for file in [path / HEAD_FILE] if file.is_file())]


def read_config(path: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        PeftlabError: if it is missing, damaged, says no ``peft_type``, or gives an option a value that it cannot have.
    """
    file = path / CONFIG_FILE
    try:
        config = read_json(file)
    except FileNotFoundError as error:
        raise PeftlabError(f"peft.path={path} has no {CONFIG_FILE}: it is no folder of HF peft.") from error
    except (OSError, ValueError) as error:
        raise PeftlabError(f"peft.path: cannot read {file}: {error}. It is damaged: copy it anew.") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise PeftlabError(f"peft.path: {file} says no peft_type: it is no config of HF peft.")
    require_possible(config, file)
    return config


def weights_file(path: Path) -> Path:
    """The safetensors file of a folder.

    Raises:
        PeftlabError: if there is none, or only a pickled one.
    """
    file = path / WEIGHTS_FILE
    if file.is_file():
        return file
    if (path / "adapter_model.bin").is_file():
        raise PeftlabError(
            f"peft.path={path} has only adapter_model.bin, a pickle, which can run code when it is read. Where you "
            "trust it, load it with HF peft and save it again (safe_serialization=True is the default)."
        )
    raise PeftlabError(f"peft.path={path} has no {WEIGHTS_FILE}: the weights are missing.")
