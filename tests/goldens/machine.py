"""On which machine a golden was computed: figures are compared to the bit there, and within a tolerance elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch

from peftlab.runs import facts


def machine() -> dict[str, str | int]:
    """What decides the last bits of a sum: the processor, torch, its kernels, the threads."""
    return {
        "processor": f"{facts.hardware()['processor']} {_family_and_model()}".strip(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _family_and_model() -> str:
    """A virtual machine may call all its maker's processors by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return ".".join(values[name] for name in ("cpu family", "model") if name in values)
