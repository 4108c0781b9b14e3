"""What jobs would each import and compile again as they load a model: the fork server does it once.

Some of transformers' modules ask torch for the accelerator as they are imported, after which no fork can use one. So
this is for torch without any.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

import torch


def without_accelerators() -> bool:
    """Whether this torch was built for CPUs alone."""
    built = (torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None))
    return sys.platform == "linux" and not any(built)


if without_accelerators():
    importlib.import_module("transformers.models.bert.modeling_bert")
    # How weights of all types are renamed, in a thousand patterns.
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")
