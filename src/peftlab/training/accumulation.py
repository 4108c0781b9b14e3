"""A step is the step over one batch of all its rows: over several batches, on several processes, short or few.

A batch weighs what its objective counts (:func:`peftlab.data.batching.weight_of`): its rows, or of a language model its
targets.

The last step of an epoch may have fewer batches, and a shorter one; on several processes they share its rows as evenly
as can be, and one of them may have none.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


class WeightOfAStep:
    """Weights what each process has of a step's batches by its rows, or by what they count.

    Lightning divides each batch's loss by ``accumulate_grad_batches`` k, and DDP the sum of the gradients by the number
    of processes W, as if all parts were equal. With n_ri rows of batch i in process r, N_i in all of them and N in all,

        1/W Σ_r Σ_i (n_ri W / N_1) (1 / k) ∇ mean_ri · (k N_1 / N)  =  ∇ mean over all N rows.

    Where all batches are there and equal both factors are 1, and nothing is touched.
    """

    def __init__(self) -> None:
        self._first = 0
        self._all = 0

    def weighted(self, loss: Tensor, rows: int, together: int | None = None, processes: int = 1) -> Tensor:
        """The mean ``loss`` of a batch, as it is to be differentiated.

        Args:
            loss: mean over this process's rows.
            rows: so many; 0 if they only stand in, so that all processes compute alike.
            together: rows of the batch in all processes; None: this one is alone.
            processes: W.
        """
        together = rows if together is None else together
        self._first = self._first or together
        self._all += together
        return loss if rows * processes == self._first else loss * (rows * processes / self._first)

    def leaves(self, rows: int) -> bool:
        """Whether :meth:`weighted` would leave the loss of a batch with ``rows`` as it is, in one process."""
        return rows > 0 and self._first in (0, rows)

    def settle(self, optimizer: Optimizer, batches: int) -> bool:
        """Before the gradients are clipped: give them the size of the mean over the step's rows.

        Args:
            optimizer: whose parameters have them.
            batches: k.

        Returns:
            whether there is anything to step for. Where nothing counted the gradients are taken away, so that
            optimizers, with their momenta and weight decay, pass over this step.
        """
        first, rows = self._first, self._all
        self._first = self._all = 0
        if not rows:
            optimizer.zero_grad(set_to_none=True)
            return False
        if rows == batches * first:
            return True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(batches * first / rows)
        return True
