"""A finished run as a folder of HF peft, or of ``transformers`` with the adapter merged."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.interop.card import CARD_FILE, base_name, card, titles
from peftlab.interop.hf_model import (
    GENERATION_FILE,
    generation_fields,
    merged_backbone,
    require_pooling,
    save_model,
    transformer_of,
    untouched_backbone,
)
from peftlab.interop.loading import how_to_load
from peftlab.interop.one_task import narrow_to_task, record_of_task
from peftlab.interop.whole_folder import require_free, whole_folder
from peftlab.objectives.base import objective as known
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import written
from peftlab.peft.hf.files import CONFIG_FILE, HEAD_FILE, WEIGHTS_FILE
from peftlab.peft.hf.folder import as_json, as_safetensors
from peftlab.peft.hf.format import MODEL, PROMPT_MODEL, HFAdapter, plain_float
from peftlab.peft.hf.prefix import require_in_window
from peftlab.records.folder import RunFolder
from peftlab.runs.assemble import Assembled, reassemble
from peftlab.runs.evaluate import objective_of


def export_adapter(
    folder: RunFolder,
    config: RunConfig,
    record: dict[str, Any],
    to: Path,
    *,
    base: Path | None = None,
    trunk_only: bool = False,
    task: str | None = None,
) -> HFAdapter:
    """Write the run's adapter and head in HF peft's format.

    Args:
        folder: the run's.
        config: the run's.
        record: the run's.
        to: the folder to write; it must not be there yet, or be empty.
        base: a second folder, for the frozen backbone; the adapter then names it as its base.
        trunk_only: write the adapter for ``AutoModel``, and the head as tensors beside it.
        task: the one to write, of a run on data of several tasks.

    Raises:
        PeftlabError: if the format cannot say what the run computes, or the folder cannot be written.
    """
    backbone_config = transformer_of(config)
    if not trunk_only:
        require_pooling(backbone_config, "export")
    if backbone_config.from_run is not None and base is None:
        raise PeftlabError(
            f"this run started from the weights of {backbone_config.from_run}: on the original backbone its adapter "
            "would compute something else. Give --base FOLDER as well, which writes the backbone that it belongs to."
        )
    for path, key in ((to, "--to"), (base, "--base")):
        if path is not None:
            require_free(path, key)
    assembled, facts, record = _reassembled(folder, config, record, task)
    if trunk_only and assembled.backbone.says_next_tokens:
        raise PeftlabError("--trunk-only writes a new head apart, and a language model has its own. Leave it out.")
    named = base_name(backbone_config, base)
    adapter, files = adapter_files(
        assembled.adapter,
        base=named,
        revision=None if base is not None else backbone_config.revision,
        trunk_only=trunk_only,
        longest=facts["max_length"],
    )
    kind = "trunk" if trunk_only else "adapter"
    how = how_to_load(
        kind,
        named,
        assembled.backbone,
        known(objective_of(facts)).hf_config(facts["label_names"]),
        backbone_config,
        written=base is not None,
    )
    readme = card(
        config,
        facts,
        record,
        title=titles(assembled.backbone)[kind],
        base=named,
        notes=adapter.notes,
        how=how,
        tokenizer=assembled.backbone.tokenizer,
    )
    files[CARD_FILE] = readme.encode()
    if assembled.backbone.says_next_tokens:
        files[GENERATION_FILE] = as_json(generation_fields(config, assembled.backbone))
    with ExitStack() as stack:
        if base is not None:
            labels = facts["label_names"]
            plain = untouched_backbone(folder, config, labels)
            save_model(
                plain,
                stack.enter_context(whole_folder(base, "--base")),
                known(objective_of(facts)).hf_config(labels),
                generation_fields(config, plain),
            )
        into = stack.enter_context(whole_folder(to, "--to"))
        for name, content in files.items():
            (into / name).write_bytes(content)
    return adapter


def adapter_files(
    own: Adapter,
    *,
    base: str | None = None,
    revision: str | None = None,
    trunk_only: bool = False,
    longest: int = 0,
) -> tuple[HFAdapter, dict[str, bytes]]:
    """The adapter ``own`` in the format, and the content of each file that says it, by the file's name.

    Args:
        own: with the model that it stands in.
        base: what the adapter names as its base.
        revision: of the base, on the hub.
        trunk_only: for ``AutoModel``, with the head in a file of its own.
        longest: tokens of the longest text that the adapter is to compute the same for.

    Raises:
        PeftlabError: if the format cannot say it.
    """
    backbone, adapter = own.backbone, written(own)
    if adapter.config["peft_type"] == "PREFIX_TUNING":
        require_in_window(backbone, adapter.config["num_virtual_tokens"], longest, "this run has")
    config = adapter.config | {
        "task_type": "FEATURE_EXTRACTION" if trunk_only else "CAUSAL_LM" if backbone.says_next_tokens else "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
    }
    head = _head(backbone)
    if trunk_only:
        adapter = for_trunk(HFAdapter(config, adapter.tensors, adapter.notes), str(backbone.model.base_model_prefix))
    else:
        prefix = PROMPT_MODEL if adapter.is_prompt else MODEL
        tensors = adapter.tensors | {f"{prefix}{name}": tensor for name, tensor in head.items()}
        adapter = HFAdapter(config | {"modules_to_save": backbone.head_modules() or None}, tensors, adapter.notes)
    if quantized := backbone.provenance.get("quantize"):
        adapter.notes.append(
            f"It was trained beside a backbone in {quantized} (bitsandbytes): load the base model in the same form for "
            "the same logits."
        )
    files = {CONFIG_FILE: as_json(adapter.config), WEIGHTS_FILE: as_safetensors(adapter.tensors)}
    return adapter, files | ({HEAD_FILE: as_safetensors(head)} if trunk_only else {})


def _reassembled(
    folder: RunFolder, config: RunConfig, record: dict[str, Any], task: str | None
) -> tuple[Assembled, dict[str, Any], dict[str, Any]]:
    """The run's model, adapter.json and record; of the one task, if there are several."""
    assembled, facts = reassemble(folder, config)
    if task is None:
        return assembled, facts, record
    return assembled, narrow_to_task(assembled, facts, task), record_of_task(record, task)


def export_merged(
    folder: RunFolder, config: RunConfig, record: dict[str, Any], to: Path, *, task: str | None = None
) -> list[str]:
    """Write the run, or its ``task``, as a plain ``transformers`` classifier with its adapter merged.

    Returns:
        What to know of its precision.

    Raises:
        PeftlabError: if the method cannot be merged, or ``transformers`` would compute something else.
    """
    backbone_config = transformer_of(config)
    require_pooling(backbone_config, "--merged")
    require_free(to, "--to")
    assembled, facts, record = _reassembled(folder, config, record, task)
    labels = facts["label_names"]
    merged, notes = merged_backbone(folder, config, assembled, labels)
    how = how_to_load("merged", None, merged, {}, backbone_config)
    named = base_name(backbone_config, None)
    text = card(
        config,
        facts,
        record,
        title=titles(merged)["merged"],
        base=named,
        notes=notes,
        how=how,
        tokenizer=merged.tokenizer,
    )
    with whole_folder(to, "--to") as into:
        save_model(merged, into, known(objective_of(facts)).hf_config(labels), generation_fields(config, merged))
        (into / CARD_FILE).write_text(text, encoding="utf-8")
    return notes


def for_trunk(adapter: HFAdapter, prefix: str) -> HFAdapter:
    """The same adapter for the model without its classification class, whose names lack ``prefix``."""

    def inner(name: str) -> str:
        return name.removeprefix(f"{prefix}.").removeprefix(f"{re.escape(prefix)}\\.")

    config = dict(adapter.config)
    for key in ("target_modules", "feedforward_modules"):
        if key in config:
            config[key] = [inner(name) for name in config[key]]
    for key in ("rank_pattern", "alpha_pattern"):
        if key in config:
            config[key] = {inner(name): value for name, value in config[key].items()}
    tensors = {
        f"{MODEL}{inner(name.removeprefix(MODEL))}" if name.startswith(MODEL) else name: tensor
        for name, tensor in adapter.tensors.items()
    }
    return HFAdapter(config, tensors, adapter.notes)


def _head(backbone: Backbone) -> dict[str, Tensor]:
    """Every tensor of the head, by its name in the model."""
    return {
        name: plain_float(tensor)
        for name, tensor in backbone.model.state_dict().items()
        if any(name.startswith(f"{part}.") for part in backbone.head_modules())
    }
