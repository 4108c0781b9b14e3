"""An adapter in any model as a folder of HF peft.

Runs are exported with a card and the base model's name (:mod:`peftlab.interop.export`); here is what an adapter that
was attached from Python can say of itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor, nn

from peftlab.files import write_atomically
from peftlab.peft.hf.codec import written
from peftlab.peft.hf.files import CONFIG_FILE, WEIGHTS_FILE
from peftlab.peft.hf.format import MODEL, PROMPT_MODEL, plain_float

if TYPE_CHECKING:
    from peftlab.peft.adapter import Adapter

_TASKS = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
)
"""Ends of class names in ``transformers``, and HF peft's word for what they do."""

_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Task → names of the heads that HF peft takes for a part of the adapter."""


def task_type(model: nn.Module) -> str | None:
    """HF peft's ``task_type`` for a model of this class: by its name, the trunk's, or None outside of transformers."""
    name = type(model).__name__
    if found := next((task for ending, task in _TASKS if name.endswith(ending)), None):
        return found
    return "FEATURE_EXTRACTION" if getattr(model, "base_model", None) is model else None


def save_hf_peft(adapter: Adapter, folder: Path) -> list[str]:
    """Write adapter_config.json and adapter_model.safetensors, with what trains beside the adapter.

    Returns:
        what to know when it is loaded.

    Raises:
        PeftlabError: if the format cannot say it, or the folder cannot be written.
    """
    model, said = adapter.model, written(adapter)
    task, beside = task_type(model), list(adapter.beside)
    # HF peft saves, and so wants, the head of these whether it has trained or not.
    beside += [name for name in _HEADS.get(task or "", ()) if hasattr(model, name) and name not in beside]
    prefix = PROMPT_MODEL if said.is_prompt else MODEL
    head = {
        f"{prefix}{name}": plain_float(tensor)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and any(name.startswith(f"{part}.") for part in beside)
    }
    config = said.config | {
        "task_type": task,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "inference_mode": True,
        "modules_to_save": beside or None,
    }
    write_atomically(folder / WEIGHTS_FILE, as_safetensors(said.tensors | head))
    write_atomically(folder / CONFIG_FILE, as_json(config))
    return said.notes


def as_safetensors(tensors: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    data: bytes = safetensors.torch.save({k: tensors[k] for k in sorted(tensors)}, metadata={"format": "pt"})
    return data


def as_json(values: dict[str, Any]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
