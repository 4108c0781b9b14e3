"""A small regression that can be learned: how many of a text's words are good."""

from __future__ import annotations

import csv
import random
from pathlib import Path

REGRESSION = (
    "backbone=text_classifier", "logger=none", "data=text_files", "data.objective=regression", "data.batch_size=8",
    "optim=sgd", "optim.lr=0.1", "peft=full", "trainer.max_epochs=3", "trainer.progress_bar=false", "trainer.threads=1",
)  # fmt: skip
"""A run of a second."""


def write_scores(folder: Path, rows: int = 120) -> Path:
    """scores.csv: texts of five words, and 0.25 more than the number of good ones."""
    generator, path = random.Random(3), folder / "scores.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(rows):
            good = generator.randint(0, 5)
            words = ["good"] * good + ["bad"] * (5 - good)
            generator.shuffle(words)
            writer.writerow([f"{' '.join(words)} {number}", good + 0.25])
    return path
