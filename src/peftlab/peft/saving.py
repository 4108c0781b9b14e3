"""An adapter as files: adapter.safetensors with adapter.json, and the fingerprint of the weights that it belongs to.

A run's folder has the two files with what its config says beside (:mod:`peftlab.runs.adapter_file`); an adapter that
was attached from Python is saved with what is needed to attach it to the same model again (:func:`save`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import safetensors
import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn

from peftlab.class_names import stable_name
from peftlab.errors import PeftlabError, RunError
from peftlab.files import write_atomically
from peftlab.peft.legacy import FORMAT, present_state
from peftlab.peft.names import clean_name

if TYPE_CHECKING:
    from peftlab.peft.adapter import Adapter

ADAPTER_FILE = "adapter.safetensors"
FACTS_FILE = "adapter.json"


class Digest(Protocol):
    """What ``hashlib`` and ``xxhash`` make."""

    def update(self, data: Any, /) -> None:
        """Take bytes."""
        ...

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        ...


def fingerprint(module: nn.Module, *, skip: Collection[str] = ()) -> str:
    """sha256 over the names, types, shapes and bytes of parameters and persistent buffers.

    Args:
        module: whose tensors to hash.
        skip: names left out.
    """
    state = module.state_dict(keep_vars=True)
    return fingerprint_of({name: tensor for name, tensor in state.items() if name not in skip})


def quick_fingerprint_of(tensors: Mapping[str, Any]) -> str:
    """XXH3 over the same: tells in this process, and nowhere else, whether they have changed; 20 times as fast."""
    return fingerprint_of(tensors, xxhash.xxh3_128())


def fingerprint_of(tensors: Mapping[str, Any], digest: Digest | None = None) -> str:
    """:func:`fingerprint` over ``tensors`` by their names; what is no tensor is left out."""
    digest = hashlib.sha256() if digest is None else digest
    for name, tensor in sorted(tensors.items()):
        # bitsandbytes adds the quantisation state as further entries; it is part of the weight.
        if not hasattr(tensor, "shape"):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()


def adapter_bytes(adapter: Adapter) -> bytes:
    """The content of adapter.safetensors: every tensor, and in the header which of them did not train."""
    state = {name: tensor.cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    frozen = sorted(name for name, tensor in adapter.tensors().items() if not tensor.requires_grad)
    header = {"format": "pt", "adapter_format": str(FORMAT), "frozen": json.dumps(frozen)}
    return _in_one_order(safetensors.torch.save(state, metadata=header))


def _in_one_order(data: bytes) -> bytes:
    """The same file with the entries of its header sorted: safetensors writes them in another order every time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_tensors(file: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of an adapter.safetensors, and the number of its format.

    Raises:
        RunError: if the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(file, "pt") as opened:
            written = int((opened.metadata() or {}).get("adapter_format", 1))
            return {name: opened.get_tensor(name) for name in opened.keys()}, written  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"cannot read {file}: {error}.") from error


def load_tensors(file: Path, adapter: Adapter) -> None:
    """Load an adapter.safetensors into ``adapter``, which was built as the one that was saved.

    Raises:
        RunError: if the file is missing or damaged.
        PeftlabError: if it does not fit.
    """
    state, written = read_tensors(file)
    adapter.load_state_dict(present_state(state, written, adapter.methods()))


def save(adapter: Adapter, folder: Path) -> None:
    """Write adapter.safetensors, and adapter.json with the method, its fields and the fingerprint of what is frozen.

    Raises:
        PeftlabError: if the folder is a run's, or cannot be written.
    """
    if (folder / "record.json").exists():
        raise PeftlabError(
            f"'{folder}' is the folder of a run, whose record knows the hash of its own adapter. Save elsewhere."
        )
    digest, left_out = frozen_fingerprint_and_rest(adapter)
    data = adapter_bytes(adapter)
    facts = {
        "format": FORMAT,
        "method": adapter.strategy.name,
        "peft": {"_target_": stable_name(type(adapter.strategy)), **asdict(adapter.strategy)},
        "model": type(adapter.model).__name__,
        "architecture": adapter.backbone.architecture,
        "trains_beside": list(adapter.beside),
        "backbone_fingerprint": digest,
        "fingerprint_without": left_out,
        "adapter_sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomically(folder / ADAPTER_FILE, data)
    write_atomically(folder / FACTS_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def frozen_fingerprint_and_rest(adapter: Adapter) -> tuple[str, list[str]]:
    """The fingerprint of the clean model without what trains, and the names of what was left out.

    A clean model has the same fingerprint: ``fingerprint(model, skip=names)``.
    """
    model = adapter.model
    inside = tuple(f"{name}." for name in adapter.beside)
    own = {id(tensor) for tensor in (*adapter.tensors().values(), *adapter.running_state())} | adapter.own_ids()
    trained = set(adapter.own_names())
    frozen: dict[str, Any] = {}
    left_out: set[str] = {name for name in model.state_dict() if name.startswith(inside)} if inside else set()
    for live, tensor in model.state_dict(keep_vars=True).items():
        name = clean_name(model, live)
        if name in trained or name in left_out:
            left_out.add(name)
        elif id(tensor) not in own:
            frozen[name] = tensor
        elif ".deltas." not in name and not any(name.startswith(f"{part}.") for part in adapter.modules()):
            left_out.add(name)  # tied to what trains, under a further name
    return fingerprint_of(frozen), sorted(left_out)
