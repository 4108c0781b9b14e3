"""What a record says of the environment that a run ran in: code, packages, machine, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftlab.reading import Unreadable, read_json

PACKAGES = (
    "peftlab", "torch", "lightning", "torchmetrics", "transformers", "tokenizers", "datasets", "hydra-core",
    "omegaconf", "safetensors", "bitsandbytes", "numpy", "wandb",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


SNAPSHOT = "peftlab_snapshot.json"
"""Lies beside the package where it is a copy that was made for a sweep's workers (:mod:`peftlab.cluster.snapshot`)."""


def snapshot() -> dict[str, Any] | None:
    """``hash`` of the copy of the code that runs, and ``git`` of what was copied; None if it is no copy."""
    try:
        found = read_json(Path(__file__).parents[2] / SNAPSHOT)
    except (OSError, Unreadable):
        return None
    return found if isinstance(found, dict) and {"hash", "git"} <= set(found) else None


def git_state() -> dict[str, Any]:
    """Revision of the checkout that peftlab runs from, and whether it differs from it; None for a wheel.

    Of a copy that was made for workers: those of what was copied.
    """
    if (copied := snapshot()) is not None:
        return dict(copied["git"])
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed wheel may lie inside somebody else's repository: only a tracked file counts.
    if git("ls-files", "--error-unmatch", __file__) is None:
        return {"revision": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def hardware() -> dict[str, Any]:
    """Processor, threads, memory and accelerators of this process."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _peak_resident_mib() -> float:
    """The kernel's high-water mark of this process's own memory.

    Linux counts it anew after a fork (from what is resident then) and after an exec. ``ru_maxrss`` does not: it keeps
    the largest memory of whatever ran in the process before, so a run that a large program starts would inherit it.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return rss / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """Resident memory of this process now; the largest so far, where the system does not say it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return _peak_resident_mib()
    return pages * resource.getpagesize() / 2**20


def peak_memory_mib() -> dict[str, float]:
    """Largest resident memory of this process so far, and largest allocation on the GPU if there is one."""
    import torch

    found = {"peak_mib": _peak_resident_mib()}
    if torch.cuda.is_available():
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found
