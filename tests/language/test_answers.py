"""From a text to what counts of it: tables of right values, found by hand; BLEU and ROUGE by counting."""

from __future__ import annotations

from decimal import Decimal

import pytest

from peftlab.language.answers import RULES, bleu, cut, number, plain, rouge_l, same_number, score


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 72, in total, so the farmer earns that much.", "72"),
        ("He pays $1,234.50 a year.", "1234.50"),
        ("#### 18", "18"),
        ("She has 3 cats and 5 dogs.\n#### 8\nThat took 2 steps.", "8"),
        ("#### 1,000,000\n\nQuestion: what is 2 + 2?\nAnswer: 4", "1000000"),
        ("7 #### none", None),
        ("It is 5 degrees colder: -12.", "-12"),
        ("It is 5 degrees colder: −12.", "-12"),  # U+2212
        ("10-12", "12"),
        ("x-3", "3"),
        ("(4)-3", "3"),
        ("3.0", "3"),
        ("…, , .", None),
        ("The answer is 5.", "5"),
        ("The answer is .5", "0.5"),
        ("Version 1.2.3", "3"),
        ("\\boxed{9{,}500}", "9500"),
        ("In 1999, 2,000 people came", "2000"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("1234,567", "567"),
        ("12%", "12"),
        ("", None),
        ("٣", None),  # digits that Decimal would read, and nobody's rule names
    ],
)
def test_the_number_of_an_answer(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))


def test_numbers_are_compared_exactly_and_nothing_equals_nothing() -> None:
    assert same_number(Decimal("1234.50"), Decimal("1234.5"))
    assert not same_number(Decimal("12345678901234567"), Decimal("12345678901234568"))
    assert not same_number(None, None)
    assert not same_number(None, Decimal(0))


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("a b c STOP d HALT", ["HALT", "STOP"], "a b c "),
        ("yes end_of_turn>", ["_of_t"], "yes end"),
        ("no stop here ", ["STOP"], "no stop here "),
        ("Stop first", ["Stop"], ""),
        ("xST", ["STOP"], "xST"),
        ("text", [], "text"),
        ("text", [""], "text"),
    ],
)
def test_a_text_ends_before_the_earliest_stop(text: str, stops: list[str], left: str) -> None:
    assert cut(text, stops) == left


def test_exact_match_looks_past_white_space_and_nothing_else() -> None:
    assert plain("  the\u00a0answer\n is\t42 ") == "the answer is 42"
    assert plain("e\u0301") == plain("\u00e9")
    assert score("exact_match", ["Yes", " yes\n", "yes."], [["yes"], ["no", "yes"], ["yes"]]) == (1 / 3, [0, 1, 0])
    assert score("number", ["so 7", "nothing"], [["#### 7.0"], ["nothing"]]) == (0.5, [1, 0])


def test_bleu_is_of_the_corpus_and_of_all_references_together() -> None:
    """38.2626 by counting n-grams; 28.5175 with each reference for itself, 40.0506 as a mean of sentences."""
    answers = ["A serves B food near the river.", "C is in the area of D and it's cheap."]
    references = [
        ["A serves B food, near the river.", "The restaurant A offers B."],
        ["C is located in D, it's cheap."],
    ]
    found, signature = bleu(answers, references)
    assert found == pytest.approx(38.2626, abs=1e-4)
    assert "tok:13a" in signature
    assert "case:mixed" in signature
    assert score("rouge_l", answers, references)[0] == pytest.approx(0.8684, abs=1e-4)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    """Of 4 and 6 words 3 in common, in order: F = 2 · 3 / 10; the second reference is the better one."""
    assert rouge_l(["the cat sat down"], [["x y", "the big cat sat on it"]]) == [pytest.approx(0.6)]


def test_every_judge_says_its_rule() -> None:
    assert all(RULES[judge] for judge in ("exact_match", "number", "bleu", "rouge_l"))
