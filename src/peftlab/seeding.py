"""Independent random streams from one seed.

Each consumer (adapter initialisation, data order, dropout, ...) draws from its own stream, so that
changing one leaves the others' numbers as they were.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` of the experiment's ``seed``.

    A hash and not ``seed + i``, so that neighbouring seeds share no stream.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
