"""``peftlab export RUN --to FOLDER``: a finished run as a folder of HF peft, or of transformers with --merged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peftlab.commands.task_option import require_task
from peftlab.errors import ConfigError
from peftlab.interop.whole_folder import require_free
from peftlab.records.folder import finished_run
from peftlab.terminal import say

DESCRIPTION = """Write a finished run's adapter and classification head in the checkpoint format of Hugging Face peft
(adapter_config.json, adapter_model.safetensors, README.md), which PeftModel.from_pretrained loads. What the format
cannot say is refused with the reason."""


def main(arguments: Sequence[str]) -> int:
    """Write the folder, or nothing."""
    parser = argparse.ArgumentParser("peftlab export", description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run folder: outputs/<name>/<key>")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="folder to write; new, or empty")
    parser.add_argument(
        "--merged", action="store_true", help="merge the adapter and write a plain transformers model instead"
    )
    parser.add_argument(
        "--trunk-only",
        action="store_true",
        help="write the adapter for AutoModel and the head as tensors beside it (for backbone.pooling=mean)",
    )
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="also write the frozen backbone as a transformers folder, as the adapter's base",
    )
    parser.add_argument("--task", metavar="NAME", help="the task to write, of a run on data of several tasks")
    given = parser.parse_args(list(arguments))
    if given.merged and (given.trunk_only or given.base):
        raise ConfigError("--merged writes one whole model: it cannot be given with --trunk-only or --base.")
    to = Path(given.to).expanduser().resolve()
    base = None if given.base is None else Path(given.base).expanduser().resolve()
    if base is not None and (base == to or base in to.parents or to in base.parents):
        raise ConfigError(f"--base {base} and --to {to} must be two folders beside each other.")
    require_free(to, "--to")
    folder, config, record = finished_run(given.run)
    require_task(config, given.run, given.task)
    from peftlab.interop.export import export_adapter, export_merged

    if given.merged:
        notes = export_merged(folder, config, record, to, task=given.task)
        learned = config.data.what_is_learned()
        what, cls = (
            ("language model", "CausalLM") if learned.head == "own" else ("classifier", "SequenceClassification")
        )
        say(f"{to}: the merged {what}, for AutoModelFor{cls}.from_pretrained")
    else:
        adapter = export_adapter(folder, config, record, to, base=base, trunk_only=given.trunk_only, task=given.task)
        elements, notes = sum(tensor.numel() for tensor in adapter.tensors.values()), adapter.notes
        say(f"{to}: {adapter.config['peft_type']}, {len(adapter.tensors)} tensors, {elements:,} elements")
    for note in notes:
        say(f"note: {note}")
    return 0
