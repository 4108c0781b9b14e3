"""Exchange of adapters with the real HF peft, through files: ours to peft, peft's to us, ours to us."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.backbones.quantize import quantize
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.interop.export import adapter_files
from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.peft.dora import DoRA
from peftlab.peft.ia3 import IA3
from peftlab.peft.imported import ImportedAdapter
from peftlab.peft.layernorm import LayerNormTuning
from peftlab.peft.lora import LoRA
from peftlab.peft.multitask_prompt import MultitaskPrompt
from peftlab.peft.p_tuning import PTuning
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.peft.vera import VeRA
from tests.backbones.tiny_backbones import shake, tiny
from tests.peft.low_rank_oracle import EMBEDDING, FFN, NAMES
from tests.peft.tiny import batch

KINDS = ("bert", "llama")
DECODERS = ("gpt2", "llama")
DOWN = {
    "bert": "layer.1.output.dense",
    "llama": "mlp.down_proj",
}
NORM = {"bert": "LayerNorm", "llama": "input_layernorm"}
N = 5
TOLERANCE = 1e-5


@dataclass
class Case:
    """One method on both sides."""

    ours: Callable[[str], PEFTStrategy]
    theirs: Callable[[str], peft.PeftConfig] | None = None
    call: dict[str, Any] = field(default_factory=dict)
    """What peft's model needs beside ids and mask."""


def _prompt(**more: Any) -> dict[str, Any]:
    return {"num_virtual_tokens": N, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4, **more}


TASK = {"task_ids": torch.ones(4, dtype=torch.long)}
METHODS: dict[str, Case] = {
    "LoRA": Case(
        lambda kind: LoRA(rank=4, alpha=6.0, targets=[*NAMES[kind], FFN[kind]], rank_pattern={FFN[kind]: 2}),
        lambda kind: peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=[*NAMES[kind], FFN[kind]],
            rank_pattern={FFN[kind]: 2},
            alpha_pattern={NAMES[kind][0]: 3},
            use_rslora=True,
        ),
    ),
    "DoRA": Case(
        lambda kind: DoRA(rank=4, alpha=6.0),
        lambda kind: peft.LoraConfig(r=4, lora_alpha=6, target_modules=NAMES[kind], use_dora=True),
    ),
    "AdaLoRA": Case(
        lambda kind: AdaLoRA(rank=2, initial_rank=3, targets=["query", "value"]),
        lambda kind: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=100, target_modules=NAMES[kind]),
    ),
    "IA3": Case(
        lambda kind: IA3(),
        lambda kind: peft.IA3Config(target_modules=[*NAMES[kind], DOWN[kind]], feedforward_modules=[DOWN[kind]]),
    ),
    "VeRA": Case(
        lambda kind: VeRA(rank=6),
        lambda kind: peft.VeraConfig(r=6, target_modules=NAMES[kind]),
    ),
    "LNTuning": Case(
        lambda kind: LayerNormTuning(),
        lambda kind: peft.LNTuningConfig(target_modules=[NORM[kind]]),
    ),
    "prompt": Case(
        lambda kind: PromptTuning(length=N, position="before"),
        lambda kind: peft.PromptTuningConfig(**_prompt()),
    ),
    "prefix": Case(
        # Absolute positions cannot be moved back: the run has to be trained with those of peft.
        lambda kind: PrefixTuning(length=N, hidden=12, position_shift=kind != "llama"),
        lambda kind: peft.PrefixTuningConfig(num_virtual_tokens=N),
    ),
    "P-tuning": Case(
        lambda kind: PTuning(length=N, position="before", encoder="lstm", hidden=12),
        lambda kind: peft.PromptEncoderConfig(**_prompt(encoder_hidden_size=12)),
    ),
    "multitask": Case(
        lambda kind: MultitaskPrompt(length=N, position="before", num_tasks=3, rank=2, task=1),
        lambda kind: peft.MultitaskPromptTuningConfig(**_prompt(num_tasks=3, num_ranks=2)),
        TASK,
    ),
}
"""The ten methods that the format and we have in common."""

VARIANTS: dict[str, Case] = {
    "rsLoRA": Case(
        lambda kind: LoRA(rank=4, rank_stabilized=True, alpha_pattern={"key": 3.0}, targets=["key", FFN[kind]])
    ),
    "PiSSA": Case(lambda kind: LoRA(rank=4, init="pissa")),
    "embedding": Case(
        lambda kind: LoRA(rank=4, targets=["query", "embedding"]),
        lambda kind: peft.LoraConfig(r=4, target_modules=[*NAMES[kind], EMBEDDING[kind]]),
    ),
    "P-tuning, MLP": Case(lambda kind: PTuning(length=N, position="before", encoder="mlp", hidden=12)),
    "P-tuning v2": Case(lambda kind: PTuningV2(length=N, position_shift=kind != "llama")),
    "LNTuning without biases": Case(lambda kind: LayerNormTuning(biases=False)),
}


def base_model(kind: str, *, bits: str = "fp32") -> TransformerBackbone:
    """Always the same weights, large enough for the text to matter, in fp32, bf16 or nf4."""
    backbone = tiny(kind)
    shake(backbone)
    if bits == "nf4":
        quantize(backbone.model, "nf4", keep=backbone.head_modules(), device=torch.device("cpu"))
        backbone.provenance["quantize"] = "nf4"
    if bits == "bf16":
        values, backbone = backbone.state_dict(), tiny(kind, dtype="bfloat16")
        backbone.load_state_dict(values)
    return backbone


def texts(kind: str, case: str) -> tuple[Tensor, Tensor]:
    """A padded batch; none where peft's decoders classify from the padding (soft prompts)."""
    ids, mask = batch()
    ids = ids * mask
    if kind in DECODERS and case.startswith(("prompt", "P-tuning", "multitask")) and case != "P-tuning v2":
        ids, mask = ids[:, :9], mask[:, :9]
    return ids, mask


def randomise(model: torch.nn.Module) -> None:
    """Move everything that trains."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def trained(kind: str, strategy: PEFTStrategy, *, bits: str = "fp32") -> Adapter:
    """The adapter of ``strategy`` in our model, everything that trains moved away from its start."""
    adapter = attach(base_model(kind, bits=bits), strategy, seed=1)
    randomise(adapter.backbone)
    adapter.backbone.eval()
    return adapter


def logits_of(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = backbone(ids, mask)
    return logits


def write(adapter: Adapter, folder: Path, **more: Any) -> Path:
    """Our folder."""
    folder.mkdir(parents=True)
    _, files = adapter_files(adapter, **more)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def peft_loads(kind: str, folder: Path) -> Any:
    """peft's model with the adapter of ``folder``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on Conv1D, embeddings
        return peft.PeftModel.from_pretrained(copy.deepcopy(base_model(kind).model), folder).eval()


def peft_logits(model: Any, ids: Tensor, mask: Tensor, call: dict[str, Any]) -> Tensor:
    model.config.use_cache = True  # peft's prefix is a cache
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **call).logits


def peft_saves(kind: str, config: peft.PeftConfig, folder: Path) -> Any:
    """peft's model, randomised, and its folder."""
    config.task_type = "SEQ_CLS"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(0)
        model = peft.get_peft_model(base_model(kind).model, config)
        randomise(model)
        model.eval().save_pretrained(folder)
    return model


def we_import(
    kind: str, folder: Path, *, seed: int = 9, bits: str = "fp32", **fields: Any
) -> tuple[Adapter, ImportedAdapter]:
    """The adapter of ``folder`` in our model, whose head was another one; and how it was imported."""
    strategy = ImportedAdapter(path=str(folder), **fields)
    backbone = base_model(kind, bits=bits)
    with torch.no_grad():
        for _, parameter in backbone.head_parameters():
            parameter.add_(1.0)
    adapter = attach(backbone, strategy, seed=seed)
    backbone.eval()
    return adapter, strategy


def ours_to_peft(name: str, case: Case, kind: str, folder: Path) -> float:
    """Largest difference of the logits after our folder was loaded by peft."""
    adapter = trained(kind, case.ours(kind))
    ids, mask = texts(kind, name)
    mine = logits_of(adapter.backbone, ids, mask)
    write(adapter, folder)
    theirs = peft_logits(peft_loads(kind, folder), ids, mask, case.call)
    _require_matters(mine, kind, ids, mask)
    return float((mine - theirs).abs().max())


def peft_to_ours(name: str, case: Case, kind: str, folder: Path) -> float:
    """Largest difference of the logits after peft's folder was imported by us."""
    assert case.theirs is not None
    model = peft_saves(kind, case.theirs(kind), folder)
    ids, mask = texts(kind, name)
    theirs = peft_logits(model, ids, mask, case.call)
    adapter, _ = we_import(kind, folder, changes={"task": 1} if name == "multitask" else None)
    _require_matters(theirs, kind, ids, mask)
    return float((logits_of(adapter.backbone, ids, mask) - theirs).abs().max())


def ours_to_ours(name: str, case: Case, kind: str, folder: Path) -> float:
    """Largest difference of the logits after our folder was imported by us."""
    adapter = trained(kind, case.ours(kind))
    ids, mask = texts(kind, name)
    write(adapter, folder)
    again, _ = we_import(kind, folder, changes={"task": 1} if name == "multitask" else None)
    return float((logits_of(adapter.backbone, ids, mask) - logits_of(again.backbone, ids, mask)).abs().max())


def _require_matters(logits: Tensor, kind: str, ids: Tensor, mask: Tensor) -> None:
    assert (logits - logits_of(base_model(kind), ids, mask)).abs().max() > 1e-2, "the adapter must matter"


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")
