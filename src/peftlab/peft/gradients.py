"""Gradients of frozen weights on training data, for methods that start from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from peftlab.errors import PeftlabError
from peftlab.peft.surgery import is_conv1d

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


class TrainingLosses(Protocol):
    """Losses of the first training batches: what ``batches`` of :meth:`PEFTStrategy.build` is."""

    def __call__(self, count: int, /) -> Iterator[tuple[Tensor, float]]:
        """For each of the first ``count`` batches its mean loss (a scalar with its graph), and what it counts."""


def weight_gradients(
    backbone: Backbone, targets: Sequence[Target], batches: TrainingLosses, count: int
) -> list[Tensor]:
    """∂L/∂W (rows, in) in float32 of each of ``targets``, where L is the mean loss over the first ``count`` batches.

    The model computes as in evaluation, without dropout, and is left as it was. A batch's graph and gradients are gone
    before the next one is computed.

    Raises:
        PeftlabError: if there is no batch, or the loss does not depend on one of the weights.
    """
    weights = list({id(weight): weight for weight in map(_weight, targets)}.values())
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    counted = 0.0
    training = {module: module.training for module in backbone.modules()}
    trained = [weight.requires_grad for weight in weights]
    try:
        backbone.eval()
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for loss, counts in batches(count):
                found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
                for sum_, gradient in zip(total, found, strict=False):
                    if gradient is not None:
                        sum_.add_(gradient.to(sum_), alpha=counts)  # the model may be elsewhere meanwhile
                counted += counts
                del loss, found
    finally:
        for weight, trains in zip(weights, trained, strict=True):
            weight.requires_grad_(trains)
        for module, was in training.items():
            module.training = was
    if counted == 0:
        raise PeftlabError("peft.init=lora_ga starts from gradients, and there is no training batch to take them from.")
    by_weight = {id(weight): gradient / counted for weight, gradient in zip(weights, total, strict=True)}
    return [_of_rows(target, by_weight[id(_weight(target))]) for target in targets]


def _weight(target: Target) -> Tensor:
    weight = target.module.weight
    assert isinstance(weight, Tensor)
    return weight


def _of_rows(target: Target, gradient: Tensor) -> Tensor:
    matrix = gradient.T if is_conv1d(target.module) else gradient  # (out, in)
    rows = matrix[target.output_slice or slice(None)]
    if not bool(rows.isfinite().all()) or not bool(rows.any()):
        what = "is zero" if bool(rows.isfinite().all()) else "is no finite number"
        raise PeftlabError(
            f"peft.init=lora_ga: the gradient of '{target.name}' on the training batches {what}. Leave it out of "
            "peft.targets, or give it batches whose loss reaches it."
        )
    return rows
