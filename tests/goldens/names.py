"""From the names that tensors had when the goldens were made to those of today."""

from __future__ import annotations


def present_name(method: str, golden_name: str) -> str:
    """Today's name of a tensor of ``method`` (in adapter files and checkpoints) that was called ``golden_name``."""
    return golden_name
