"""``attach`` and ``load_adapter``: an adapter in a model of one's own, without a config and without a trainer.

The models are named by what is in them: roles (``query``) where the architecture is known by the model's config
(:mod:`peftlab.backbones.role_table`), names or regular expressions of modules anywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.plain_model import AnyTokenizer, PlainModel
from peftlab.backbones.quantize import keep_layout, let_repack, require_never_repacked
from peftlab.errors import BackboneError, ConfigError, PeftlabError, RunError, listed, nearest
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.base import attach as attach_to_backbone
from peftlab.peft.gradients import TrainingLosses
from peftlab.peft.hf.files import CONFIG_FILE
from peftlab.peft.names import adapted_by
from peftlab.peft.saving import ADAPTER_FILE, FACTS_FILE, fingerprint, load_tensors, read_tensors
from peftlab.reading import read_bytes, read_json
from peftlab.schema import import_class, validate

_MARK = "_peftlab_attachment"
"""Attribute of a model that holds what :func:`attach` has done to it."""


def attach(
    model: nn.Module,
    method: PEFTStrategy,
    *,
    seed: int = 0,
    train: str | nn.Module | Sequence[str | nn.Module] = (),
    tokenizer: Any = None,
    batches: Iterable[Mapping[str, Any] | Tensor] | None = None,
) -> Adapter:
    """Put ``method`` into ``model``, freeze everything else, and return the adapter.

    The model is changed in place and goes on being called by its own ``forward``; ``adapter.remove()`` undoes it all.

    Args:
        model: any module. Of a model of ``transformers`` whose architecture is known, ``targets`` may be roles
            (``query``, ``value``, ``ffn_up``, …); of others they are ends of module names, or regular expressions.
        method: a method with its fields, ``LoRA(rank=8, targets=["query", "value"])``.
        seed: of the adapter's random start, which depends on nothing else.
        train: modules that train beside it, as they are or by their names: a head. They are no targets.
        tokenizer: the model's, for prompts that start from words (``init="vocabulary"`` or ``"text"``).
        batches: of training data, for methods that start from gradients (``LoRA(init="lora_ga")``): keyword arguments
            of the model's ``forward`` with what it needs for a ``loss`` (``labels``), or the losses themselves, from a
            generator that computes each when it is asked for:
            ``(criterion(model(x), y) for x, y in loader)``. No more of them are taken than the method asks for.

    Returns:
        the adapter; what trains is ``adapter.parameters(beside=True)``.

    Raises:
        PeftlabError: if the method cannot work on this model, naming what there is; or the model carries an adapter
            already. The model is then as it was.
    """
    _require_kinds(model, method)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed!r} is not allowed: it must be a whole number from 0 on.")
    _require_clean(model)
    beside = _names_of(model, train)
    if method.name == "head" and not beside:
        raise PeftlabError(
            f"{type(method).__name__} puts nothing into a model: name what is to train, "
            f"attach(model, {type(method).__name__}(), train=['classifier'])."
        )
    return _attached(PlainModel(model, tokenizer=tokenizer, beside=beside), method, seed, batches)


def load_adapter(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> Adapter:
    """Put a saved adapter into ``model``, with what trained beside it, and return it, ready to use or to train on.

    Args:
        model: the one that it was trained in, without an adapter.
        folder: written by ``adapter.save`` in either format, by ``peftlab export`` or HF peft; or the folder of a run.
        tokenizer: only used where an adapter in HF peft's format starts from words.

    Raises:
        PeftlabError: if the folder holds no adapter, the model is not the one that it was trained in, or it carries
            an adapter already. The model is then as it was.
    """
    if not isinstance(model, nn.Module) or isinstance(model, Backbone):
        _require_kinds(model, None)
    _require_clean(model)
    path = Path(folder).expanduser()
    if (path / FACTS_FILE).is_file():
        return _load_own(model, path)
    if (path / CONFIG_FILE).is_file():
        return _load_hf_peft(model, path, tokenizer)
    if not path.is_dir():
        raise RunError(f"there is no folder '{folder}' to load an adapter from.")
    raise RunError(
        f"'{folder}' holds no adapter: neither {FACTS_FILE} and {ADAPTER_FILE} (adapter.save, a run's folder) nor "
        f"{CONFIG_FILE} (HF peft). It holds: {listed((entry.name for entry in path.iterdir()), 12)}."
    )


def _require_kinds(model: Any, method: Any) -> None:
    if isinstance(model, Backbone):
        raise BackboneError(
            "this is a backbone of peftlab's own: attach to the network in it, attach(backbone.model, …)."
        )
    if not isinstance(model, nn.Module):
        raise BackboneError(f"a model must be a torch.nn.Module, not {type(model).__name__}.")
    if method is not None and not isinstance(method, PEFTStrategy):
        given = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise ConfigError(
            f"attach takes a method with its fields, as LoRA(rank=8), not {given}. "
            "`peftlab methods` lists them; each is a class of peftlab's."
        )


def _require_clean(model: nn.Module) -> None:
    require_never_repacked(model)
    for name, module in model.named_modules():
        attachment = vars(module).get(_MARK)
        if attachment is not None:
            where = f"'{name}' in this model" if name else f"this {type(model).__name__}"
            raise PeftlabError(
                f"{where} carries an adapter already, of {attachment.adapter.strategy.name}: take it out with "
                "adapter.remove(), or leave its change in the weights with adapter.merge_and_remove(). Several methods "
                "at once are one adapter of Compose(methods=[…])."
            )
    if (found := adapted_by(model)) is not None:
        name, whose = found
        raise PeftlabError(
            f"'{name}' of this {type(model).__name__} is adapted already, by {whose}. Attach to the clean model: load "
            "it anew, or take that adapter out first."
        )


def _names_of(model: nn.Module, train: str | nn.Module | Sequence[str | nn.Module]) -> list[str]:
    """Names of the modules that ``train`` means, in the order of the model; none inside another."""
    given = [train] if isinstance(train, str | nn.Module) else list(train)
    modules = dict(model.named_modules())
    chosen: set[str] = set()
    for entry in given:
        if isinstance(entry, nn.Module):
            name = next((name for name, module in modules.items() if module is entry), None)
            if name is None:
                raise ConfigError(f"train=: this {type(entry).__name__} is no module of the model.")
        elif isinstance(entry, str):
            name = entry
            if name not in modules:
                tops = [child for child, _ in model.named_children()]
                raise ConfigError(
                    f"train=: the model has no module '{name}'.{nearest(name, modules)} Its children are: "
                    f"{listed(tops)}."
                )
        else:
            raise ConfigError(f"train=: name modules, or give them, not {type(entry).__name__} ({entry!r}).")
        if name == "":
            raise ConfigError("train= names the whole model: that is FullFineTuning().")
        parameters = list(modules[name].parameters())
        if not parameters:
            raise ConfigError(f"train=: '{name}' ({type(modules[name]).__name__}) has no parameters to train.")
        if not all(parameter.is_floating_point() for parameter in parameters):
            raise ConfigError(f"train=: '{name}' keeps weights in 4 or 8 bits, which cannot be trained.")
        chosen.add(name)
    return [name for name in modules if name in chosen and not any(name.startswith(f"{top}.") for top in chosen)]


class _Attachment:
    """What attaching has changed of the model beside the adapter itself; held by the adapter, undone with it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.adapter: Adapter
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._buffers: dict[str, Tensor] = {}
        self._kept = keep_layout(model)

    def settle(self, adapter: Adapter) -> None:
        """The adapter stands: note what of the frozen model may not change."""
        self.adapter = adapter
        vars(self.model)[_MARK] = self
        self._buffers = {name: buffer.detach().to("cpu", copy=True) for name, buffer in self._frozen_buffers()}
        adapter.hold(self)

    def _frozen_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Statistics of normalisation layers outside of what trains: training mode changes them."""
        inside = tuple(f"{name}." for name in self.adapter.beside)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and not f"{name}.".startswith(inside or ("\0",)):
                yield from ((f"{name}.{leaf}", buffer) for leaf, buffer in module.named_buffers(recurse=False))

    def before_saving(self) -> None:
        """Refuse to save where the file would not restore the model."""
        for name, buffer in self._frozen_buffers():
            if name in self._buffers and not torch.equal(self._buffers[name], buffer.detach().cpu()):
                raise PeftlabError(
                    f"'{name}' has changed since the adapter was attached, though it is frozen, and no adapter file "
                    "holds it: keep normalisation layers in eval mode while training, or train theirs beside it "
                    f"(train=['{name.rpartition('.')[0]}'])."
                )

    def remove(self) -> None:
        """Let train again what trained before."""
        vars(self.model).pop(_MARK, None)
        let_repack(self._kept)
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(self._trained.get(name, parameter.requires_grad))


def _attached(backbone: PlainModel, method: PEFTStrategy, seed: int, batches: Iterable[Any] | None) -> Adapter:
    model = backbone.model
    attachment = _Attachment(model)
    losses = None if batches is None else _losses(model, batches)
    with _whole(attachment, backbone):
        adapter = attach_to_backbone(
            backbone, method, seed=seed, train_head=bool(backbone.head_modules()), batches=losses
        )
        attachment.settle(adapter)
    return adapter


def _losses(model: nn.Module, batches: Iterable[Any]) -> TrainingLosses:
    """Of ``batches`` as :func:`attach` is given them, one when it is asked for; each counts the same."""

    def losses(count: int) -> Iterator[tuple[Tensor, float]]:
        for number, batch in enumerate(islice(batches, count), start=1):
            loss = batch
            if isinstance(batch, Mapping):
                output = model(**batch)
                loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ConfigError(
                    f"batches=: batch {number} gives no loss. Give keyword arguments of the model's forward that make "
                    "it return one (labels, with models of transformers), or the losses themselves: "
                    "batches=(criterion(model(x), y) for x, y in loader)."
                )
            yield loss.squeeze(), 1.0

    return losses


@contextmanager
def _whole(attachment: _Attachment, backbone: PlainModel) -> Iterator[None]:
    """What is attached inside is attached whole, or the model is as it was."""
    children = {name: dict(module.named_children()) for name, module in backbone.model.named_modules()}
    modules = dict(backbone.model.named_modules())
    try:
        yield
    except BaseException:
        backbone.remove_soft_prompt()
        for name, module in modules.items():
            for child, _ in list(module.named_children()):
                if child not in children[name]:
                    delattr(module, child)
            for child, was in children[name].items():
                if module._modules.get(child) is not was:
                    setattr(module, child, was)
        attachment.remove()
        raise


def _load_own(model: nn.Module, path: Path) -> Adapter:
    """An adapter in peftlab's format, of ``adapter.save`` or of a run."""
    facts = _facts(path)
    target = facts["peft"].get("_target_")
    cls = import_class(str(target), f"{path / FACTS_FILE}: peft._target_")
    if not issubclass(cls, PEFTStrategy):
        raise RunError(f"{path / FACTS_FILE}: {target} is no PEFT method.")
    method: PEFTStrategy = validate(facts["peft"], cls, "peft")
    tensors, _ = read_tensors(path / ADAPTER_FILE)
    if "trains_beside" in facts:
        beside, skip = list(facts["trains_beside"]), set(facts["fingerprint_without"])
    else:
        _require_plain_classifier(path, facts)
        beside, skip = _head_of_run(model, facts, tensors)
    modules = dict(model.named_modules())
    if absent := [name for name in beside if name not in modules]:
        raise RunError(f"{_another(model, path, facts)}: it has no module '{absent[0]}', which was trained there.")
    if fingerprint(model, skip=skip) != facts["backbone_fingerprint"]:
        raise RunError(
            f"{_another(model, path, facts)}: its frozen weights have another fingerprint. Load the very weights (the "
            "same checkpoint and revision, in the same dtype and quantisation)."
        )
    backbone = PlainModel(model, tokenizer=AnyTokenizer(), beside=beside)
    attachment = _Attachment(model)
    before = {name: modules[name].state_dict() for name in beside}
    before = {name: {key: t.clone() for key, t in state.items()} for name, state in before.items()}
    try:
        with _whole(attachment, backbone):
            adapter = attach_to_backbone(backbone, method, seed=0, train_head=bool(beside), is_loaded=True)
            load_tensors(path / ADAPTER_FILE, adapter)
            attachment.settle(adapter)
    except BaseException:
        for name, state in before.items():
            modules[name].load_state_dict(state)
        raise
    return adapter


def _facts(path: Path) -> dict[str, Any]:
    file = path / FACTS_FILE
    try:
        facts = read_json(file)
        needed = [name for name in ("peft", "method", "backbone_fingerprint") if name not in facts]
        whole = read_bytes(path / ADAPTER_FILE) if "adapter_sha256" in facts else b""
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"cannot read {file}: {error}.") from error
    if not isinstance(facts, dict) or needed or not isinstance(facts["peft"], dict):
        raise RunError(f"{file} is not as peftlab writes it: it lacks {listed(needed or ['the fields of peft'])}.")
    if "adapter_sha256" in facts and hashlib.sha256(whole).hexdigest() != facts["adapter_sha256"]:
        raise RunError(
            f"{path / ADAPTER_FILE} is not the file that {FACTS_FILE} was written with: one of them is damaged or of "
            "another adapter. Save it anew."
        )
    from peftlab.records.folder import RunFolder  # for folders of runs alone: it brings Hydra with it
    from peftlab.records.integrity import require_as_recorded

    if (record := RunFolder(path).read_record()) is not None and record["status"] == "finished":
        require_as_recorded(path, record)
    return facts


def _another(model: nn.Module, path: Path, facts: dict[str, Any]) -> str:
    was = facts.get("model") or facts.get("backbone", {}).get("name_or_path") or "its backbone"
    return f"this {type(model).__name__} is not the model that the adapter in '{path}' was trained in ({was})"


def _require_plain_classifier(path: Path, facts: dict[str, Any]) -> None:
    """Refuse a run whose logits no call of the model alone gives."""
    if facts.get("backbone", {}).get("pooling") == "mean":
        raise RunError(
            f"the run in '{path}' classifies from the mean over a text's tokens (backbone.pooling=mean), which no "
            f"model of transformers does by itself: the logits would be others. Use load_run('{path}').model()."
        )


def _head_of_run(model: nn.Module, facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[str], set[str]]:
    """Modules of the head that the run trained, and the names of its tensors, which the fingerprint leaves out."""
    from peftlab.backbones.networks import head_modules

    if not hasattr(model, "base_model_prefix"):
        return [], set()
    names = [name.removeprefix("model.") for name in tensors]
    pooler = f"{model.base_model_prefix}.pooler"  # counts as head where the checkpoint had none
    head = head_modules(model, [name for name in names if name.startswith(f"{pooler}.")])
    skip = {name for name in model.state_dict() if any(name.startswith(f"{part}.") for part in head)}
    return (head if facts.get("train_head", True) else []), skip


def _load_hf_peft(model: nn.Module, path: Path, tokenizer: Any) -> Adapter:
    """An adapter in HF peft's format, with the modules that it brings beside."""
    from peftlab.peft.hf.format import HFFolder
    from peftlab.peft.imported import ImportedAdapter

    folder = HFFolder(path)
    beside = [
        name
        for name in folder.saved_modules()
        if name in dict(model.named_modules()) and any(True for _ in model.get_submodule(name).parameters())
    ]
    backbone = PlainModel(model, tokenizer=tokenizer or AnyTokenizer(), beside=beside)
    before = {name: {k: t.clone() for k, t in model.get_submodule(name).state_dict().items()} for name in beside}
    attachment = _Attachment(model)
    try:
        with _whole(attachment, backbone):
            adapter = attach_to_backbone(backbone, ImportedAdapter(path=str(path)), seed=0, train_head=bool(beside))
            attachment.settle(adapter)
    except BaseException:
        for name, state in before.items():
            model.get_submodule(name).load_state_dict(state)
        raise
    return adapter
