"""From config to a model: built for training, or rebuilt from a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.config import BackboneConfig
from peftlab.backbones.head_labels import match_head
from peftlab.backbones.isolation import require_isolation
from peftlab.backbones.padding import require_padding_changes_nothing
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.too_long import within_length
from peftlab.errors import BackboneError, PeftlabError, RunError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.gradients import TrainingLosses
from peftlab.peft.surgery import dequantize, is_conv1d
from peftlab.records.folder import RunFolder, finished_run
from peftlab.records.identity import content_sha256
from peftlab.records.integrity import require_as_recorded
from peftlab.runs.adapter_file import backbone_fingerprint, load_adapter, read_facts
from peftlab.runs.first_batches import first_losses
from peftlab.training.compiled import compile_backbone
from peftlab.training.module import TrainingModule
from peftlab.training.precision import into_precision


@dataclass
class Assembled:
    """An adapter in its backbone, and the fingerprint that the backbone had before."""

    adapter: Adapter
    fingerprint: str

    @property
    def backbone(self) -> Backbone:
        """The model that the adapter stands in."""
        return self.adapter.backbone


def assemble(config: RunConfig, splits: Splits, *, resumes: bool = False) -> Assembled:
    """Build the backbone, check that the texts fit it, and put the method's adapter into it.

    Args:
        config: the run's.
        splits: its data.
        resumes: what the method started from is in the checkpoint that is about to be loaded.
    """
    _require_sources_as_recorded(config)
    if config.backbone.from_run is None:
        backbone = build_backbone(config, splits.label_names, train_texts=splits.train.texts)
        match_head(backbone, splits.label_names, seed=config.seed)
    else:
        backbone = start_from_run(config, splits.label_names)
    require_positions(config, backbone)
    require_padding_changes_nothing(backbone)
    batches = None
    if config.peft.starts_from_data() and not resumes:
        batches = first_losses(config, backbone, within_length(config.data, splits, backbone.tokenizer))
    assembled = _attached(config, backbone, batches=batches, is_loaded=resumes)
    _require_prompts_fit(config, backbone, len(splits.tasks))
    if config.data.packs():
        require_isolation(backbone)
    assembled.adapter.load_source(assembled.fingerprint)
    into_precision(assembled.backbone, config.trainer.precision)
    return assembled


def require_positions(config: RunConfig, backbone: Backbone) -> None:
    """Refuse texts, or answers that may grow, beyond the positions of the model, before anything is trained.

    Raises:
        BackboneError: naming the keys and the limit.
    """
    if (generation := config.data.generation()) is not None:
        longest, new = config.data.max_length + generation.max_new_tokens, generation.max_new_tokens
        try:
            backbone.check_length(longest, extra_tokens=config.peft.extra_tokens())
        except BackboneError:
            raise BackboneError(
                f"data.max_length={config.data.max_length} and data.generate.max_new_tokens={new} are "
                f"{longest} tokens together, more than this {backbone.architecture} has positions for. Lower one of "
                "them."
            ) from None
    backbone.check_length(config.data.max_length, extra_tokens=config.peft.extra_tokens())


def _require_sources_as_recorded(config: RunConfig) -> None:
    """Refuse files of an earlier run, which the method starts from, that are not the ones which that run wrote."""
    for path in dict.fromkeys(file.parent for file in config.peft.files()):
        if (record := RunFolder(path).read_record()) is not None and record["status"] == "finished":
            require_as_recorded(path, record)


def build_backbone(config: RunConfig, label_names: Sequence[str], **more: Any) -> Backbone:
    """The backbone of ``config`` with the head that its objective wants, from the run's seed.

    Args:
        config: the run's.
        label_names: what the outputs of a new head stand for.
        more: goes to :meth:`BackboneConfig.build`.
    """
    learned = config.data.what_is_learned()
    if learned.head == "own":
        more["head"] = "own"
    return config.backbone.build(learned.head_size(label_names), seed=config.seed, **more)


def _require_prompts_fit(config: RunConfig, backbone: Backbone, tasks: int) -> None:
    """Refuse prompts of several tasks where a row's task would have none, or another one's."""
    prompts = backbone.task_prompts
    if tasks and prompts not in (1, tasks):
        raise PeftlabError(
            f"peft={config.peft.name} has prompts for {prompts} tasks, and the data has {tasks} of them."
        )
    if prompts > 1 and config.measure_forgetting:
        raise PeftlabError(
            f"measure_forgetting=true: peft={config.peft.name} reads each row with the prompt of its task, and the "
            "earlier run's tasks have none here. Set measure_forgetting=false, or choose a method without such prompts."
        )


def reassemble(folder: RunFolder, config: RunConfig) -> tuple[Assembled, dict[str, Any]]:
    """Rebuild a finished run's model from its folder, and read what adapter.json says.

    Raises:
        RunError: if the backbone found now is not the one that was trained on.
    """
    assembled, facts = as_it_began(folder, config)
    load_adapter(folder, assembled.adapter)
    into_precision(assembled.backbone, config.trainer.precision)
    return assembled, facts


def as_it_began(folder: RunFolder, config: RunConfig) -> tuple[Assembled, dict[str, Any]]:
    """A finished run's model before what it trained is loaded; see :func:`reassemble`."""
    facts = read_facts(folder)
    recorded = (folder.read_record() or {}).get("backbone", {})
    if config.backbone.from_run is None:
        config = replace(config, backbone=_at_its_commit(config.backbone, recorded))
        backbone = build_backbone(config, facts["label_names"], run_folder=folder.path)
        match_head(backbone, facts["label_names"], seed=config.seed)
    else:
        backbone = start_from_run(config, facts["label_names"])
    assembled = _attached(config, backbone, is_loaded=True)
    if assembled.fingerprint != facts["backbone_fingerprint"]:
        raise RunError(
            f"the backbone built now is not the one '{folder.path}' was trained on "
            f"(fingerprint {assembled.fingerprint[:12]}, expected {facts['backbone_fingerprint'][:12]}): "
            f"{_what_has_changed(backbone.provenance, recorded)}"
        )
    return assembled, facts


def _at_its_commit(backbone: BackboneConfig, recorded: dict[str, Any]) -> BackboneConfig:
    """``backbone`` at the commit of the hub that the record names, wherever its branch is now."""
    commit = recorded.get("commit")
    return backbone if commit is None else replace(backbone, revision=commit)  # type: ignore[call-arg]


def _what_has_changed(found: dict[str, Any], recorded: dict[str, Any]) -> str:
    """Why a backbone is another one, by where it comes from, and what to do."""
    if found["source"] == "folder":
        return f"the files in {found['path']} have changed since. Put those back that the run was trained on."
    if found["source"] == "package":
        return (
            f"it comes from {found['package']} {found['version']}, and came from version {recorded.get('version')}. "
            "Install that one."
        )
    return (
        f"its source ({found['source']}) gives other weights than it did. Its versions are in record.json, under "
        "versions: install those, or train the run anew (force=true)."
    )


def start_from_run(config: RunConfig, label_names: Sequence[str]) -> Backbone:
    """The backbone of ``config`` with the weights that the run in ``backbone.from_run`` ended with.

    An adapter of that run is merged into the weights. Its head is taken over when its objective is that of
    ``config`` and its labels are ``label_names``; else the head is new, drawn from the seed.
    ``provenance["from_run"]`` says which.

    Raises:
        RunError: if the earlier run cannot be read, or had another backbone.
        PeftlabError: if its method cannot be merged.
    """
    given = str(config.backbone.from_run)
    folder, earlier_config, _ = finished_run(given)
    _require_same_backbone(given, config.backbone, earlier_config.backbone)
    earlier, facts = reassemble(folder, earlier_config)
    try:
        plain = build_backbone(earlier_config, facts["label_names"], run_folder=Path(given), device="meta")
        weights = plain_weights(earlier, plain.model)
    except PeftlabError as error:
        raise type(error)(f"backbone.from_run={given}: {error}") from error
    backbone = build_backbone(config, label_names, run_folder=folder.path)
    match_head(
        backbone, label_names, seed=config.seed
    )  # before the run's head, whose rows are in order, takes its place
    head = {name for name, _ in backbone.head_parameters()}
    same_labels = list(label_names) == list(facts["label_names"])
    same_labels = same_labels and config.data.task_objectives() == earlier_config.data.task_objectives()
    with torch.no_grad():
        for name, tensor in backbone.model.state_dict(keep_vars=True).items():
            if same_labels or name not in head:
                tensor.copy_(weights[name])
    backbone.provenance["from_run"] = {
        "path": given,
        "run": facts["run"],
        "method": facts["method"],
        "adapter_sha256": content_sha256([folder.adapter]),
        "label_names": facts["label_names"],
        "head": "taken over" if same_labels else "new",
        "parameters_taken_over": sum(
            p.numel() for name, p in backbone.model.named_parameters() if same_labels or name not in head
        ),
    }
    return backbone


@torch.no_grad()
def plain_weights(assembled: Assembled, plain: nn.Module) -> dict[str, Tensor]:
    """The weights of ``assembled`` by the names and in the shapes of ``plain``, the same model without any method.

    Weights in 4 or 8 bits become floats, the adapter is merged and taken out.

    Args:
        assembled: is changed by it.
        plain: may be on "meta".

    Raises:
        PeftlabError: if the method cannot be merged.
    """
    model = assembled.backbone.model
    dequantize(model)
    if not assembled.adapter.strategy.supports.adds_nothing:
        assembled.adapter.merge_and_remove()
    weights = {}
    for name in plain.state_dict():
        owner, _, leaf = name.rpartition(".")
        module, its_place = model.get_submodule(owner), plain.get_submodule(owner)
        value: Tensor = getattr(module, leaf)  # by the layer, which may see a copy in another type
        # Quantising made a linear layer, (out, in), of a Conv1D, (in, out).
        turned = leaf == "weight" and is_conv1d(its_place) and not is_conv1d(module)
        weights[name] = value.T if turned else value
    return weights


FREE_TO_DIFFER = {
    "from_run",
    "train_head",
    "freeze",
    "glove",
    "dropout",
    "attention_dropout",
    "fast_dropout",
    "gradient_checkpointing",
    "cache_frozen",
    "skip_unread",
    "attention",
}
"""Backbone fields that may be other than the earlier run's: they change how it trains, not what it is."""


def _require_same_backbone(given: str, wanted: BackboneConfig, earlier: BackboneConfig) -> None:
    if type(wanted) is not type(earlier):
        raise RunError(
            f"backbone.from_run={given} has a {type(earlier).__name__}, and this run a {type(wanted).__name__}. "
            "Choose the backbone of that run."
        )
    if wanted.quantize is not None or earlier.quantize is not None:
        raise RunError(
            f"backbone.from_run={given}: weights that a run has trained cannot be put into a quantised backbone, nor "
            "taken out of one without loss. Set backbone.quantize=null, in that run too."
        )
    differing = [
        f"backbone.{name}={value} (this run: {getattr(wanted, name)})"
        for name, value in asdict(earlier).items()
        if name not in FREE_TO_DIFFER and value != getattr(wanted, name)
    ]
    if differing:
        raise RunError(
            f"backbone.from_run={given} is a run with {', '.join(differing)}. Set the same here: a run starts "
            "from that backbone as it is."
        )


def _attached(
    config: RunConfig, backbone: Backbone, *, batches: TrainingLosses | None = None, is_loaded: bool
) -> Assembled:
    fingerprint = backbone_fingerprint(backbone)
    adapter = attach(
        backbone, config.peft, seed=config.seed, train_head=config.trains_head, batches=batches, is_loaded=is_loaded
    )
    return Assembled(adapter, fingerprint)


def lightning_module(config: RunConfig, assembled: Assembled, splits: Splits) -> TrainingModule:
    """The module that trains or tests ``assembled`` on ``splits``."""
    if config.trainer.compile:
        compile_backbone(assembled.backbone, deterministic=config.trainer.deterministic)
    return TrainingModule(
        assembled.adapter,
        config.optim,
        config.schedule,
        objective=config.data.what_is_learned(),
        label_names=splits.label_names,
        tasks=splits.tasks,
        seed=config.seed,
        label_smoothing=config.trainer.label_smoothing,
        max_steps=config.trainer.max_steps,
        on_nan=config.trainer.on_nan,
        cuda_graphs=config.trainer.cuda_graphs,
        compiled=config.trainer.compile,
        continues=config.continue_from is not None,
    )
