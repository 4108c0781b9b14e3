"""What this process may use of the machine: CPUs and GPUs, also where Slurm gives it a part. Imports no torch."""

from __future__ import annotations

import os
import subprocess


def cpus() -> int:
    """CPUs that this process may use: as the kernel says, and no more than Slurm has given where it does not bind."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return min(seen, int(given)) if given.isdigit() and int(given) > 0 else seen


def visible_gpus() -> list[str]:
    """The GPUs that a process may be given, by the names that CUDA_VISIBLE_DEVICES takes.

    As CUDA does, it reads that list up to the first entry that names none (Slurm writes ``NoDevFiles``).
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return names[: next((i for i, name in enumerate(names) if not _is_gpu(name)), len(names))]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, no GPU
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def gpu_memory_mib() -> dict[str, float]:
    """MiB of each GPU that a process may be given, by :func:`visible_gpus`' names; those the driver tells of."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    known: dict[str, float] = {}
    for line in listed.splitlines():
        index, uuid, size = (part.strip() for part in line.split(","))
        if size.replace(".", "", 1).isdigit():
            known |= {index: float(size), uuid: float(size)}
    found = {}
    for name in visible_gpus():
        # CUDA_VISIBLE_DEVICES may hold the beginning of a UUID
        sizes = [size for full, size in known.items() if full == name or (len(name) > 4 and full.startswith(name))]
        if sizes:
            found[name] = sizes[0]
    return found


def _is_gpu(name: str) -> bool:
    return name.isdigit() or name.startswith(("GPU-", "MIG-"))
