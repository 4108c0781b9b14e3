"""Whether a text costs more where there are more of them: the same 200 steps of 1,000, 10,000 and 25,000 reviews.

    PEFTLAB_DATA=FOLDER python benchmarks/growth.py [--steps 200] [--rows 1000 10000 25000] [--repeats 3] [--out FILE]

IMDb from ``$PEFTLAB_DATA/imdb`` (train.parquet, test.parquet: text, label). The order of an epoch is drawn over all its
rows, so that its first steps are a sample of it; batches have four texts of at most 128 tokens. None is held out: the
few that are validated are of the test file too. In turns; each run starts with an empty cache, so that its largest
memory is that of reading and tokenising too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 25_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    data = Path(os.environ.get("PEFTLAB_DATA") or "data").resolve() / "imdb"
    if not data.is_dir():
        print(f"growth left out, as there is no {data}")
        return
    found: dict[int, list[dict[str, float]]] = {rows: [] for rows in given.rows}
    for _ in range(given.repeats):
        for rows, turns in found.items():
            turns.append(one(rows, given.steps, data))
    first = found[given.rows[0]]
    for rows, turns in found.items():
        seconds, memory = (statistics.median(turn[key] for turn in turns) for key in ("ms_a_text", "peak_mib"))
        ratios = [turn["ms_a_text"] / base["ms_a_text"] for turn, base in zip(turns, first, strict=True)]
        more = statistics.median(turn["peak_mib"] / base["peak_mib"] for turn, base in zip(turns, first, strict=True))
        print(f"{rows:,} reviews: {seconds:.1f} ms a text ({statistics.median(ratios):.2f} of the first; "
              f"{min(ratios):.2f} … {max(ratios):.2f}), {memory:,.0f} MiB ({more:.2f})")  # fmt: skip
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


def one(rows: int, steps: int, data: Path) -> dict[str, float]:
    """Milliseconds of training a text, and the largest memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "data=text_files", f"data.train={data}/train.parquet", f"data.validation={data}/test.parquet",
            f"data.test={data}/test.parquet", "backbone=minilm", "peft=lora",
            "data.limit_val=32", "data.limit_test=32", "data.max_length=128", "data.batch_size=4",
            f"data.limit_train={rows}", f"trainer.max_steps={steps}", "logger=none", f"output_dir={folder}",
            "name=bench",
        ]  # fmt: skip
        environment = os.environ | {"PEFTLAB_CACHE": f"{folder}/cache"}
        subprocess.run(
            [sys.executable, "-m", "peftlab", "train", *words], check=True, capture_output=True, env=environment
        )
        (record,) = Path(folder).glob("bench/*/record.json")
        facts = json.loads(record.read_text())
    trained = sum(row["train_rows"] for row in facts["history"])
    return {"ms_a_text": 1000 * facts["timing"]["train_seconds"] / trained, "peak_mib": facts["memory"]["peak_mib"]}


if __name__ == "__main__":
    main()
