from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer, WordTokenizer, basic_english
from peftlab.errors import BackboneError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't", ["don", "'", "t"]),
        ('don’t “quote” "this"', ["don", "'", "t", "quote", "this"]),
        ("one<br />two<br>three", ["one", "two", "three"]),
        ("a; b: c", ["a", "b", "c"]),
        ("[so] (what)?", ["(", "so", ")", "(", "what", ")", "?"]),
        ("3.5 stars\tout-of 5\n", ["3", ".", "5", "stars", "out-of", "5"]),
        ("", []),
    ],
)
def test_basic_english(text: str, words: list[str]) -> None:
    assert basic_english(text) == words


def test_vocabulary_is_by_frequency_then_alphabet() -> None:
    tokenizer = WordTokenizer.count(["b a c", "c b d", "c"], max_words=3, min_count=1)
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "c", "b", "a"]
    assert WordTokenizer.count(["b a c", "c b d", "c"], 9, min_count=2).vocabulary[2:] == ["c", "b"]


def test_word_ids_unknown_words_empty_texts_and_truncation() -> None:
    tokenizer = WordTokenizer(["good", "film"])
    assert tokenizer.encode(["Good film", "bad film", "", "   ", "good good good"], 2) == [
        [2, 3],
        [1, 3],
        [1],
        [1],
        [2, 2],
    ]
    assert tokenizer.decode([2, 3, 0, 0]) == "good film"


def test_vocabulary_survives_its_file(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(["grüße", "b"])
    path = tmp_path / "vocabulary.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    again = WordTokenizer.load(path)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.fingerprint == tokenizer.fingerprint != WordTokenizer(["b", "grüße"]).fingerprint


@pytest.mark.parametrize(
    "content", ["{", '{"a": 1}', '["a", "b"]', '["<pad>", "<unk>", 3]', '["<pad>", "<unk>", "a", "a"]']
)
def test_damaged_vocabulary_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(BackboneError, match="vocabulary is damaged") as caught:
        WordTokenizer.load(path)
    assert str(path) in str(caught.value)


def test_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"cannot be read.*vocabulary.json"):
        WordTokenizer.load(tmp_path / "vocabulary.json")


def test_bytes_round_trip_and_are_cut() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(["héllo", ""], 16)
    assert ids[1] == [1, 2]
    assert (ids[0][0], ids[0][-1], len(ids[0])) == (1, 2, 8)
    assert tokenizer.decode(ids[0]) == "héllo"
    assert len(tokenizer.encode(["x" * 50], 10)[0]) == 10
    assert max(tokenizer.encode(["".join(map(chr, range(300)))], 900)[0]) < len(tokenizer) == 259
    with pytest.raises(BackboneError, match=r"data.max_length=2 .* at least 3"):
        tokenizer.encode(["a"], 2)


def hf_tokenizer(specials: bool = True, **more: object) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5}, "[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if not specials:
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", **more)
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # Stored padding and truncation, as sentence encoders have them, must not leak into the ids.
    backend.enable_padding(length=12)
    backend.enable_truncation(4)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", **more
    )


def test_hf_ids_have_specials_are_cut_and_not_padded() -> None:
    tokenizer = HFTokenizer(hf_tokenizer(), 6)
    assert tokenizer.pad_id == 0
    assert tokenizer.encode(["good film", "film " * 9], 6) == [[2, 4, 5, 3], [2, 5, 5, 5, 5, 3]]
    assert tokenizer.decode([2, 4, 5, 3, 0]) == "good film"
    assert tokenizer.encode([], 6) == []
    with pytest.raises(BackboneError, match=r"data.max_length=2 .* 2 special tokens"):
        tokenizer.encode(["good"], 2)


def test_hf_fingerprint_is_of_the_state_and_not_of_the_last_call() -> None:
    first = HFTokenizer(hf_tokenizer(), 6)
    first.encode(["good"], 5)
    assert first.fingerprint == HFTokenizer(hf_tokenizer(), 6).fingerprint
    assert first.fingerprint == HFTokenizer(first._tokenizer, 6).fingerprint
    other = hf_tokenizer()
    other.add_tokens(["new"])
    assert first.fingerprint != HFTokenizer(other, 7).fingerprint
    assert first.fingerprint != HFTokenizer(hf_tokenizer(truncation_side="left"), 6).fingerprint


def test_decoder_tokenizer_pads_with_its_end_and_never_returns_nothing() -> None:
    tokenizer = HFTokenizer(hf_tokenizer(specials=False), 6)
    assert tokenizer.pad_id == 3
    assert tokenizer.encode(["", "good"], 4) == [[3], [4]]


def test_no_token_to_pad_with() -> None:
    with pytest.raises(BackboneError, match=r"backbone.tokenizer="):
        HFTokenizer(hf_tokenizer(specials=False), 3)


def test_vocabulary_file_is_plain_json() -> None:
    assert json.loads(WordTokenizer(["a"]).to_json()) == ["<pad>", "<unk>", "a"]
