from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_token_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "peftlab-cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says how to provide it."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("PEFTLAB_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set PEFTLAB_DATA to a folder with imdb/ and ag_news/")
    return folder


class WordTokenizer:
    """Words to ids by their length; [1] … [2] around them. Counts its calls."""

    pad_id = 0
    fingerprint = "words-by-length"

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        self.calls += 1
        return [[1, *(len(word) + 2 for word in text.split()), 2][:max_length] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()
