"""A step over several batches is the step over one batch of all their rows, also where they are short or few."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


class RowsOfAStep:
    """Weights the batches of a step by their rows.

    Lightning divides each batch's loss by ``accumulate_grad_batches`` k, as if there were k batches of equal size; the
    last step of an epoch may have fewer, and a shorter one. With n_i rows in batch i and N in all,

        Σ_i (n_i / n_1) (1 / k) ∇ mean_i · (k n_1 / N)  =  ∇ mean over all N rows.

    Where all batches are there and equal both factors are 1, and nothing is touched.
    """

    def __init__(self) -> None:
        self._first = 0
        self._all = 0

    def weighted(self, loss: Tensor, rows: int) -> Tensor:
        """The mean ``loss`` of a batch of so many ``rows``, as it is to be differentiated."""
        self._first = self._first or rows
        self._all += rows
        return loss if rows == self._first else loss * (rows / self._first)

    def settle(self, optimizer: Optimizer, batches: int) -> None:
        """Before the gradients are clipped: give them the size of the mean over the step's rows.

        Args:
            optimizer: whose parameters have them.
            batches: k.
        """
        first, rows = self._first, self._all
        self._first = self._all = 0
        if rows == batches * first:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(batches * first / rows)
