"""What training changed of a finished run's weights, measured: spectra, ranks, sizes, and shared directions.

For each adapted layer with the update ΔW = U diag(σ) Vᵀ of a weight W:

- effective rank  exp(−Σ p_i ln p_i), p_i = σ_i / Σ σ         (Roy & Vetterli 2007, The effective rank)
- stable rank     ‖ΔW‖_F² / ‖ΔW‖_2² = Σ σ_i² / σ_1²
- relative size   ‖ΔW‖_F / ‖W‖_F
- amplification   ‖ΔW‖_F / ‖UᵀW V‖_F                          (LoRA, arXiv:2106.09685, section 7.3)

- intruder dimensions   those of the first left-singular vectors of W + ΔW whose cosine with each of W's is below a half
                                                              (Shuttleworth et al., arXiv:2410.21228)

The amplification looks at the directions whose σ is above 1 % of the first. Between the same layer of two runs:

- similarity      φ(i, j) = ‖V_A[:, :i]ᵀ V_B[:, :j]‖_F² / min(i, j)      (LoRA, eq. 4)

the share of the smaller space of right-singular directions that lies in the other: 1 if one holds the other, 0 if they
are orthogonal. For random directions it is max(i, j) / inputs on average.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.config import RunConfig
from peftlab.errors import PeftlabError, RunError, listed
from peftlab.peft.adapter import Adapter
from peftlab.peft.names import live_parameter, located
from peftlab.peft.surgery import weight_matrix
from peftlab.peft.weight_update import WeightUpdate
from peftlab.records.folder import finished_run
from peftlab.runs.assemble import build_backbone, reassemble, start_from_run
from peftlab.training.precision import into_precision

INTRUDES_BELOW = 0.5
"""Cosine with every left-singular vector of W, below which one of W + ΔW is new."""
NUMERICALLY_ZERO = 1e-6
"""Singular values below this share of the first have directions that rounding decides: they are not compared."""


class NothingToMeasure(PeftlabError):
    """A run has changed no weight matrix."""


@dataclass(frozen=True)
class LayerUpdate:
    """What was measured of one layer."""

    name: str
    shape: tuple[int, int]
    """(out, in)."""
    singular_values: list[float]
    effective_rank: float
    stable_rank: float
    above_one_percent: int
    """Singular values above 1 % of the first."""
    relative_size: float
    amplification: float | None
    """None where W does nothing to these directions, or nothing was changed."""
    intruders: int | None = None
    """Intruder dimensions among the first directions of W + ΔW; None: they were not asked for."""


@dataclass(frozen=True)
class Inspection:
    """One run, inspected."""

    run: str
    method: str
    seed: int
    backbone_fingerprint: str
    layers: list[LayerUpdate]
    directions: dict[str, Tensor]
    """Layer → its first right-singular directions (n, in), in float64."""

    def plain(self) -> dict[str, Any]:
        """For JSON, without the directions."""
        return {"run": self.run, "method": self.method, "layers": [asdict(layer) for layer in self.layers]}


def inspect_run(given: str, *, directions: int, intruders: int = 0) -> Inspection:
    """Measure every weight matrix that the run in the folder ``given`` has changed.

    Args:
        given: the path of a run folder, as typed.
        directions: how many right-singular directions to keep of each layer.
        intruders: how many left-singular directions of W + ΔW to look for intruders in; 0 spares the decomposition of
            whole weights.

    Raises:
        RunError: if it is no finished run.
        PeftlabError: if its method changes no weight matrix.
    """
    folder, config, _ = finished_run(given)
    assembled, facts = reassemble(folder, config)
    adapter = assembled.adapter
    updates: Iterable[WeightUpdate] | None = adapter.weight_updates()
    if updates is None:
        updates = _differences(given, config, adapter, facts["label_names"])
    elif _trains_matrices(adapter):
        own = _differences(given, config, adapter, facts["label_names"], beside=True)
        updates = itertools.chain(updates, own)
    layers, kept = [], {}
    for update in updates:
        layer, kept[update.name] = measure(update, directions=directions)
        layers.append(replace(layer, intruders=intruder_dimensions(update, intruders)) if intruders else layer)
    if not layers:
        raise NothingToMeasure(
            f"{given}: peft={config.peft.name} has changed no weight matrix: there is nothing to measure."
        )
    return Inspection(given, config.peft.name, config.seed, assembled.fingerprint, layers, kept)


@torch.no_grad()
def measure(update: WeightUpdate, *, directions: int) -> tuple[LayerUpdate, Tensor]:
    """The measures of one update, and its first right-singular directions (n, in), those of zero left out."""
    U, S, Vh = update.svd()
    weight = update.weight.detach().to(S)
    first = float(S[0])
    size = float(torch.linalg.vector_norm(S))
    above = int((S / first > 0.01).sum())  # none of 0 / 0
    through = float(torch.linalg.matrix_norm(U[:, :above].T @ weight @ Vh[:above].T)) if above else 0.0
    layer = LayerUpdate(
        name=update.name,
        shape=(weight.shape[0], weight.shape[1]),
        singular_values=S.tolist(),
        effective_rank=_effective_rank(S),
        stable_rank=(size / first) ** 2 if first else 0.0,
        above_one_percent=above,
        relative_size=_ratio(size, float(torch.linalg.matrix_norm(weight))) or 0.0,
        amplification=_ratio(size, through) if first else None,
    )
    return layer, Vh[: min(directions, int((S / first > NUMERICALLY_ZERO).sum()))].clone()


@torch.no_grad()
def intruder_dimensions(update: WeightUpdate, first: int, below: float = INTRUDES_BELOW) -> int:
    """How many of the ``first`` left-singular vectors of W + ΔW have a cosine under ``below`` with every one of W.

    Cosines are taken without their sign. Where W has several equal singular values their vectors are any of a space.
    """
    weight = update.weight.detach().double()
    before = torch.linalg.svd(weight, full_matrices=False)[0]
    change = update.update
    whole = change.double() if isinstance(change, Tensor) else change[0].double() @ change[1].double()
    after = torch.linalg.svd(weight + whole, full_matrices=False)[0][:, :first]
    return int(((before.T @ after).abs().max(dim=0).values < below).sum())


def _effective_rank(singular_values: Tensor) -> float:
    total = singular_values.sum()
    if not total:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """φ(i, j) for i = 1 … n, j = 1 … m of orthonormal directions (n, in) and (m, in), as a matrix (n, m)."""
    squares = (first @ second.T).square().cumsum(0).cumsum(1)
    n, m = squares.shape
    sizes = torch.minimum(torch.arange(1, n + 1).unsqueeze(1), torch.arange(1, m + 1))
    return (squares / sizes).clamp(max=1.0)


def similarities(first: Inspection, second: Inspection) -> dict[str, Tensor]:
    """φ of every layer that both runs have adapted; without layers that were not changed at all in one of them.

    Raises:
        RunError: if the runs have no adapted layer in common, or one of another shape.
    """
    shapes = [{layer.name: layer.shape for layer in run.layers} for run in (first, second)]
    common = [name for name in shapes[0] if name in shapes[1]]
    if not common:
        raise RunError(
            f"{first.run} and {second.run} have adapted no layer in common: one of them "
            f"{listed(shapes[0], limit=4)}, the other {listed(shapes[1], limit=4)}. Compare runs whose peft.targets "
            "overlap, on the same backbone."
        )
    for name in common:
        if shapes[0][name] != shapes[1][name]:
            raise RunError(
                f"'{name}' is {_by(shapes[0][name])} in {first.run} and {_by(shapes[1][name])} in {second.run}. "
                "Compare runs on the same backbone."
            )
    return {
        name: similarity(first.directions[name], second.directions[name])
        for name in common
        if len(first.directions[name]) and len(second.directions[name])
    }


def left_out(first: Inspection, second: Inspection) -> list[str]:
    """For each run that has adapted layers which the other has not, a line that names them."""
    names = [{layer.name for layer in run.layers} for run in (first, second)]
    return [
        f"Only {run.run} has adapted {listed(only, limit=4)}: not compared."
        for run, only in ((first, names[0] - names[1]), (second, names[1] - names[0]))
        if only
    ]


def chance(by_layer: dict[str, Tensor], run: Inspection) -> list[list[float]]:
    """φ of random directions, max(i, j) / inputs, in the mean over the layers and of the size of their mean."""
    n, m = (min(phi.shape[axis] for phi in by_layer.values()) for axis in (0, 1))
    inputs = [layer.shape[1] for layer in run.layers if layer.name in by_layer]
    share = sum(1 / number for number in inputs) / len(inputs)
    return [[max(i, j) * share for j in range(1, m + 1)] for i in range(1, n + 1)]


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def mean_similarity(by_layer: dict[str, Tensor]) -> Tensor:
    """The mean over layers, for as many directions as all of them have."""
    n, m = (min(phi.shape[axis] for phi in by_layer.values()) for axis in (0, 1))
    return torch.stack([phi[:n, :m] for phi in by_layer.values()]).mean(dim=0)


def _differences(
    given: str,
    config: RunConfig,
    adapter: Adapter,
    label_names: list[str],
    *,
    beside: bool = False,
) -> Iterable[WeightUpdate]:
    """The backbone's own weights that train, minus those that training started from.

    ``beside``: that of the adapter which stands on weights is said already.
    """
    if config.backbone.from_run is None:
        start = build_backbone(config, label_names, run_folder=Path(given))
    else:
        start = start_from_run(config, label_names)
    into_precision(start, config.trainer.precision)
    own = set(adapter.own_names())
    changed = [name for name, p in start.model.named_parameters() if name in own and p.ndim == 2]
    if not changed and not beside:
        raise NothingToMeasure(f"{given}: peft={adapter.strategy.name} {_why_nothing(adapter)}")
    for name in changed:
        layer = name.removesuffix(".weight")
        before, after = _matrix(start.model, name), _matrix(adapter.model, name)
        yield WeightUpdate(layer, before, after.double() - before.double())


def _trains_matrices(adapter: Adapter) -> bool:
    """Whether weights of the backbone's own linear layers or embeddings train."""
    return any(live_parameter(adapter.model, name).ndim == 2 for name in adapter.own_names())


def _matrix(model: nn.Module, name: str) -> Tensor:
    """The parameter ``name`` as a matrix (out, in)."""
    module, leaf = located(model, name)
    matrix = weight_matrix(module) if leaf == "weight" else getattr(module, leaf)
    assert isinstance(matrix, Tensor)
    return matrix.detach()


def _why_nothing(adapter: Adapter) -> str:
    if adapter.own_names():
        return (
            "trains vectors of the backbone only (biases, scales of normalisation layers): no weight matrix has "
            "changed, so there is no rank to measure."
        )
    reason = "it trains nothing beside the head."
    if adapter.num_added():
        reason = (
            "what it trains stands beside the weights (prompts, or layers with a non-linearity), and is no matrix that "
            "could be added to them."
        )
    return f"changes no weight matrix of the backbone: {reason} Inspect a run of lora, dora, ia3, vera, full, …"
