"""Independent random streams from one seed.

Each consumer (adapter initialisation, data order, dropout, ...) draws from its own stream, so that
changing one leaves the others' numbers as they were.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` of the experiment's ``seed``.

    A hash and not ``seed + i``, so that neighbouring seeds share no stream.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what a step on ``device`` draws: torch's generator of the CPU and that of the device.

    As ``torch.manual_seed`` does for these two, which also goes through all devices that there might be: a
    millisecond, in each step.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
    torch.default_generator.manual_seed(seed)
