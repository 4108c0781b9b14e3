"""From the names that tensors had when the goldens were made to those of today."""

from __future__ import annotations

from peftlab.peft import legacy


def present_name(method: str, golden_name: str) -> str:
    """Today's name of a tensor of ``method`` (in adapter files and checkpoints) that was called ``golden_name``."""
    methods = list(legacy.NAMES) if method in ("compose", "import") else [method]
    return legacy.present_name(golden_name, methods)
