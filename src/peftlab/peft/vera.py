"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko, Blankevoort & Asano 2023, arXiv:2310.11454).

    h = W x + Λ_b B Λ_d A x        (paper, eq. 2)

A (rank, in) and B (out, rank) are random, frozen and the same for all layers; the vectors d (rank) and b (out),
the diagonals of Λ_d and Λ_b, train. A and B come from Kaiming's uniform distribution, d starts from
``d_initial`` and b from zero: the model starts as the backbone.

Departures: layers of other shapes use the leading rows and columns of the largest A and B (as HF peft does; the
paper has one shape). The adapter file holds A and B once, where the paper keeps their seed alone: an adapter
must not change with a library's random generator.

Trainable: rank + out a target. RoBERTa-base, rank 1024 on query and value: 43,008. A role that is a slice of a
fused projection is adapted on its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import FiniteFloat, NonNegativeInt, PositiveInt, Probability
from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.base import PEFTStrategy, Supports
from peftlab.peft.surgery import adapter_generator, is_conv1d, weight_matrix
from peftlab.peft.weight_update import WeightUpdate, slice_name
from peftlab.peft.wrapping import (
    MergeableLayer,
    add_to_rows,
    merge_all,
    part_name,
    target_features,
    weight_as_out_in,
    wrap,
)

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

_PROJECTION = "vera_projection"


@dataclass(kw_only=True)
class VeRA(PEFTStrategy, name="vera"):
    """Learned vectors around shared random matrices:  h = W x + Λ_b B Λ_d A x."""

    supports = Supports(mergeable=True, hf_peft="VERA")
    count = "rank + out a target"

    rank: PositiveInt = 256
    """Rank r of the shared matrices; it may exceed the layers' width."""
    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    """Roles, or regexes on module names. Each entry must match something."""
    dropout: Probability = 0.0
    """Dropout on the input of the adapter's path."""
    d_initial: FiniteFloat = 0.1
    """Start of the vector d; zero would leave nothing to learn from."""
    projection_seed: NonNegativeInt | None = None
    """Seed of the shared matrices; null: the run's seed."""

    def __post_init__(self) -> None:
        """Raise ValueError for settings under which nothing could train."""
        if not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [query, value].")
        if self.d_initial == 0:
            raise ValueError("peft.d_initial=0 gives no gradient, as b starts from zero too. Choose another, e.g. 0.1.")

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Make the shared matrices, and wrap every target in its vectors."""
        targets = find_targets(backbone, self.targets)
        shapes = [target_features(target) for target in targets]
        projection = RandomProjection(
            max(in_features for in_features, _ in shapes),
            max(out_features for _, out_features in shapes),
            self.rank,
            adapter_generator(seed if self.projection_seed is None else self.projection_seed, _PROJECTION),
        )
        weight = targets[0].module.weight
        assert isinstance(weight, Tensor)
        backbone.model.add_module(_PROJECTION, projection.to(weight.device))
        for target, (in_features, out_features) in zip(targets, shapes, strict=True):
            layer = wrap(backbone, target, VeRALayer)
            update = VectorUpdate(
                projection, in_features, out_features, self.d_initial, self.dropout, target.output_slice
            )
            assert isinstance(layer, VeRALayer)
            layer.updates[part_name(target)] = update.to(layer.weight.device)

    def closed_form(self, backbone: Backbone) -> int:
        """Rank + out a target."""
        return sum(self.rank + target_features(target)[1] for target in find_targets(backbone, self.targets))

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The vectors, and the frozen A and B once: without them the vectors mean nothing."""
        shared = {
            f"{name}.{letter}": tensor
            for name, found in module.named_modules()
            if isinstance(found, RandomProjection)
            for letter, tensor in found.named_buffers()
        }
        return super().adapter_tensors(module) | shared

    def merge(self, backbone: Backbone) -> None:
        """Add Λ_b B Λ_d A to the frozen weights; the adapter's path is then skipped."""
        merge_all(backbone, VeRALayer, undo=False)

    def unmerge(self, backbone: Backbone) -> None:
        """Take it away from the weights again (within rounding)."""
        merge_all(backbone, VeRALayer, undo=True)

    def weight_updates(self, backbone: Backbone) -> list[WeightUpdate]:
        """Λ_b B and Λ_d A of every target."""
        return [
            WeightUpdate(
                slice_name(name, part), weight_matrix(layer.base)[update.output_slice or slice(None)], update.factors()
            )
            for name, layer in backbone.model.named_modules()
            if isinstance(layer, VeRALayer)
            for part, update in layer.updates.items()
            if isinstance(update, VectorUpdate)
        ]

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """The vectors of every layer, and the shared matrices once."""
        projection = backbone.model.get_submodule(_PROJECTION)
        tensors = {f"base_model.vera_{letter}": plain_float(matrix) for letter, matrix in projection.named_buffers()}
        layers = {name: layer for name, layer in backbone.model.named_modules() if isinstance(layer, VeRALayer)}
        for name, layer in layers.items():
            first, *more = layer.all_updates()
            if more or first.output_slice is not None:
                raise PeftlabError(
                    f"this VeRA cannot be written in the format of HF peft: '{name}' is adapted in slices, each with "
                    "the leading rows of B, and a whole layer has other rows there. Train it on whole modules: "
                    "peft.targets with their names."
                )
            tensors[f"{MODEL}{name}.vera_lambda_d"] = plain_float(first.d)
            tensors[f"{MODEL}{name}.vera_lambda_b"] = plain_float(first.b)
        config = {
            "peft_type": "VERA",
            "r": self.rank,
            "target_modules": module_names(backbone, layers),
            "vera_dropout": self.dropout,
            "d_initial": self.d_initial,
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": any(is_conv1d(layer.base) for layer in layers.values()),
            "bias": "none",
        }
        return HFAdapter(config, tensors)

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:
        """VERA, with the shared matrices."""
        if folder.peft_type != "VERA":
            return None
        if "base_model.vera_A" not in folder.tensors:
            raise PeftlabError(
                f"peft.path: {folder.path} holds no vera_A and vera_B (save_projection=false): they come from HF "
                "peft's own random numbers, and the vectors mean nothing without them. Save it with "
                "save_projection=True."
            )
        folder.understands("r", "target_modules", "fan_in_fan_out", "layers_to_transform", "layers_pattern")
        folder.understands("d_initial", "init_weights", "projection_prng_key", "save_projection")
        return {
            "rank": folder.tensors["base_model.vera_A"].shape[0],
            "targets": [re.escape(name) for name in folder.modules_with("vera_lambda_d")],
            "dropout": folder.option("vera_dropout", 0.0),
        }

    def load_hf(self, backbone: Backbone, folder: HFFolder) -> None:
        """The shared matrices and the vectors of every layer."""
        for letter, matrix in backbone.model.get_submodule(_PROJECTION).named_buffers():
            folder.copy(f"base_model.vera_{letter}", matrix, backbone)
        for name, layer in backbone.model.named_modules():
            if isinstance(layer, VeRALayer):
                (update,) = layer.all_updates()
                folder.copy(f"{MODEL}{name}.vera_lambda_d", update.d, backbone)
                folder.copy(f"{MODEL}{name}.vera_lambda_b", update.b, backbone)


class RandomProjection(nn.Module):
    """A and B, frozen and shared by all layers; it stands once, at the top of the model."""

    A: Tensor
    B: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        # Buffers: they never train, and papers do not count them.
        A, B = torch.empty(rank, in_features), torch.empty(out_features, rank)
        self.register_buffer("A", nn.init.kaiming_uniform_(A, generator=generator))  # (r, largest in)
        self.register_buffer("B", nn.init.kaiming_uniform_(B, generator=generator))  # (largest out, r)


class VectorUpdate(nn.Module):
    """Λ_b B Λ_d A for all outputs of a layer, or a slice of them."""

    def __init__(
        self,
        projection: RandomProjection,
        in_features: int,
        out_features: int,
        d_initial: float,
        dropout: float,
        output_slice: slice | None,
    ) -> None:
        super().__init__()
        self._shared = (projection,)  # in a tuple, so that it is no submodule and is saved once
        self.in_features, self.out_features = in_features, out_features
        self.output_slice = output_slice
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.d = nn.Parameter(torch.full((projection.A.shape[0],), d_initial))  # (r,)
        self.b = nn.Parameter(torch.zeros(out_features))  # (out,)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) in this layer's size."""
        (projection,) = self._shared
        return projection.A[:, : self.in_features], projection.B[: self.out_features]

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        A, B = self._matrices()
        low = F.linear(self.dropout(x.to(self.d.dtype)), A) * self.d  # (…, r)
        return F.linear(low, B) * self.b

    def dense(self) -> Tensor:
        """Λ_b B Λ_d A as one matrix (out, in)."""
        left, right = self.factors()
        return left @ right

    def factors(self) -> tuple[Tensor, Tensor]:
        """Λ_b B (out, r) and Λ_d A (r, in)."""
        A, B = self._matrices()
        return self.b.unsqueeze(1) * B, self.d.unsqueeze(1) * A

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={len(self.d)}, slice={self.output_slice}"


class VeRALayer(MergeableLayer):
    """A frozen layer and its updates: one for the whole output, or one a slice."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.updates = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        out: Tensor = self.base(x)
        if not self.merged:
            for update in self.all_updates():
                out = add_to_rows(out, update(x), update.output_slice)
        return out

    def fold(self, *, undo: bool) -> None:
        """Add the updates to the base's weight, or take them away."""
        weight = weight_as_out_in(self.base)
        for update in self.all_updates():
            weight[update.output_slice or slice(None)] += (update.dense() * (-1 if undo else 1)).to(weight.dtype)

    def all_updates(self) -> list[VectorUpdate]:
        """The updates, in the order of their slices."""
        return list(self.updates.values())  # type: ignore[arg-type]
