"""adapter.safetensors and adapter.json: what was trained, and what it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from peftlab.backbones.base import Backbone
from peftlab.errors import RunError
from peftlab.files import write_atomically
from peftlab.peft.adapter import Adapter
from peftlab.peft.legacy import FORMAT, present_state
from peftlab.runs.folder import RunFolder


def fingerprint(module: nn.Module, *, skip: Collection[str] = (), trainable: bool = True) -> str:
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


def frozen_fingerprint(adapter: Adapter) -> str:
    """The fingerprint of everything in the model that training must not change, the adapter's frozen tensors too."""
    running = set(map(id, adapter.running_state()))
    backbone = adapter.backbone
    skip = {name for name, tensor in backbone.state_dict(keep_vars=True).items() if id(tensor) in running}
    return fingerprint(backbone, skip=skip, trainable=False)


def save_adapter(folder: RunFolder, adapter: Adapter, facts: dict[str, Any]) -> dict[str, str | int]:
    """Write both files, and the backbone's small files (a vocabulary).

    Returns:
        size and sha256 of adapter.safetensors.
    """
    data = adapter_bytes(adapter)
    write_atomically(folder.adapter, data)
    for name, content in adapter.backbone.files().items():
        write_atomically(folder.path / name, content)
    write_atomically(folder.adapter_facts, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def adapter_bytes(adapter: Adapter) -> bytes:
    """The content of adapter.safetensors: every tensor, and in the header which of them did not train."""
    state = {name: tensor.cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    header = {"format": "pt", "adapter_format": str(FORMAT), "frozen": json.dumps(sorted(adapter.frozen_state()))}
    return _in_one_order(safetensors.torch.save(state, metadata=header))


def _in_one_order(data: bytes) -> bytes:
    """The same file with the entries of its header sorted: safetensors writes them in another order every time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_adapter(folder: RunFolder, adapter: Adapter) -> None:
    """Load adapter.safetensors into a rebuilt model with its adapter, not trained yet.

    Raises:
        RunError: if a file is missing or damaged.
    """
    try:
        with safetensors.safe_open(folder.adapter, "pt") as file:
            written = int((file.metadata() or {}).get("adapter_format", 1))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"cannot read {folder.adapter}: {error}.") from error
    adapter.load_state_dict(present_state(state, written, adapter.methods()))


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
