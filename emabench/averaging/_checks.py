"""Errors for wrong values: the field, the value, and what would be right."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class NotFinite(ValueError):
    """Weights or gradients for an average are NaN or infinite; the average is unchanged."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean …?' for the nearest known word, else the known words."""
    words = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(words)}"


def check_number(
    field: str,
    value: Any,
    low: float,
    high: float,
    right: str,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """ValueError unless `value` is a number between low and high (ends included unless open)."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if (
        number
        and low <= value <= high
        and not (low_open and value == low)
        and not (high_open and value == high)
    ):
        return
    raise ValueError(f"{field}={value!r}: give {right}")


def check_count(field: str, value: Any, least: int) -> None:
    """ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{field}={value!r}: give a whole number of at least {least}")


def check_fraction_or_count(field: str, value: Any, *, zero: bool) -> None:
    """ValueError unless `value` is a whole number of updates, or a share of the run strictly between 0 and 1."""
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = float(value)
        is_count = number.is_integer() and (number > 0 or (zero and number == 0))
        if is_count or 0 < number < 1:
            return
    least = "at least 0" if zero else "at least 1"
    raise ValueError(
        f"{field}={value!r}: give a whole number of updates of {least}, or a share of the run in (0, 1)"
    )


def check_choice(field: str, value: Any, known: Iterable[str]) -> None:
    """ValueError unless `value` is one of the known words."""
    known = list(known)
    if value not in known:
        raise ValueError(f"{field}={value!r} is unknown{nearest(value, known)}")


def check_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """ValueError naming the first key of `given` that is not known."""
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{what} has no option {key!r}{nearest(key, known)}")
