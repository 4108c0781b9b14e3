from __future__ import annotations

from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.data.truncation import HeadAndTail, truncating
from tests.data.conftest import WordTokenizer


def test_a_quarter_from_the_start_and_the_rest_from_the_end() -> None:
    inner = ByteTokenizer()
    cut = HeadAndTail(inner)
    whole, kept = inner.encode(["abcdefghijklmnop"], 100)[0], cut.encode(["abcdefghijklmnop"], 8)[0]
    assert kept == whole[:2] + whole[-6:]
    assert kept[0] == inner.cls_id
    assert kept[-1] == inner.sep_id
    assert cut.encode(["abc", "abcdef"], 8) == inner.encode(["abc", "abcdef"], 8), "short texts are whole"


def test_it_has_a_cache_key_of_its_own(tokenizer: WordTokenizer) -> None:
    assert truncating(tokenizer, "head") is tokenizer
    assert truncating(tokenizer, "head_and_tail").fingerprint != tokenizer.fingerprint
