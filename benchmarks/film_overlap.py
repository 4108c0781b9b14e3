"""Do reviews that are tested on speak of the films of training reviews? Measured by the names that they share.

    PEFTLAB_DATA=FOLDER python benchmarks/film_overlap.py      FOLDER/imdb/test.parquet: the official test

A name is a run of two or more capitalised words; a rare one stands in at most 15 training reviews. Counted are the
tested reviews that share at least three rare names with one and the same training review, as actors and characters of a
film are: of the hold-out of ``data=imdb_packaged``, and of 5,000 official test reviews, whose films are others.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftlab.data.imdb_packaged import IMDbPackaged

NAME = re.compile(r"\b[A-Z][a-z]+(?: [A-Z][a-z]+)+\b")
RARE, SHARED, DRAWN = 15, 3, 5000


def share_of(tested: Sequence[str], training: Sequence[str]) -> float:
    """Share of ``tested`` reviews that share rare names with one of ``training``."""
    counts = Counter(name for text in training for name in set(NAME.findall(text)))
    holders: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(training):
        for name in set(NAME.findall(text)):
            if counts[name] <= RARE:
                holders[name].append(index)
    found = 0
    for text in tested:
        shared = Counter(index for name in set(NAME.findall(text)) for index in holders.get(name, ()))
        found += max(shared.values(), default=0) >= SHARED
    return found / len(tested)


def main() -> None:
    """Print both shares."""
    splits = IMDbPackaged().load()
    training = splits.train.texts
    print(f"{len(training):,} training reviews")
    print(f"hold-out, {len(splits.test.texts):,} reviews: {share_of(splits.test.texts, training):.1%}")
    official = Path(os.environ.get("PEFTLAB_DATA", "../shared/data")) / "imdb" / "test.parquet"
    if not official.is_file():
        print(f"official test: no {official}")
        return
    import pyarrow.parquet  # type: ignore[import-untyped]

    texts = pyarrow.parquet.read_table(official, columns=["text"])["text"].to_pylist()
    drawn = np.random.default_rng(0).choice(len(texts), DRAWN, replace=False)
    print(f"official test, {DRAWN:,} of its reviews: {share_of([texts[index] for index in drawn], training):.1%}")


if __name__ == "__main__":
    main()
