"""Two small tasks in files: reviews (bad, good) and topics (space, sport, trade); and data sets that are wrong."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from peftlab.data.base import DataSet, Splits, Texts

TOPICS = {"sport": "the team won the match", "trade": "the shares fell on the market", "space": "the probe left orbit"}
CLASSES = ["reviews/bad", "reviews/good", "topics/space", "topics/sport", "topics/trade"]
SIZES = {"reviews": (86, 10, 24), "topics": (43, 5, 12)}
"""Train, validation and test rows of each task, as ``tests.conftest.reviews`` and :func:`write_topics` give them."""


def write_topics(folder: Path, rows: int = 60) -> Path:
    """Short texts of three topics, in topics.jsonl."""
    generator = random.Random(3)
    path = folder / "topics.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            label = sorted(TOPICS)[number % 3]
            words = [*TOPICS[label].split(), f"w{generator.randint(0, 9)}", "a", "great", "dull", "film"]
            generator.shuffle(words)
            file.write(json.dumps({"text": " ".join(words) + f" {number}", "label": label}) + "\n")
    return path


def entries(reviews: Path, topics: Path, more: str = "") -> str:
    """``data.tasks`` of the two; ``more`` is added to the entry of topics."""
    return (
        f"data.tasks=[{{task: reviews, name: text_files, path: {reviews}}},"
        f"{{task: topics, name: text_files, path: {topics}{more}}}]"
    )


def overrides(reviews: Path, topics: Path) -> list[str]:
    """A tiny run on both."""
    return [
        "data=multitask", entries(reviews, topics), "backbone=tiny", "logger=none", "data.max_length=48",
        "data.batch_size=8", "trainer.progress_bar=false",
    ]  # fmt: skip


@dataclass(kw_only=True)
class OneClass(DataSet):
    """A task with nothing to tell apart."""

    def load(self) -> Splits:
        """Three splits of one row."""
        rows = Texts(["a"], [0])
        return Splits(rows, rows, rows, ("only",), "test")
