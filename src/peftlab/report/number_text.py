"""How results are written: digits, signs, deviations. Imports nothing that a list of runs does not need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Literal, get_args

from peftlab.report.statistics import summarise

Form = Literal["score", "percent", "difference", "count", "seconds", "number", "text"]
FORMATS: tuple[str, ...] = get_args(Form)
NOTHING = "–"
"""In a cell without a value."""
TELLING: tuple[Form, ...] = ("score", "percent", "difference")
"""Formats of results, whose cells say what they lack; the others are of costs."""
WITHOUT_DEVIATION: tuple[Form, ...] = ("count", "text")
"""Formats whose cells have no deviation: they show the lowest and the highest count, or each text."""
DIGITS: dict[str, int] = {"score": 4, "percent": 2, "difference": 4, "seconds": 1}
"""Digits behind the point where a column says nothing else."""


def common_digits(cells: Iterable[Sequence[float]], *, deviation: bool = True) -> int | None:
    """How many digits behind the point all means of a column of numbers have; None if each had better have its own.

    The largest shows four digits that count, and the smallest two; zeros that end all of them, and all deviations, are
    left out. Where that would give the largest more than two digits beyond its four, numbers are too far apart for one
    form, and where all are below 0.0001, an exponent says more.

    Args:
        cells: the values of each cell; those without one, or with one that is not finite, have no say.
        deviation: whether the deviations of the cells are shown too.
    """
    summaries = [summarise(values) for values in cells]
    means = [one.finite_mean for one in summaries]
    sizes = [abs(mean) for mean in means if mean]
    if not sizes:
        return 0 if 0.0 in means else None
    of_largest = max(0, _digits_for(max(sizes), 4))
    digits = max(of_largest, _digits_for(min(sizes), 2))
    if max(sizes) < 1e-4 or digits > of_largest + 2:
        return None
    shown = [*sizes, *(one.std for one in summaries if deviation and one.std)]
    ends = (format(size, f".{digits}f").partition(".")[2] for size in shown)
    return max(len(end.rstrip("0")) for end in ends)


def _digits_for(size: float, counting: int) -> int:
    """Digits behind the point with which ``size``, above 0, has so many that count; negative before the point."""
    return counting - 1 - int(format(size, f".{counting - 1}e").partition("e")[2])


def single_text(value: float | None, form: Form, digits: int | None = None) -> str:
    """One run's value."""
    if value is None:
        return NOTHING
    if form == "percent":
        return fixed(100 * value, digits=DIGITS[form] if digits is None else digits)
    if digits is not None:
        return fixed(value, digits=digits)
    return fixed(value) if form == "score" else plain_number(value)


def number_text(values: Sequence[float], form: Form, digits: int | None = None, *, deviation: bool = True) -> str:
    """Mean and standard deviation of ``values``, or a count of them, in a form."""
    lost = sum(not isfinite(value) for value in values)
    if lost:
        return "not finite" if lost == len(values) else f"not finite in {lost} of {len(values)}"
    if form == "count":
        low, high = (with_minus(f"{round(value):,}") for value in (min(values), max(values)))
        return low if low == high else f"{low} … {high}"
    if form == "difference" and not any(values):
        return "0 (exactly)"
    found = summarise(values)
    assert found.mean is not None
    std = found.std if deviation else None
    places = DIGITS.get(form) if digits is None else digits
    if form in TELLING:
        assert places is not None
        scale = 100 if form == "percent" else 1
        text = fixed(scale * found.mean, sign=form == "difference", digits=places)
        return text if std is None else f"{text} ± {scale * std:.{places}f}"
    places = common_digits([values], deviation=deviation) if places is None else places
    if places is None:
        return plain_number(found.mean) if std is None else f"{plain_number(found.mean)} ± {plain_number(std)}"
    text = _with_commas(found.mean, places)
    return text if std is None else f"{text} ± {std:,.{places}f}"


def fixed(value: float, *, sign: bool = False, digits: int = 4) -> str:
    """So many decimals, with + or - if wanted; what rounds to zero has neither."""
    text = format(value, f"{'+' if sign else ''}.{digits}f")
    return with_minus(text) if any(digit in text for digit in "123456789") else text.lstrip("+-")


def _with_commas(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return with_minus(text) if any(digit in text for digit in "123456789") else text.lstrip("-")


def with_minus(number: str) -> str:
    """``number`` with a minus sign in the place of a hyphen in front."""
    return f"\N{MINUS SIGN}{number[1:]}" if number.startswith("-") else number


def plain_number(value: float) -> str:
    """Four significant digits, thousands with commas, no exponent for everyday sizes."""
    if abs(value) >= 1000:
        return with_minus(f"{value:,.0f}")
    return with_minus(f"{value:.4g}")
