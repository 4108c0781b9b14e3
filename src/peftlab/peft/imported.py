"""An adapter in the checkpoint format of HF peft, as the start of training or for evaluation.

``peft=import peft.path=FOLDER`` reads the folder's two files, finds the method here that computes what they say
(LoRA, DoRA, AdaLoRA, (IA)³, VeRA, LN-tuning, prompt tuning, prefix tuning, multitask prompts), injects it and
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

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from peftlab.errors import PeftlabError, listed
from peftlab.peft.base import PEFTStrategy, Supports, methods

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftlab.backbones.base import Backbone
    from peftlab.interop.hf_format import HFAdapter, HFFolder
    from peftlab.peft.weight_update import WeightUpdate

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

    path: str | None = field(default=None, metadata={"bookkeeping": True})
    """Folder with adapter_config.json and adapter_model.safetensors; it enters the run's identity by its content."""
    head: Literal["saved", "new"] = "saved"
    """Take the folder's classification head, if it has one, or start a new one (for other classes)."""
    changes: dict[str, Any] | None = None
    """Fields of the method that the folder does not say, and dropout: {lr_ratio: 16}, {task: 1}, {dropout: 0.1}."""

    def files(self) -> list[Path]:
        """The folder's two files."""
        from peftlab.interop.hf_files import adapter_files

        return adapter_files(self.path)

    @cached_property
    def folder(self) -> HFFolder:
        """The folder, read."""
        from peftlab.interop.hf_format import HFFolder

        return HFFolder(self.files()[0].parent)

    @cached_property
    def native(self) -> PEFTStrategy:
        """The method that computes what the folder says.

        Raises:
            PeftlabError: if there is none, or the folder says something that it has not.
        """
        from peftlab.schema import validate

        for _, cls in methods():
            fields = cls.from_hf(self.folder)
            if fields is None:
                continue
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
        known = {kind for _, cls in methods() if (kind := cls.supports.hf_peft) and kind.isupper()}
        raise PeftlabError(
            f"peft.path={self.path} holds an adapter of type {self.folder.peft_type}, which has no counterpart here. "
            f"Types that have one: {listed(known)}."
        )

    def _as_the_folder_says(self, fields: dict[str, Any], cls: type[PEFTStrategy]) -> PEFTStrategy:
        """The method without changes; what is wrong with it is the folder's fault, in the folder's words."""
        from peftlab.schema import BadValue, validate

        try:
            return validate(fields, cls, "")
        except BadValue as error:
            said, key = str(error).splitlines()[0], error.keys[0]
            said = f"{_HF_NAMES.get(key, key)}{said.removeprefix(key)}".removeprefix(": ")
            raise PeftlabError(
                f"peft.path: {self.folder.path / 'adapter_config.json'}: {said} (peft={cls.name} computes what it says)"
            ) from error

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Inject the method and load the folder's tensors.

        Raises:
            PeftlabError: if the folder was made for another backbone, or something of it would be left out.
        """
        native = self.native
        if self.folder.move_into_trunk(backbone):
            del self.native  # its targets have other names now
            native = self.native
        self.folder.require_fits(backbone)
        if self.folder.peft_type == "PREFIX_TUNING":
            from peftlab.interop.hf_prompt import prompt_length, require_in_window

            given = f"peft.path={self.path} and this run have"
            require_in_window(backbone, prompt_length(self.folder), backbone.longest_text or 0, given)
        native.inject(backbone, seed=seed)
        native.load_hf(backbone, self.folder)
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

    def closed_form(self, backbone: Backbone) -> int | None:
        """The method's formula."""
        return self.native.closed_form(backbone)

    def keep_task(self, backbone: Backbone, task: int) -> PEFTStrategy:
        """As the method."""
        self.native = self.native.keep_task(backbone, task)
        return self

    def extra_tokens(self) -> int:
        """What the method takes."""
        return self.native.extra_tokens()

    def param_groups(self, module: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The method's groups."""
        return self.native.param_groups(module, lr)

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The method's tensors."""
        return self.native.adapter_tensors(module)

    def merge(self, backbone: Backbone) -> None:
        """As the method."""
        self.native.merge(backbone)

    def unmerge(self, backbone: Backbone) -> None:
        """As the method."""
        self.native.unmerge(backbone)

    @contextmanager
    def switched_off(self, backbone: Backbone) -> Iterator[None]:
        """As the method."""
        with self.native.switched_off(backbone):
            yield

    def weight_updates(self, backbone: Backbone) -> Iterable[WeightUpdate] | None:
        """As the method."""
        return self.native.weight_updates(backbone)

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """As the method."""
        return self.native.to_hf(backbone)

    def regularization(self, backbone: Backbone) -> Tensor | None:
        """The method's term."""
        return self.native.regularization(backbone)

    def on_train_step(self, backbone: Backbone, step: int, total_steps: int) -> None:
        """The method's schedule."""
        self.native.on_train_step(backbone, step, total_steps)
