"""An adapter in the checkpoint format of HF peft, as the start of training or for evaluation.

``peft=import peft.path=FOLDER`` reads the folder's two files, finds the method here that computes what they say
(LoRA, DoRA, AdaLoRA, (IA)³, VeRA, LN-tuning, prompt tuning, prefix tuning, multitask prompts), builds it and
loads the tensors, the classification head's too. From there on it is that method: it trains, merges, is saved and
exported as if it had been trained here. Of P-tuning the folder holds only the vectors that its encoder returned;
they go on as prompt tuning. Soft prompts stand in front of the text, and a prefix moves the text's positions, as
with HF peft.

Nothing is left out in silence: an option that may change the computation and is not known here is refused by name,
as is a tensor without a place. Only safetensors are read. What is not in the folder starts anew: the optimizer, the
phases of AdaLoRA's schedule.

Trainable: as the method that the folder says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import PeftlabError, first_line, listed
from peftlab.fields import own_files
from peftlab.peft.base import PEFTStrategy, Selection, Supports, methods
from peftlab.peft.hf.codec import codec_of, read
from peftlab.peft.hf.files import adapter_files
from peftlab.peft.hf.format import HFFolder
from peftlab.peft.hf.prompt import prompt_length
from peftlab.schema import BadValue, validate

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone
    from peftlab.peft.adapter import Adapter
    from peftlab.peft.hf.format import HFFolder

_HF_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "alpha": "lora_alpha",
        "rank": "r",
        "initial_rank": "init_r",
        "dropout": "lora_dropout",
        "orthogonality": "orth_reg_weight",
        "length": "num_virtual_tokens",
    }
)
"""Fields of ours → the options that they are read from, where the names differ."""


class _SupportsOfTheMethod:
    """``supports`` of an imported adapter: its method's; of the class, what some can do."""

    def __get__(self, instance: ImportedAdapter | None, owner: type[ImportedAdapter]) -> Supports:
        if instance is not None:
            return instance.native.supports
        return Supports(mergeable=True, identity_at_start=False, hf_peft="as its method")


@dataclass(kw_only=True)
class ImportedAdapter(PEFTStrategy, name="import"):
    """Go on from an adapter that HF peft has saved: its method, its weights, its head."""

    supports = _SupportsOfTheMethod()
    count = "as the method of the folder"

    path: str | None = own_files()
    """Folder with adapter_config.json and adapter_model.safetensors; it enters the run's identity by its content."""
    head: Literal["saved", "new"] = "saved"
    """Take the folder's classification head, if it has one, or start a new one (for other classes)."""
    changes: dict[str, Any] | None = None
    """Fields of the method that the folder does not say, and dropout: {lr_ratio: 16}, {task: 1}, {dropout: 0.1}."""

    def files(self) -> list[Path]:
        """The folder's two files."""

        return adapter_files(self.path)

    @cached_property
    def folder(self) -> HFFolder:
        """The folder, read."""

        return HFFolder(self.files()[0].parent)

    @cached_property
    def native(self) -> PEFTStrategy:
        """The method that computes what the folder says.

        Raises:
            PeftlabError: if there is none, or the folder says something that it has not.
        """

        known = dict(methods())
        found = read(self.folder)
        if found is None:
            kinds = {kind for cls in known.values() if (kind := cls.supports.hf_peft) and kind.isupper()}
            raise PeftlabError(
                f"peft.path={self.path} holds an adapter of type {self.folder.peft_type}, which has no counterpart "
                f"here. Types that have one: {listed(kinds)}."
            )
        name, fields = found
        cls = known[name]
        self.folder.require_understood()
        if said := (set(self.changes or {}) & set(fields)) - {"dropout"}:
            raise PeftlabError(
                f"peft.changes.{min(said)}: the adapter in {self.path} says {min(said)} itself, and its weights "
                f"belong to that. Its method ({cls.name}) can be changed in other fields, and in dropout."
            )
        native = self._as_the_folder_says(fields, cls)
        if not self.changes:
            return native
        try:
            return validate(fields | self.changes, cls, "peft.changes")
        except PeftlabError as error:
            raise PeftlabError(f"{error} (peft={cls.name}, as the adapter in {self.path} says)") from error

    def _as_the_folder_says(self, fields: dict[str, Any], cls: type[PEFTStrategy]) -> PEFTStrategy:
        """The method without changes; what is wrong with it is the folder's fault, in the folder's words."""

        try:
            return validate(fields, cls, "")
        except BadValue as error:
            said, key = first_line(error), error.keys[0]
            said = f"{_HF_NAMES.get(key, key)}{said.removeprefix(key)}".removeprefix(": ")
            raise PeftlabError(
                f"peft.path: {self.folder.path / 'adapter_config.json'}: {said} (peft={cls.name} computes what it says)"
            ) from error

    def select(self, backbone: Backbone) -> ImportSelection:
        """Where the method works.

        Raises:
            PeftlabError: if the folder was made for another backbone.
        """
        native = self.native  # finding it names the folder's modules
        if self.folder.move_into_trunk(backbone):
            del self.native  # its targets have other names now
            native = self.native
        self.folder.require_fits(backbone)
        if self.folder.peft_type == "PREFIX_TUNING":
            from peftlab.peft.hf.prefix import require_in_window

            given = f"peft.path={self.path} and this run have"
            require_in_window(backbone, prompt_length(self.folder), backbone.longest_text or 0, given)
        selected = native.select(backbone)
        return ImportSelection(
            backbone, selected.targets, selected.trains, selected.slots, when=selected.when, native=selected
        )

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Build the method and load the folder's tensors; the adapter is the method's own from here on.

        Raises:
            PeftlabError: if something of the folder would be left out.
        """

        assert isinstance(selection, ImportSelection)
        backbone, native = selection.backbone, self.native
        adapter = native.build(selection.native, seed=seed, batches=batches)
        codec_of(native.name).load(adapter, self.folder)
        taken = self.head == "saved" and self.folder.load_head(backbone)
        self.folder.require_all_used(backbone)
        backbone.provenance["imported_adapter"] = {
            "path": str(self.path),
            "peft_type": self.folder.peft_type,
            "peft_version": self.folder.config.get("peft_version"),
            "method": native.name,
            "made_for": self.folder.config.get("base_model_name_or_path"),
            "head": "taken over" if taken else "new",
        }
        return adapter

    def closed_form(self, backbone: Backbone) -> int | None:
        """The method's formula."""
        return self.native.closed_form(backbone)

    def extra_tokens(self) -> int:
        """What the method takes."""
        return self.native.extra_tokens()


@dataclass(frozen=True, kw_only=True)
class ImportSelection(Selection):
    """What the method has selected."""

    native: Selection
