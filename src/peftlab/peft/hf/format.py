"""The checkpoint format of Hugging Face peft: a folder with adapter_config.json and adapter_model.safetensors.

What a method's adapter looks like in it is told by the codecs beside this file (:mod:`peftlab.peft.hf.codec`); here is
what all of them share. A key of the weights is the name of a
module of the model behind ``base_model.model.``, and the tensor's name in that module:

    base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight

A soft prompt or prefix is one tensor, ``prompt_embeddings``; its classification head has one level fewer,
``base_model.classifier.weight``. Written and read after peft 0.21; nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from peftlab.backbones.roles import output_layer
from peftlab.errors import PeftlabError, listed
from peftlab.peft.hf.config import shortened
from peftlab.peft.hf.files import CONFIG_FILE, HEAD_FILE, WEIGHTS_FILE, read_config, weights_file

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

MODEL = "base_model.model."
"""What stands before the names of the model's modules."""
PROMPT_MODEL = "base_model."
"""The same in the folder of a soft prompt or prefix."""
PROMPT = "prompt_embeddings"

_ALWAYS_UNDERSTOOD = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",  # what is saved is what the weights hold
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
"""Options that say what the folder belongs to, and nothing about the computation."""

_HEADS = ("classifier", "score", "qa_outputs")
"""Modules that peft saves with every sequence classifier."""


@dataclass
class HFAdapter:
    """An adapter as the format says it, the classification head apart."""

    config: dict[str, Any]
    """``peft_type`` and the method's options."""
    tensors: dict[str, Tensor]
    """By their whole keys."""
    notes: list[str] = field(default_factory=list)
    """What people have to know who load it with peft."""

    @property
    def is_prompt(self) -> bool:
        """Whether it is a soft prompt or prefix, whose keys are other ones."""
        return PROMPT in self.tensors


class HFFolder:
    """A folder in the format, read and checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self.peft_type = str(self.config["peft_type"]).removeprefix("PeftType.")
        self._asked: set[str] = set()
        self._used: set[str] = set()
        self.modules: list[str] = []
        """Names of the modules that have tensors, once :meth:`modules_with` has looked for them."""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights, in float32.

        Raises:
            PeftlabError: if the file is missing, pickled or damaged, or a tensor is not of finite floats.
        """
        file = weights_file(self.path)
        tensors = _read(file)
        if not tensors:
            raise PeftlabError(f"peft.path: {file} holds no tensors.")
        if (self.path / HEAD_FILE).is_file():
            prefix = PROMPT_MODEL if PROMPT in tensors else MODEL
            tensors |= {f"{prefix}{name}": tensor for name, tensor in _read(self.path / HEAD_FILE).items()}
        return {name: tensor.float() for name, tensor in tensors.items()}

    def option(self, name: str, default: Any) -> Any:
        """The value of an option; asking for it means to understand it."""
        self._asked.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def understands(self, *names: str) -> None:
        """Note options that cannot change what the tensors compute: how they once started, or trained."""
        self._asked.update(names)

    def require_understood(self) -> None:
        """Raise for options that nobody asked for and that are set: they may change the computation.

        Raises:
            PeftlabError: naming the first.
        """
        for name, value in sorted(self.config.items()):
            neutral = value is None or value is False or value in ({}, [], "", "none")
            if neutral or name in self._asked or name in _ALWAYS_UNDERSTOOD:
                continue
            raise PeftlabError(
                f"peft.path: {self.path / CONFIG_FILE} sets {name}={shortened(value)}, which {self.peft_type} "
                "adapters cannot have here. It may change what the adapter computes, so it is not left out. Convert "
                "the adapter with HF peft to one without it."
            )

    def saved_modules(self) -> list[str]:
        """Names of the modules that the folder brings whole, a classification head; those that have tensors in it."""
        prefix = PROMPT_MODEL if PROMPT in self.tensors else MODEL
        named = [*(self.config.get("modules_to_save") or []), *_HEADS]
        return [
            name for name in dict.fromkeys(named) if any(key.startswith(f"{prefix}{name}.") for key in self.tensors)
        ]

    def modules_with(self, *endings: str) -> list[str]:
        """Names of the modules that have a tensor ``<module>.<ending>``, in the order of the names."""
        found = {
            key.removeprefix(MODEL)[: -len(ending) - 1]
            for key in self.tensors
            for ending in endings
            if key.startswith(MODEL) and key.endswith(f".{ending}")
        }
        if not found:
            raise PeftlabError(
                f"peft.path: {self.path / WEIGHTS_FILE} has no tensor {' or '.join(endings)}, as a {self.peft_type} "
                f"adapter has them. It holds: {listed(self.tensors, limit=5)}."
            )
        self.modules = sorted(found)
        return self.modules

    def move_into_trunk(self, backbone: Backbone) -> bool:
        """Rename what was made for the model without its classification class; return whether that was so."""
        own = dict(backbone.model.named_modules())
        prefix = f"{trunk_name(backbone)}."
        if not self.modules or not all(name not in own and f"{prefix}{name}" in own for name in self.modules):
            return False
        inside = tuple(f"{MODEL}{name}." for name in self.modules)
        self.tensors = {
            f"{MODEL}{prefix}{key.removeprefix(MODEL)}" if key.startswith(inside) else key: tensor
            for key, tensor in self.tensors.items()
        }
        return True

    def require_fits(self, backbone: Backbone) -> None:
        """Raise PeftlabError unless ``backbone``, still untouched, has all the modules, and the config means no "
        "more."""
        head = backbone.head_modules()
        own = dict(backbone.model.named_modules())
        for name in self.modules:
            if any(name == part or name.startswith(f"{part}.") for part in head):
                raise PeftlabError(
                    f"peft.path: {self.path} adapts '{name}', which is in the classification head. The head trains as "
                    "a whole here (backbone.train_head); leave it out of the adapter's target_modules."
                )
            if name not in own:
                raise PeftlabError(f"{self._foreign(backbone)} it adapts '{name}', and there is no such module.")

        kinds = tuple({type(own[name]) for name in self.modules})
        missing = [
            name
            for name, module in own.items()
            if name not in self.modules and isinstance(module, kinds) and self._is_target(name, backbone)
        ]
        if missing:
            raise PeftlabError(
                f"peft.path: {self.path / CONFIG_FILE} adapts '{missing[0]}', but {WEIGHTS_FILE} has no tensors for it "
                f"({len(missing)} such modules). The two files do not belong together, or the weights are incomplete."
            )

    def _is_target(self, name: str, backbone: Backbone) -> bool:
        """Whether peft would adapt the module called ``name``."""
        saved = [*_HEADS, *backbone.head_modules(), *(self.config.get("modules_to_save") or [])]
        if any(re.match(rf"(^|.*\.){re.escape(part)}($|\..*)", name) for part in saved):
            return False
        excluded, targets = self.config.get("exclude_modules"), self.config.get("target_modules")
        if excluded and _names_module(excluded, name):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return name != output_layer(backbone.model)
        if not targets or not _names_module(targets, name):
            return False
        layers = self.config.get("layers_to_transform")
        if isinstance(targets, str) or layers is None or layers == []:
            return True
        patterns = self.config.get("layers_pattern") or [r"[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", name))), None)
        return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)

    def _foreign(self, backbone: Backbone) -> str:
        made_for = self.config.get("base_model_name_or_path")
        return (
            f"peft.path: the adapter in {self.path} was made for another backbone"
            f"{f' ({made_for})' if made_for else ''} than this {backbone.architecture}:"
        )

    def copy(self, key: str, to: Tensor, backbone: Backbone) -> None:
        """Copy the tensor ``key`` into ``to``.

        Raises:
            PeftlabError: if it is missing or of another shape.
        """
        found = self.tensors.get(key)
        self._used.add(key)
        if found is None:
            raise PeftlabError(f"peft.path: {self.path / WEIGHTS_FILE} lacks '{key}': it is incomplete.")
        if found.shape != to.shape and found.squeeze().shape != to.squeeze().shape:
            raise PeftlabError(
                f"{self._foreign(backbone)} '{key}' is {tuple(found.shape)} in the file, and must be {tuple(to.shape)}."
            )
        with torch.no_grad():
            to.copy_(found.reshape(to.shape))

    def require_same(self, key: str, value: Tensor, what: str) -> None:
        """Raise PeftlabError if the folder brings the tensor ``key`` and it is not ``value``: a changed backbone."""
        found = self.tensors.get(key)
        self._used.add(key)
        if value.device.type == "meta":
            return
        if found is not None and (found.shape != value.shape or not torch.equal(found, plain_float(value))):
            raise PeftlabError(
                f"peft.path: {self.path} brings {what} of its own ('{key}'), other than the backbone's. Put it into "
                "the model's folder first (peft's merge_and_unload, save_pretrained), and load that as the backbone."
            )

    def require_all_used(self, backbone: Backbone) -> None:
        """Raise PeftlabError if a tensor has found no place; call it when everything is loaded."""
        head = [f"{prefix}{part}." for prefix in (MODEL, PROMPT_MODEL) for part in (*_HEADS, *backbone.head_modules())]
        left = [
            key
            for key in self.tensors
            if key not in self._used
            and not any(key.startswith(part) for part in head)
            and ".original_module." not in key  # what a saved module was before: not used any more
        ]
        if left:
            raise PeftlabError(
                f"peft.path: {self.path / WEIGHTS_FILE} also holds '{min(left)}' ({len(left)} such), which is neither "
                f"the adapter ({self.peft_type}) nor the classification head. Only these can be taken over: save the "
                "adapter without it (modules_to_save)."
            )

    def load_head(self, backbone: Backbone) -> bool:
        """Copy the classification head into ``backbone``; return whether the folder has one.

        Raises:
            PeftlabError: if it is of other modules or another number of classes.
        """
        prefix = PROMPT_MODEL if PROMPT in self.tensors else MODEL
        own = backbone.model.state_dict(keep_vars=True)
        head = {name: own[name] for part in backbone.head_modules() for name in own if name.startswith(f"{part}.")}
        there = {name for name in head if f"{prefix}{name}" in self.tensors}
        saved = {
            key
            for key in self.tensors
            if any(key.startswith(f"{prefix}{part}.") for part in (*_HEADS, "pre_classifier"))
        }
        if not there:
            if saved:
                raise PeftlabError(f"{self._foreign(backbone)} its head is '{min(saved)}'.")
            return False
        # A head that the checkpoint brought along (a pooler) trains here, and may stay as it is with peft.
        needed = {name for name in head if name.partition(".")[0] != trunk_name(backbone)}
        if missing := sorted(needed - there):
            raise PeftlabError(f"{self._foreign(backbone)} '{missing[0]}' of the head is missing.")
        for name in sorted(there):
            found = self.tensors[f"{prefix}{name}"]
            if found.shape != head[name].shape:
                raise PeftlabError(
                    f"peft.path: the head in {self.path} does not fit: '{name}' is {tuple(found.shape)} in the file "
                    f"and {tuple(head[name].shape)} here. It was trained for another number of classes or another "
                    "backbone; peft.head=new leaves it out and starts a new one."
                )
            self.copy(f"{prefix}{name}", head[name], backbone)
        return True


def trunk_name(backbone: Backbone) -> str:
    """The child of a model of ``transformers`` that is its encoder or decoder; empty for any other model."""
    return str(getattr(backbone.model, "base_model_prefix", ""))


def module_names(backbone: Backbone, chosen: Collection[str]) -> list[str]:
    """``chosen`` modules as peft's ``target_modules``: ends of names where they mean no other module, else whole names.

    Peft means by an entry every module whose name is it, or ends in it from a dot on.
    """
    everything = [name for name, _ in backbone.model.named_modules()]
    names: dict[str, None] = {}
    for name in chosen:
        ending = re.sub(r".*\.\d+\.", "", name)
        meant = [other for other in everything if other == ending or other.endswith(f".{ending}")]
        names[ending if set(meant) <= set(chosen) else name] = None
    return list(names)


def plain_float(tensor: Tensor) -> Tensor:
    """A tensor as the file holds it: float32, on the CPU, of its own memory."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _names_module(entries: str | list[str], name: str) -> bool:
    if isinstance(entries, str):
        return re.fullmatch(entries, name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in entries)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise PeftlabError(
            f"peft.path: cannot read {file}: {error}. It is damaged or cut short: copy it anew."
        ) from error
    for name, tensor in sorted(tensors.items()):
        if problem := _unusable(tensor):
            raise PeftlabError(f"peft.path: '{name}' in {file} {problem}, so nothing can be computed with it.")
    return tensors


def _unusable(tensor: Tensor) -> str | None:
    """Why no adapter can have this tensor; None: it can."""
    if not tensor.is_floating_point():
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}, and adapters are of floats"
    if tensor.dim() == 0:
        return "is a single number, and adapters are vectors and matrices"
    wrong = int((~tensor.float().isfinite()).sum())
    return f"has NaN or infinity in {wrong:,} of {tensor.numel():,} places" if wrong else None
