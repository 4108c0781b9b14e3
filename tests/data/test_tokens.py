from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.backbones.tokenizers import ByteTokenizer, WordTokenizer
from peftlab.data import tokens
from peftlab.data.base import Texts
from peftlab.data.tokens import TokenizedTexts, cache_folder, cut_rows, tokenize
from peftlab.data.truncation import HeadAndTail
from peftlab.errors import DataError
from peftlab.pairs import paired

TEXTS = Texts(["a bb ccc", "dddd", "ee a"], [0, 1, 1])


def rows(tokenized: TokenizedTexts) -> list[tuple[list[int], int]]:
    return [(tokenized[i]["input_ids"].tolist(), tokenized[i]["label"]) for i in range(len(tokenized))]


EXPECTED = [([1, 3, 4, 5, 2], 0), ([1, 6, 2], 1), ([1, 4, 3, 2], 1)]


def test_tokenised_once_and_memory_mapped(tokenizer: Any) -> None:
    first = tokenize(TEXTS, tokenizer, 16)
    again = tokenize(TEXTS, tokenizer, 16)
    assert tokenizer.calls == 1
    assert rows(first) == rows(again) == EXPECTED
    assert again.lengths.tolist() == [5, 3, 4]
    assert again.labels == [0, 1, 1]
    assert isinstance(again._ids, np.memmap)
    assert again._ids.dtype == np.int32
    assert not again._ids.flags.writeable
    assert [folder.name for folder in cache_folder().iterdir()] == [first.folder.name]  # nothing left behind


def test_labels_are_not_part_of_the_cache(tokenizer: Any) -> None:
    tokenize(TEXTS, tokenizer, 16)
    assert tokenize(Texts(TEXTS.texts, [5, 6, 7]), tokenizer, 16).labels == [5, 6, 7]
    assert tokenizer.calls == 1


def test_whatever_decides_the_ids_is_in_the_key(tokenizer: Any) -> None:
    tokenize(TEXTS, tokenizer, 16)
    assert rows(tokenize(TEXTS, tokenizer, 3))[0] == ([1, 3, 4], 0)
    tokenize(Texts(["a bb ccc", "dddde", "e a"], [0, 1, 1]), tokenizer, 16)
    tokenizer.fingerprint = "another"
    tokenize(TEXTS, tokenizer, 16)
    assert tokenizer.calls == 4
    # The border between two texts is content too.
    assert tokens.cache_key(["ab", "c"], "t", 8) != tokens.cache_key(["a", "bc"], "t", 8)


def _cut(folder: Path) -> None:
    (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-4])


def _flip(folder: Path) -> None:
    raw = bytearray((folder / "ids.npy").read_bytes())
    raw[-1] ^= 1
    (folder / "ids.npy").write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _flip,
        lambda folder: (folder / "offsets.npy").unlink(),
        lambda folder: (folder / "complete.json").unlink(),
        lambda folder: (folder / "complete.json").write_text("[]"),
        lambda folder: (folder / "complete.json").write_text("{"),
    ],
)
def test_a_damaged_cache_is_rebuilt(tokenizer: Any, damage: Any) -> None:
    damage(tokenize(TEXTS, tokenizer, 16).folder)
    assert rows(tokenize(TEXTS, tokenizer, 16)) == EXPECTED
    assert tokenizer.calls == 2
    tokenize(TEXTS, tokenizer, 16)
    assert tokenizer.calls == 2
    assert len(list(cache_folder().iterdir())) == 1


def test_chunks_join(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 2)
    assert rows(tokenize(TEXTS, tokenizer, 16)) == EXPECTED
    assert tokenizer.calls == 2


def test_a_pickled_copy_opens_the_files_itself(tokenizer: Any) -> None:
    tokenized = tokenize(Texts(["word " * 50] * 500, [0] * 500), tokenizer, 64)
    pickled = pickle.dumps(tokenized)
    assert len(pickled) < 5_000
    assert rows(pickle.loads(pickled)) == rows(tokenized)


def test_a_folder_that_cannot_be_written(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"token cache .*file.* cannot be written .*Set PEFTLAB_CACHE"):
        tokenize(TEXTS, tokenizer, 16)


def test_a_text_without_tokens(tokenizer: Any) -> None:
    tokenizer.encode = lambda texts, max_length: [[1], []]
    with pytest.raises(DataError, match=r"Row 2 of the train split has no tokens.*'¤'"):
        tokenize(Texts(["a", "¤"], [0, 1]), tokenizer, 8, split="train")


def _tokenize_in_a_process(start: Any, tokenizer: Any, answers: Any) -> None:
    start.wait()
    answers.put(rows(tokenize(TEXTS, tokenizer, 16)))


def test_processes_may_race(tokenizer: Any) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_tokenize_in_a_process, args=(start, tokenizer, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=600) for _ in processes] == [EXPECTED] * 4
    for process in processes:
        process.join()
    assert len(list(cache_folder().iterdir())) == 1


@pytest.mark.parametrize("wrapped", [lambda one: one, HeadAndTail])
def test_texts_that_are_cut_are_counted(wrapped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of exactly the limit is whole; of pairs the two count together."""
    words = wrapped(WordTokenizer([f"w{number}" for number in range(40)]))
    texts = Texts([" ".join(f"w{number}" for number in range(count)) for count in (3, 8, 9, 7, 30, 8)], [0] * 6)
    tokenized = tokenize(texts, words, 8)
    assert cut_rows(texts, words, 8, lengths=tokenized.lengths).tolist() == [2, 4]
    monkeypatch.setattr(type(words), "encode", None)  # now the cache has it
    assert cut_rows(texts, words, 8, lengths=tokenized.lengths).tolist() == [2, 4]


def test_pairs_that_are_cut_are_counted() -> None:
    texts = Texts([paired("abc", "de"), paired("abc", "def"), paired("abcdefgh", "i")], [0] * 3)
    tokenized = tokenize(texts, ByteTokenizer(), 8)  # [CLS] and two [SEP] beside five bytes
    assert tokenized.lengths.tolist() == [8, 8, 8]
    assert cut_rows(texts, ByteTokenizer(), 8, lengths=tokenized.lengths).tolist() == [1, 2]
