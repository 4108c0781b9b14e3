"""The config every backbone shares. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.errors import BackboneError
from peftlab.fields import run_folder

if TYPE_CHECKING:
    import torch

    from peftlab.backbones.base import Backbone

HeadKind = Literal["new", "own", "none"]
"""A model's head: of random weights for every data set, the one that it was pre-trained with, or none."""


@dataclass(kw_only=True)
class BackboneConfig(ABC):
    """Config shared by all backbones."""

    kind: ClassVar[str] = ""
    """The architecture, where a method's usual places depend on it (:attr:`~peftlab.peft.base.PEFTStrategy.usual`)."""

    name_or_path: str | None = None
    """Where the weights come from; each backbone says what it accepts."""
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    """Store the frozen linear weights in 4 or 8 bits (bitsandbytes); the head is left alone."""
    train_head: bool | None = None
    """Train the head together with the adapter; null: as the objective says. A new head, which classification and
    regression have, then trains."""
    from_run: str | None = run_folder()
    """Folder of an earlier run of the same backbone to start from: what it trained is taken over, its head too
    if the classes are the same. Enters the run's identity by the content of its files."""

    @abstractmethod
    def build(
        self,
        num_labels: int,
        *,
        seed: int,
        train_texts: Sequence[str] | None = None,
        run_folder: Path | None = None,
        device: torch.device | str = "cpu",
        head: HeadKind = "new",
    ) -> Backbone:
        """Build the backbone with a new head for ``num_labels`` classes, or with the head that it was pre-trained with.

        New weights (the head, or all of them for a random model) are drawn from ``seed`` alone, and
        the global random state is left as it was. ``train_texts`` are what a vocabulary is made of
        when training; ``run_folder`` is a finished run's folder, whose kept files are used instead.
        ``device="meta"`` builds the shapes without the weights. ``head="own"`` is a language model's, which says a
        next token; ``num_labels`` then means nothing.

        Raises:
            BackboneError: naming what is missing, wrong or not to be trusted.
        """

    def template_files(self) -> list[Path]:
        """The local files of the tokenizer's chat template, which count where dialogues are read."""
        return []

    def weight_files(self) -> list[Path]:
        """The local files this config reads, whose content goes into the run's identity.

        Raises:
            BackboneError: if ``from_run`` is not the folder of a finished run.
        """
        if self.from_run is None:
            return []
        folder = Path(self.from_run).expanduser()
        needed = ("record.json", "adapter.json", "adapter.safetensors")
        if not all((folder / name).is_file() for name in needed):
            raise BackboneError(
                f"backbone.from_run={self.from_run}: this is not the folder of a finished run. Give one that a run has "
                f"printed, outputs/<name>/<key>; it must hold {', '.join(needed)}."
            )
        return [folder / "adapter.safetensors"]
