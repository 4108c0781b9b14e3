"""Texts to token ids, three ways: words of a counted vocabulary, bytes, or a model's own tokenizer.

All satisfy :class:`peftlab.backbones.base.Tokenizer`. The ids depend on nothing but the tokenizer's
own state, which ``fingerprint`` hashes. A row may be a pair of texts (:mod:`peftlab.pairs`).

Text is text: ``[SEP]`` or ``</s>`` in a user's text is read letter by letter, and special tokens stand where the
tokenizer's template puts them and nowhere else.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.backbones.segments import Segments
from peftlab.errors import BackboneError, UnreadableText
from peftlab.pairs import SEPARATOR, is_pair, parts
from peftlab.reading import read_json

_LINE_BREAK = re.compile(r"<br\s*/?>")
_NORMALISED = str.maketrans(
    {"‘": "'", "’": "'", "“": None, "”": None, '"': None, ";": " ", ":": " ", "[": "(", "]": ")"}
)
_WORD = re.compile(r"[.,()!?']|[^\s.,()!?']+")


def basic_english(text: str) -> list[str]:
    """Lower-case words of ``text``, with ``. , ( ) ! ? '`` as words of their own.

    The usual "basic English" normalisation: HTML line breaks, colons and semicolons separate words,
    double quotes vanish, typographic quotes and square brackets count as plain ones.
    """
    return _WORD.findall(_LINE_BREAK.sub(" ", text.lower()).translate(_NORMALISED))


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_room(max_length: int, special: int) -> None:
    if max_length <= special:
        raise BackboneError(
            f"data.max_length={max_length} leaves no room for text: this backbone's tokenizer adds {special} "
            f"special tokens to each text. Set data.max_length to at least {special + 1}."
        )


def _longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """What is kept of one or two texts of ``lengths`` tokens in ``room``: the longer is cut first, then both alike."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    if first + second <= room:
        return [first, second]
    half = room // 2
    if first <= half:
        return [first, room - first]
    return [room - second, second] if second <= half else [room - half, half]


class WordTokenizer:
    """Words of a vocabulary counted on the training texts; id 0 is ``<pad>`` and id 1 ``<unk>``."""

    SPECIALS = ("<pad>", "<unk>")
    pad_id = 0
    unknown_id = 1

    def __init__(self, words: Sequence[str]) -> None:
        """``words``: the vocabulary without the specials, in id order."""
        self.vocabulary = [*self.SPECIALS, *words]
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.fingerprint = _hash("basic_english", *self.vocabulary)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @classmethod
    def count(cls, texts: Sequence[str], max_words: int, min_count: int) -> WordTokenizer:
        """The ``max_words`` most frequent words that occur ``min_count`` times; ties go by alphabet."""
        counts = Counter(word for text in texts for word in basic_english(text))
        kept = [word for word, count in counts.items() if count >= min_count and word not in cls.SPECIALS]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls(kept[:max_words])

    @classmethod
    def load(cls, path: Path) -> WordTokenizer:
        """Read what :meth:`to_json` wrote.

        Raises:
            BackboneError: naming the file, if it is missing or is no vocabulary.
        """
        try:
            vocabulary = read_json(path)
        except OSError as error:
            raise BackboneError(f"the run's vocabulary cannot be read: {path}: {error.strerror}.") from error
        except ValueError as error:
            raise BackboneError(f"the run's vocabulary is damaged: {path} is not JSON ({error}).") from error
        if (
            not isinstance(vocabulary, list)
            or not all(isinstance(word, str) for word in vocabulary)
            or tuple(vocabulary[:2]) != cls.SPECIALS
            or len(set(vocabulary)) != len(vocabulary)
        ):
            raise BackboneError(
                f"the run's vocabulary is damaged: {path} must be a JSON list of different words that begins "
                f"with {list(cls.SPECIALS)}."
            )
        return cls(vocabulary[2:])

    def to_json(self) -> str:
        """The vocabulary in id order."""
        return json.dumps(self.vocabulary, ensure_ascii=False, indent=0) + "\n"

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids of each text's words, cut to ``max_length``; a text without words becomes ``[<unk>]``.

        The words of a pair stand behind each other: in a bag of words nothing can separate them.
        """
        _check_room(max_length, special=0)
        rows = (basic_english(text)[:max_length] for text in texts)
        return [[self._ids.get(word, self.unknown_id) for word in row] or [self.unknown_id] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ``ids``, padding left out."""
        return " ".join(self.vocabulary[index] for index in ids if index != self.pad_id)


class ByteTokenizer:
    """UTF-8 bytes between ``[CLS]`` and ``[SEP]``: 259 ids, nothing to download, for random models."""

    pad_id = 0
    cls_id = 1
    sep_id = 2
    fingerprint = _hash("utf-8 bytes", "pad=0 cls=1 sep=2 first=3")
    _first = 3  # the specials come first, because RoBERTa counts positions from its padding id

    def __len__(self) -> int:
        return self._first + 256

    def segments(self) -> Segments | None:
        """As BERT numbers them."""
        single = [self.cls_id, self._first, self.sep_id]
        pair = [*single, self._first, self.sep_id]
        return Segments.learned([(single, [0, 0, 0]), (pair, [0, 0, 0, 1, 1])], (self.cls_id, self.sep_id))

    chat_template: str | None = None
    begin = (cls_id,)
    """What stands in front of every text."""
    end_id = sep_id
    """What ends an answer."""

    def special_words(self) -> dict[str, int]:
        """The specials as a template may write them."""
        return {"[CLS]": self.cls_id, "[SEP]": self.sep_id}

    def special_names(self) -> dict[str, str]:
        """What templates call them: ``bos_token``, ``eos_token``."""
        return {"bos_token": "[CLS]", "eos_token": "[SEP]"}

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone, whatever it says; nothing stands around it."""
        return [[byte + self._first for byte in text.encode("utf-8", errors="replace")] for text in texts]

    def marked(self, text: str) -> list[int]:
        """Ids of what a template has written: its special words are special tokens."""
        parts = re.split(r"(\[CLS\]|\[SEP\])", text)
        words = self.special_words()
        return [i for part in parts for i in ([words[part]] if part in words else self.plain([part])[0])]

    def special_ids(self) -> dict[str, int]:
        """The specials under the names that model configs use."""
        return {
            "bos_token_id": self.cls_id,
            "eos_token_id": self.sep_id,
            "cls_token_id": self.cls_id,
            "sep_token_id": self.sep_id,
        }

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """``[CLS] bytes [SEP]`` or ``[CLS] bytes [SEP] bytes [SEP]``, cut so that ``max_length`` ids are kept."""
        _check_room(max_length, special=3 if any(map(is_pair, texts)) else 2)
        return [
            self._row([part.encode("utf-8", errors="replace") for part in parts(text)], max_length) for text in texts
        ]

    def _row(self, texts: list[bytes], max_length: int) -> list[int]:
        kept = _longest_first([len(text) for text in texts], max_length - 1 - len(texts))
        ids = [self.cls_id]
        for text, length in zip(texts, kept, strict=True):
            ids += [byte + self._first for byte in text[:length]] + [self.sep_id]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; a character cut in the middle shows as the replacement character."""
        return bytes(index - self._first for index in ids if index >= self._first).decode(errors="replace")

    def written(self, ids: Sequence[int]) -> str:
        """The text that a model has written, decoded as a whole, without special tokens."""
        return self.decode(ids)


class HFTokenizer:
    """A ``transformers`` tokenizer, truncating but never padding."""

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        """Wrap ``tokenizer`` for a model that has ``vocabulary_size`` token embeddings.

        A tokenizer without a padding token of its own (GPT-2, Llama) pads with its end-of-text token.

        Raises:
            BackboneError: if it has no token to pad with, or reads texts as ids that the model does not embed.
        """
        _read_text_as_text(tokenizer)
        self._tokenizer = tokenizer
        self._require_embedded(vocabulary_size)
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        usable = [index for index in candidates if index is not None and 0 <= index < vocabulary_size]
        if not usable:
            raise BackboneError(
                f"the tokenizer ({type(tokenizer).__name__}) has neither a padding nor an end-of-text token "
                f"among the model's {vocabulary_size} ids. Give another one: backbone.tokenizer=<hub id or "
                f"folder>."
            )
        self.pad_id: int = usable[0]
        self._special = tokenizer.num_special_tokens_to_add()
        self._special_of_pair = tokenizer.num_special_tokens_to_add(pair=True)
        # What no text is read as: the unknown token is what any text may become.
        self._reserved = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.fingerprint = _hash(type(tokenizer).__name__, "text is text", *_state(tokenizer))

    def _require_embedded(self, size: int) -> None:
        """Raise BackboneError for words behind the ``size`` that the model embeds; specials may lie there unused.

        Those that are put around a text, or between two, are used.
        """
        around = {i for given in (("a",), ("a", "a")) for i in self._tokenizer(*given)["input_ids"]}
        unused = {word for word in self._tokenizer.all_special_tokens if self._id_of(word) not in around}
        beyond = {i: word for word, i in self._tokenizer.get_vocab().items() if i >= size and word not in unused}
        if beyond:
            raise BackboneError(
                f"the tokenizer has {len(self._tokenizer)} tokens, but the model embeds {size}: {len(beyond)} of them, "
                f"first '{beyond[min(beyond)]}' (id {min(beyond)}), have no vector. Enlarge the model where they were "
                f"added (model.resize_token_embeddings({len(self._tokenizer)}), and save it; of a random one "
                f"backbone.architecture.vocab_size={len(self._tokenizer)}), or give the tokenizer that it was trained "
                "with: backbone.tokenizer=<hub id or folder>."
            )

    def _id_of(self, token: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(token))

    def pad_on_the_left(self) -> None:
        """Let the files that :meth:`save` writes say so."""
        self._tokenizer.padding_side = "left"

    def segments(self) -> Segments | None:
        """As the tokenizer numbers them; None if it does not tell texts apart."""
        if "token_type_ids" not in self._tokenizer.model_input_names:
            return None
        rows = []
        for given in (("a",), ("a", "a")):
            found = self._tokenizer(*given, add_special_tokens=True, return_token_type_ids=True)
            rows.append((found["input_ids"], found["token_type_ids"]))
        return Segments.learned(rows, sorted(self._reserved))

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own template of conversations; of several the one called ``default``."""
        found = self._tokenizer.chat_template
        return found.get("default") if isinstance(found, dict) else found

    @property
    def begin(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of every text."""
        whole = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        bare = self.plain(["a"])[0]
        found = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        return tuple(whole[: found[0]]) if found and bare else ()

    @property
    def end_id(self) -> int | None:
        """What ends an answer: the tokenizer's end-of-text token, if it has one."""
        found = self._tokenizer.eos_token_id
        return None if found is None else int(found)

    def special_words(self) -> dict[str, int]:
        """The words that a template may write, and no text is read as, with their ids."""
        named = {word: self._id_of(word) for word in map(str, self._tokenizer.all_special_tokens)}
        added = self._tokenizer.added_tokens_decoder.items()  # Llama 3 names few of its own
        return {str(token): int(number) for number, token in added if token.special} | named

    def special_names(self) -> dict[str, str]:
        """What templates call them: ``bos_token``, ``eos_token``, …"""
        return {name: str(word) for name, word in self._tokenizer.special_tokens_map.items() if isinstance(word, str)}

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone, read as text whatever it says; nothing stands around it."""
        return self._bare(texts, split=True)

    def marked(self, text: str) -> list[int]:
        """Ids of what a template has written: its special words are special tokens."""
        return self._bare([text], split=False)[0]

    def _bare(self, texts: Sequence[str], *, split: bool) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=split, padding=False, truncation=False,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip
        return found

    def special_ids(self) -> dict[str, int]:
        """``bos_token_id`` and kin, those the tokenizer has."""
        names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        return {name: index for name in names if (index := getattr(self._tokenizer, name, None)) is not None}

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids with special tokens, cut to ``max_length``; a text without tokens becomes one padding token.

        A pair is put together as the tokenizer does it (``[CLS] a [SEP] b [SEP]``, ``<s> a </s></s> b </s>``), the
        longer text cut first. A tokenizer that puts nothing between two texts, as decoders' do, gets a line break.
        """
        _check_room(max_length, max(self._special, self._special_of_pair if any(map(is_pair, texts)) else 0))
        if self._special_of_pair <= self._special:
            texts = [text.replace(SEPARATOR, "\n") for text in texts]
        rows: list[list[int]] = []
        for pairs, chunk in itertools.groupby(texts, key=is_pair):
            whole = list(chunk)
            given = list(zip(*map(parts, whole), strict=True)) if pairs else [whole]
            rows += self._tokenizer(
                *map(list, given),
                add_special_tokens=True,
                split_special_tokens=True,
                truncation=True,
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        self._require_text(texts, rows)
        return [list(row) or [self.pad_id] for row in rows]

    def _require_text(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        """Raise UnreadableText for a text that a special token was read from after all."""
        for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
            template = self._special_of_pair if is_pair(text) else self._special
            if sum(token in self._reserved for token in row) > template:
                found = next(token for token in map(str, self._tokenizer.all_special_tokens) if token in text)
                raise UnreadableText(
                    f"the text {text[:60]!r} holds '{found}', which this tokenizer ({type(self._tokenizer).__name__}) "
                    "cannot read as text: it takes it for its own special token. Take it out of the text.",
                    number,
                )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files: it reads text as text there too, and pads as it did here."""
        tokenizer = copy.deepcopy(self._tokenizer)
        if tokenizer.pad_token_id != self.pad_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.pad_id)
        tokenizer.save_pretrained(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def written(self, ids: Sequence[int]) -> str:
        """The text that a model has written, decoded as a whole, without special tokens; spaces stay as they are."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _read_text_as_text(tokenizer: Any) -> None:
    """Let ``tokenizer`` read special tokens in a text letter by letter, and say so in the files that it saves."""
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    state = json.loads(backend.to_str())
    if state["model"].get("type") != "Unigram":
        return
    # A Unigram model has its special tokens among its pieces, with the best of all scores.
    special = {token["id"] for token in state["added_tokens"] if token["special"]} - {state["model"].get("unk_id")}
    state["model"]["vocab"] = [
        [piece, _NEVER if number in special else score] for number, (piece, score) in enumerate(state["model"]["vocab"])
    ]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))


_NEVER = -1e6
"""A score, as the logarithm of a probability, with which no text is read as a piece."""


def _state(tokenizer: Any) -> list[str]:
    """Everything that decides the ids. Stored truncation and padding do not: each call sets its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = sorted(tokenizer.get_vocab().items())
    extra = {
        "init": tokenizer.init_kwargs.get("do_lower_case"),
        "truncation_side": tokenizer.truncation_side,
        "added": {str(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()},
    }
    return [json.dumps(part, sort_keys=True, default=str) for part in (state, tokenizer.special_tokens_map, extra)]
