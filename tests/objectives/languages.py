"""Small sets of prompts and answers, and a decoder of two layers that reads bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

LANGUAGE = (
    "backbone=tiny", "backbone.architecture={model_type: llama, vocab_size: 300, hidden_size: 32, "
    "num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}",
    "logger=none", "data=instructions", "data.chat_template=none", "data.max_length=32", "trainer.threads=1",
)  # fmt: skip


def write_sums(folder: Path, rows: int = 60, name: str = "sums.jsonl") -> Path:
    """Sums with answers of one to three bytes, so that rows have unlike numbers of targets."""
    draw = random.Random(0)
    path = folder / name
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            one, other = draw.randint(0, 99), draw.randint(0, 99)
            file.write(json.dumps({"prompt": f"{one} + {other} = ", "response": str(one + other)}) + "\n")
    return path
