"""From a text that was written to what counts of it, and to a score. Imports no torch.

Each rule has a sentence that records say (:data:`RULES`). BLEU is sacrebleu's, ROUGE-L is rouge-score's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

Judge = Literal["exact_match", "number", "bleu", "rouge_l"]
"""What a text is judged by."""

RULES: Mapping[Judge, str] = {
    "exact_match": "Unicode NFC, white space at the ends removed, runs of it one space; case and punctuation count",
    "number": "the first number after the first ####, else the last number; a comma only before three digits; "
    "- is a sign unless a letter, digit or ) stands before it; compared as decimal numbers; no number equals nothing",
    "bleu": "sacrebleu's corpus BLEU: 13a, case kept, all references of a prompt together, in percent",
    "rouge_l": "rouge-score's rougeL, without stemmer: F of the best reference of each prompt, then the mean",
}

_NUMBER = re.compile(
    r"(?P<minus>[-−])?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))+|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
)
_MARK = "####"
_SPACE = re.compile(r"\s+")


def cut(text: str, stops: Sequence[str]) -> str:
    """``text``, decoded as a whole, before the earliest of ``stops``."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


def number(text: str) -> Decimal | None:
    """The number that ``text`` gives as its answer: GSM8K's form, LaTeX's ``9{,}500``, or the last one in a text."""
    text = text.replace("{,}", ",")
    _, marked, answer = text.partition(_MARK)
    found = list(_NUMBER.finditer(answer if marked else text))
    if not found:
        return None
    one = found[0] if marked else found[-1]
    value = Decimal(one["digits"].replace(",", ""))
    before = one.string[one.start() - 1 : one.start()]
    negative = one["minus"] and not (before.isalnum() or before == ")")
    return -value if negative else value


def same_number(first: Decimal | None, second: Decimal | None) -> bool:
    """Whether both are there, and equal as decimal numbers."""
    return first is not None and second is not None and first == second


def plain(text: str) -> str:
    """``text`` as exact match compares it."""
    return _SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def _exact(answer: str, references: Sequence[str]) -> float:
    return float(any(plain(answer) == plain(reference) for reference in references))


def _number(answer: str, references: Sequence[str]) -> float:
    return float(any(same_number(number(answer), number(reference)) for reference in references))


_ROW: Mapping[Judge, Callable[[str, Sequence[str]], float]] = {"exact_match": _exact, "number": _number}


def bleu_signature(answers: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """How sacrebleu has computed :func:`bleu`, in its own words."""
    return bleu(answers, references)[1]


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus BLEU in percent, and sacrebleu's signature.

    Args:
        answers: one a prompt.
        references: of each, one or more, of any number.
    """
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, references))
    streams: Any = [[of[n] if n < len(of) else None for of in references] for n in range(most)]
    metric = BLEU()
    return float(metric.corpus_score(list(answers), streams).score), str(metric.get_signature())


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each answer, from 0 to 1: F, the best of its references."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(answers, references, strict=True)
    return [max(scorer.score(one, answer)["rougeL"].fmeasure for one in of) for answer, of in pairs]


def score(
    judge: Judge, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float] | None]:
    """The figure over all answers, and each answer's own where there is such a thing.

    Args:
        judge: what is counted.
        answers: one a prompt, at least one.
        references: of each, at least one.
    """
    assert answers
    assert all(references)
    if judge == "bleu":
        return bleu(answers, references)[0], None
    own = (
        rouge_l(answers, references)
        if judge == "rouge_l"
        else [_ROW[judge](answer, of) for answer, of in zip(answers, references, strict=True)]
    )
    return sum(own) / len(own), own
