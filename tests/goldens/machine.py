"""On which machine a golden was computed: figures are compared to the bit there, and within a tolerance elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from peftlab.records import environment


def machine() -> dict[str, str | int]:
    """What decides the last bits of a sum: the processor, torch, its kernels, the threads."""
    return {
        "processor": f"{environment.hardware()['processor']} {_family_and_model()}".strip(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def random_numbers() -> str:
    """A hash of normally distributed numbers: not every processor draws the same ones, to the last bit, from one seed.

    The backbones of the run folders are random, and a run is refused on a backbone that is another.
    """
    numbers = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def _family_and_model() -> str:
    """A virtual machine may call all its maker's processors by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return ".".join(values[name] for name in ("cpu family", "model") if name in values)
