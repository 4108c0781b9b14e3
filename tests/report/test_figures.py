"""What the pictures of a report say: ticks, titles, labels."""

from __future__ import annotations

import pytest

from peftlab.report.figures_ticks import MOST_TICKS, tick_text, ticks_between


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (18, 660, "20 50 100 200 500"),
        (95, 310, "100 150 200 300"),
        (20_000, 1_100_000, "20k 50k 100k 200k 500k 1M"),
        (456, 67_000_000, "1,000 10k 100k 1M 10M"),
        (1, 1e12, "1 1,000 1M 1B 1000B"),
        (1000, 1100, "1,000 1,025 1,050 1,075 1,100"),
        (0.004, 0.02, "0.005 0.01 0.02"),
    ],
)
def test_ticks_are_few_round_and_written_out(low: float, high: float, said: str) -> None:
    ticks = ticks_between(low, high)
    assert len(ticks) <= MOST_TICKS
    assert " ".join(map(tick_text, ticks)) == said
