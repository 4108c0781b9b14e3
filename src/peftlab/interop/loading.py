"""The code, in the README.md of an exported folder, that loads it as the run had it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.backbones.base import Backbone
from peftlab.backbones.tokenizers import HFTokenizer
from peftlab.backbones.transformer import TransformerConfig

_TAKEN_FOR_GRANTED = ("problem_type", "single_label_classification")


def how_to_load(
    kind: str,
    base: str | None,
    backbone: Backbone,
    fields: Mapping[str, Any],
    config: TransformerConfig,
    *,
    written: bool = False,
) -> str:
    """Code that loads the folder.

    Args:
        kind: ``adapter``, ``trunk`` or ``merged``.
        base: what peft can load the backbone from; None if there is no such thing.
        backbone: of the run.
        fields: of the config, which say what the outputs are.
        config: the backbone's.
        written: whether ``base`` was written together with the folder, with what the run has set in its config.
    """
    if kind == "merged":
        return _merged(backbone, config)
    options = _options(backbone, config, written=written)
    imports = ["from peft import PeftModel"] + (["from safetensors.torch import load_file"] if kind == "trunk" else [])
    classes = ["AutoModel" if kind == "trunk" else _class_of(backbone)]
    classes += ["BitsAndBytesConfig"] if config.quantize else []
    imports += [f"from transformers import {', '.join(classes)}"]
    start = f"base = {base!r}" if base else "base = BASE  # see 'base model' above"
    if kind == "trunk":
        return "\n".join(
            ["import torch", *imports, "", start, *_call("trunk", classes[0], options), *_head(backbone, config)]
        )
    told = {name: repr(value) for name, value in fields.items() if (name, value) != _TAKEN_FOR_GRANTED}
    options = told | options
    lines = [*imports, "", start, *_call("model", classes[0], options)]
    if backbone.head_modules() == ["score"] and not written:
        # Decoders find a text's last token by it, and many of them come without one.
        lines.append(f"model.config.pad_token_id = {backbone.tokenizer.pad_id}  # as in the run")
    lines.append('model = PeftModel.from_pretrained(model, "FOLDER").eval()')
    if backbone.says_next_tokens:
        lines[lines.index(imports[-1])] += ", GenerationConfig"
        lines.append('model.generation_config = GenerationConfig.from_pretrained("FOLDER")  # ends answers as trained')
    return "\n".join(lines)


def _class_of(backbone: Backbone) -> str:
    return "AutoModelForCausalLM" if backbone.says_next_tokens else "AutoModelForSequenceClassification"


def _merged(backbone: Backbone, config: TransformerConfig) -> str:
    cls = _class_of(backbone)
    model = f'model = {cls}.from_pretrained("FOLDER", dtype="{config.dtype}").eval()'
    if not isinstance(backbone.tokenizer, HFTokenizer):
        return f"from transformers import {cls}\n\n{model}"
    return (
        f'from transformers import {cls}, AutoTokenizer\n\n{model}\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )


def _options(backbone: Backbone, config: TransformerConfig, *, written: bool) -> dict[str, str]:
    """Arguments of ``from_pretrained`` as code: which weights of the base, and how they are kept."""
    options = {"dtype": repr(config.dtype)}
    revision = backbone.provenance.get("commit") or config.revision
    if revision is not None and not written:
        options["revision"] = repr(revision)
    if config.quantize is not None:
        kept = f"llm_int8_skip_modules={backbone.head_modules()!r}"
        form = (
            "load_in_8bit=True, llm_int8_threshold=0.0"
            if config.quantize == "int8"
            else f"load_in_4bit=True, bnb_4bit_quant_type={config.quantize!r}, bnb_4bit_use_double_quant=True, "
            f"bnb_4bit_compute_dtype={config.dtype!r}"
        )
        options["quantization_config"] = f"BitsAndBytesConfig({form}, {kept})"
    return options


def _call(name: str, cls: str, options: dict[str, str]) -> list[str]:
    arguments = [f"    {key}={value}," for key, value in options.items()]
    return [f"{name} = {cls}.from_pretrained(", "    base,", *arguments, ")"]


def _head(backbone: Backbone, config: TransformerConfig) -> list[str]:
    head = backbone.head_modules()
    lines = [
        'trunk = PeftModel.from_pretrained(trunk, "FOLDER").eval()',
        'head = load_file("FOLDER/head.safetensors")',
    ]
    if config.pooling != "mean":
        return [*lines, f"# the head's modules: {', '.join(head)}"]
    return [
        *lines,
        "hidden = trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, d)",
        "hidden = hidden[:, -input_ids.shape[1]:]  # without a soft prompt",
        "mask = attention_mask.unsqueeze(-1)  # (B, T, 1)",
        "mean = ((hidden * mask).sum(1) / mask.sum(1)).float()  # the head is in float32",
        f'logits = torch.nn.functional.linear(mean, head["{head[0]}.weight"], head.get("{head[0]}.bias"))',
    ]
