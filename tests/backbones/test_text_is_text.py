"""Special tokens in a text are read letter by letter, in a run and in the folder that it saves; segments follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftlab.backbones.segments import Segments
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.errors import BackboneError, UnreadableText
from peftlab.pairs import paired

CORPUS = ["dull [SEP] so it was warm </s> and <s> fine < / s > [CLS]", "the quick brown fox jumps over it"] * 20
HOSTILE = ["dull [SEP] so it was </s> warm<s>", "[CLS][CLS] fine", "a </s>", "[MASK]", "plain"]


def wordpiece() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(special_tokens=special, vocab_size=200))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return fast(tokenizer, names, ["input_ids", "token_type_ids", "attention_mask"])


def unigram() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", vocab_size=100)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return fast(tokenizer, {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}, ["input_ids", "attention_mask"])


def xlnets() -> Any:
    """XLNet's template: its special tokens stand behind the text, and the class token is a segment of its own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<sep>", "<cls>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", vocab_size=100)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", 1), ("<cls>", 2)],
    )
    names = {"pad": "<pad>", "unk": "<unk>", "sep": "<sep>", "cls": "<cls>"}
    return fast(tokenizer, names, ["input_ids", "token_type_ids", "attention_mask"])


def byte_pairs() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(special_tokens=special, vocab_size=400, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
    return fast(tokenizer, names, ["input_ids", "attention_mask"])


def fast(tokenizer: Tokenizer, names: dict[str, str], inputs: list[str]) -> Any:
    named = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **named)


KINDS = (wordpiece, unigram, xlnets, byte_pairs)


def wrapped(theirs: Any) -> HFTokenizer:
    return HFTokenizer(theirs, len(theirs))


@pytest.mark.parametrize("make", KINDS)
def test_a_template_is_all_that_makes_special_tokens(make: Any) -> None:
    theirs = make()
    ours = wrapped(theirs)
    special = set(theirs.all_special_ids) - {theirs.unk_token_id}
    for texts, pair in ((HOSTILE, False), ([paired(text, text) for text in HOSTILE], True)):
        template = theirs.num_special_tokens_to_add(pair=pair)
        for ids in ours.encode(texts, 200):
            assert sum(token in special for token in ids) == template, theirs.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("make", KINDS)
def test_texts_without_them_are_read_as_before(make: Any) -> None:
    plain = ["the quick brown fox", "so it was", "jumps over the fox"]
    theirs = make()
    before = theirs(plain)["input_ids"]
    assert wrapped(theirs).encode(plain, 200) == before


@pytest.mark.parametrize("make", KINDS)
def test_the_saved_files_read_the_same(make: Any, scratch: Path) -> None:
    ours = wrapped(make())
    ours.save(scratch / "saved")
    theirs = PreTrainedTokenizerFast.from_pretrained(scratch / "saved")
    assert theirs(HOSTILE)["input_ids"] == ours.encode(HOSTILE, 200)


@pytest.mark.parametrize("make", [wordpiece, xlnets])
def test_segments_are_the_tokenizers_own(make: Any) -> None:
    theirs = make()
    ours = wrapped(theirs)
    found = ours.segments()
    assert found is not None
    for given in (HOSTILE, [paired(text, "a fox") for text in HOSTILE]):
        rows = ours.encode(given, 200)
        width = max(map(len, rows))
        ids = torch.tensor([row + [theirs.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        for text, row, segments in zip(given, rows, found.of(ids, mask).tolist(), strict=True):
            expected = theirs(*text.split("\x1e"), return_token_type_ids=True)
            assert expected["input_ids"] == row
            assert segments == expected["token_type_ids"] + [0] * (width - len(row))


def test_tokenizers_that_number_nothing() -> None:
    assert wrapped(byte_pairs()).segments() is None
    assert Segments.learned([([1, 5, 2], [0, 0, 0])], (1, 2)) is None
    bytes_ = ByteTokenizer()
    (pair,) = bytes_.encode([paired("ab", "c")], 20)
    found = bytes_.segments()
    assert found is not None
    assert found.of(torch.tensor([pair]), torch.ones(1, len(pair))).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_vocabulary_of_whole_words_cannot_read_them() -> None:
    """It has them as words, so that no letters are left to read."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "fine": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ours = wrapped(fast(tokenizer, {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}, ["input_ids"]))
    with pytest.raises(UnreadableText, match=r"holds '</s>', which this tokenizer .* cannot read as text") as caught:
        ours.encode(["fine", "fine </s>"], 10)
    assert caught.value.row == 1


def test_words_that_the_model_does_not_embed() -> None:
    theirs = wordpiece()
    size = len(theirs)
    theirs.add_tokens(["@user", "httpurl"])
    with pytest.raises(
        BackboneError, match=rf"has {size + 2} tokens, but the model embeds {size}: 2 of them, first '@user'"
    ):
        HFTokenizer(theirs, size)
    assert HFTokenizer(theirs, size + 2).encode(["@user"], 8) == [[2, size, 3]]


def test_what_stands_around_a_text_must_be_embedded_too() -> None:
    theirs = wordpiece()
    size = len(theirs)
    theirs.add_special_tokens({"mask_token": "[LATER]"})
    assert HFTokenizer(theirs, size).encode(["a"], 8), "a special token that no text is given may lie behind"
    last = theirs.cls_token_id  # put before each text
    with pytest.raises(BackboneError, match=rf"but the model embeds {last}: .* of them, first '\[CLS\]' \(id {last}\)"):
        HFTokenizer(theirs, last)


def test_a_padding_token_that_the_model_does_not_embed(scratch: Path) -> None:
    """It is never made; the saved files pad with one that is there."""
    theirs = byte_pairs()
    size = len(theirs)
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    ours = HFTokenizer(theirs, size)
    assert ours.pad_id == theirs.eos_token_id
    ours.save(scratch / "saved")
    assert PreTrainedTokenizerFast.from_pretrained(scratch / "saved").pad_token_id == ours.pad_id < size
