"""Jobs that share a GPU: which place the next one gets, and how many there may be. Imports no torch.

A short job keeps a GPU busy for a small part of its time, since it waits for its own Python; several together use what
one leaves. Their numbers are those they have alone: each has a process and a context of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from peftlab import machine
from peftlab.sweeps.slots import Slot

CONTEXT_MIB = 700.0
"""What a process takes of a GPU beside its tensors: the context, kernels and libraries."""
SPARE = 1.25
"""Of what tensors took at their peak, since the allocator keeps more."""
SHARE = 0.9
"""Of a GPU's memory that jobs are counted with."""


class Sharing:
    """How many jobs there may be on a GPU at a time.

    Args:
        per_gpu: a number; None: one until the first has ended, then as many as fit by what each has taken at most.
        most: places that there are on each GPU.
        memory: MiB of each GPU, by the name that CUDA_VISIBLE_DEVICES takes; asked for when it is needed.
    """

    def __init__(
        self, per_gpu: int | None, most: int, memory: Callable[[], Mapping[str, float]] = machine.gpu_memory_mib
    ) -> None:
        self._chosen_here = per_gpu is None
        self._most = most if per_gpu is None else per_gpu
        self._memory = memory
        self._peak = 0.0
        self._refused = False
        self.limit = 1 if per_gpu is None else per_gpu

    def place(self, free: Sequence[Slot], taken: Iterable[Slot]) -> Slot | None:
        """The free place on the GPUs with the fewest jobs; None if all have as many as there may be."""
        if not free or not free[-1].gpus:
            return free[-1] if free else None
        load = Counter(gpu for slot in taken for gpu in slot.gpus)
        chosen = min(reversed(free), key=lambda slot: max(load[gpu] for gpu in slot.gpus))
        return chosen if max(load[gpu] for gpu in chosen.gpus) < self.limit else None

    def learn(self, record: Mapping[str, Any]) -> str:
        """Set the number by what a finished job took; what to say of it, empty if it stays."""
        peak = record.get("memory", {}).get("peak_gpu_mib")
        if not self._chosen_here or self._refused or not peak or peak <= self._peak:
            return ""
        self._peak = float(peak)
        memory = min(self._memory().values(), default=0.0)
        fits = int(SHARE * memory // (SPARE * self._peak + CONTEXT_MIB))
        before, self.limit = self.limit, max(1, min(self._most, fits))
        if self.limit == before:
            return ""
        return (
            f"a job takes up to {self._peak:,.0f} MiB of a GPU's {memory:,.0f}: {self.limit} at a time on each "
            f"(jobs_per_device={self.limit} says so from the start)"
        )

    def lower(self, slot: Slot, others: Iterable[Slot]) -> str:
        """After a job on ``slot`` ran out of memory: fewer jobs; what to say of it, empty if one alone was too many.

        Args:
            slot: where the job was.
            others: where jobs run now.
        """
        if self.limit == 1:
            return ""
        beside = max((sum(gpu in other.gpus for other in others) for gpu in slot.gpus), default=0)
        self._refused = True
        self.limit = max(1, min(self.limit - 1, beside))
        return f"out of memory; {self.limit} at a time on a GPU from now on"
