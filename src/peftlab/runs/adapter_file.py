"""adapter.safetensors and adapter.json: what was trained, and what it belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from peftlab.backbones.base import Backbone
from peftlab.errors import RunError
from peftlab.files import write_atomically
from peftlab.peft.base import PEFTStrategy
from peftlab.runs.folder import RunFolder


def fingerprint(module: nn.Module, *, skip: set[str] = frozenset(), trainable: bool = True) -> str:  # type: ignore[assignment]
    """sha256 over the names, types, shapes and bytes of parameters and persistent buffers.

    Args:
        module: whose tensors to hash.
        skip: names left out.
        trainable: also hash parameters that require a gradient.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        # bitsandbytes adds the quantisation state as further entries; it is part of the weight.
        if name in skip or not hasattr(tensor, "shape") or (tensor.requires_grad and not trainable):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(_bytes_dtype()).numpy().data if data.numel() else b"")
    return digest.hexdigest()


def _bytes_dtype() -> Any:
    import torch

    return torch.uint8


def backbone_fingerprint(backbone: Backbone) -> str:
    """The fingerprint of a freshly built backbone without its (new) head."""
    return fingerprint(backbone.model, skip={name for name, _ in backbone.head_parameters()})


def save_adapter(
    folder: RunFolder, strategy: PEFTStrategy, backbone: Backbone, facts: dict[str, Any]
) -> dict[str, str | int]:
    """Write both files, and the backbone's small files (a vocabulary).

    Returns:
        size and sha256 of adapter.safetensors.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in strategy.adapter_state(backbone).items()}
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    write_atomically(folder.adapter, data)
    for name, content in backbone.files().items():
        write_atomically(folder.path / name, content)
    write_atomically(folder.adapter_facts, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def load_adapter(folder: RunFolder, strategy: PEFTStrategy, backbone: Backbone) -> None:
    """Load adapter.safetensors into a rebuilt, injected backbone.

    Raises:
        RunError: if a file is missing or damaged.
    """
    try:
        state = safetensors.torch.load_file(folder.adapter)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {folder.adapter}: {error}.") from error
    strategy.load_adapter_state(backbone, state)


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """adapter.json.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(folder.adapter_facts.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {folder.adapter_facts}: {error}.") from error
    return facts
