"""How near a training step comes to its matrix products alone: LoRA on MiniLM, without dropout, on a CPU.

    python benchmarks/product_limit.py [--reviews 256] [--repeats 3] [--out FILE]

Every batch has 32 texts of 256 tokens (shorter ones are padded), so that the products of a step are known: those of the
linear layers and of attention, forward and, above the lowest trained layer, the gradients of what is read; and the
low-rank ones. Each is timed by itself, into memory that is there already. The limit is the speed of a step that is
nothing else. In turns with ``peftlab train``, each in a fresh process; printed are the medians and the shares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from against_trainer import NONE, OVERRIDES, ours

TEXTS, TOKENS = 32, 256
LAYERS, WIDE, INNER, HEADS, RANK = 6, 384, 1536, 12, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reviews", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", action="store_true", help=argparse.SUPPRESS)  # the products, in this process
    given = parser.parse_args()
    if given.limit:
        print(TEXTS / products())
        return
    words = [*OVERRIDES, "peft=lora", *NONE, f"data.limit_train={given.reviews}", "data.limit_test=64"]
    words += [f"data.max_length={TOKENS}", f"data.pad_to_multiple_of={TOKENS}"]
    limits, speeds = [], []
    for _ in range(given.repeats):
        done = subprocess.run([sys.executable, __file__, "--limit"],
                              check=True, capture_output=True, text=True)  # fmt: skip
        limits.append(float(done.stdout))
        speeds.append(ours(words)["samples_per_second"])
    shares = sorted(mine / limit for mine, limit in zip(speeds, limits, strict=True))
    found = {"limit": statistics.median(limits), "peftlab": statistics.median(speeds), "shares": shares}
    print(f"products alone: {found['limit']:.1f} samples/s; peftlab train: {found['peftlab']:.1f}")
    print(f"share: {statistics.median(shares):.2f} ({shares[0]:.2f} … {shares[-1]:.2f})")
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


def products() -> float:
    """Seconds of all matrix products of a step."""
    rows = TEXTS * TOKENS
    square, wider, narrower = (linear(rows, *shape) for shape in ((WIDE, WIDE), (WIDE, INNER), (INNER, WIDE)))
    scores, values = attention(TOKENS, WIDE // HEADS, TOKENS), attention(TOKENS, TOKENS, WIDE // HEADS)
    forward = 4 * square + wider + narrower + scores + values
    backward = square + wider + narrower + 2 * scores + 2 * values  # what the attention's output comes from, and itself
    reading = 3 * square  # gradients of what query, key and value read: below the first layer nobody needs them
    down, up = linear(rows, WIDE, RANK), linear(rows, RANK, WIDE)
    low_rank = 2 * (down + up + (down + up) + linear(RANK, rows, WIDE) + linear(WIDE, rows, RANK))
    return LAYERS * (forward + backward + low_rank) + (LAYERS - 1) * reading


def linear(rows: int, inner: int, columns: int) -> float:
    """Seconds of (rows, inner) · (inner, columns)."""
    import torch

    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    return timed(lambda: torch.mm(left, right, out=out))


def attention(rows: int, inner: int, columns: int) -> float:
    """The same for every head of every text."""
    import torch

    heads = TEXTS * HEADS
    left, right = torch.randn(heads, rows, inner), torch.randn(heads, inner, columns)
    out = torch.empty(heads, rows, columns)
    return timed(lambda: torch.bmm(left, right, out=out))


def timed(run: object, times: int = 7) -> float:
    """Median seconds of a call."""
    assert callable(run)
    run()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
