"""adapter.safetensors and adapter.json of a run: what was trained, and what it belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from peftlab.backbones.base import Backbone
from peftlab.errors import RunError
from peftlab.files import write_atomically
from peftlab.peft.adapter import Adapter
from peftlab.peft.saving import adapter_bytes, fingerprint, load_tensors, quick_fingerprint_of
from peftlab.reading import Unreadable, read_json
from peftlab.records.folder import RunFolder

__all__ = [
    "adapter_bytes",
    "backbone_fingerprint",
    "fingerprint",
    "frozen_fingerprint",
    "load_adapter",
    "read_facts",
    "save_adapter",
]


def backbone_fingerprint(backbone: Backbone) -> str:
    """The fingerprint of a freshly built backbone without its (new) head."""
    return fingerprint(backbone.model, skip={name for name, _ in backbone.head_parameters()})


def frozen_fingerprint(adapter: Adapter) -> str:
    """A quick fingerprint of everything that training must not change, the adapter's frozen tensors too."""
    running = set(map(id, adapter.running_state()))
    return quick_fingerprint_of(
        {
            name: tensor
            for name, tensor in adapter.backbone.state_dict(keep_vars=True).items()
            if id(tensor) not in running and not getattr(tensor, "requires_grad", False)
        }
    )


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


def load_adapter(folder: RunFolder, adapter: Adapter) -> None:
    """Load adapter.safetensors into a rebuilt model with its adapter, not trained yet.

    Raises:
        RunError: if a file is missing or damaged.
    """
    load_tensors(folder.adapter, adapter)


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """adapter.json.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        facts = read_json(folder.adapter_facts)
    except (OSError, Unreadable) as error:
        raise RunError(f"cannot read {folder.adapter_facts}: {error}.") from error
    if not isinstance(facts, dict) or not facts.keys() >= _NEEDED:
        raise RunError(f"{folder.adapter_facts} is damaged: it lacks what peftlab writes there.")
    return facts


_NEEDED = {"run", "method", "backbone_fingerprint", "label_names"}
