"""Every declared verdict is supported by its check, and follows the formula under test."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest

from emabench.audit import Result, Statement, Verdict, run, statements

EVERY = statements()


@functools.cache
def result_of(id: str) -> Result:
    """Each statement is checked once for all tests."""
    return run(next(each for each in EVERY if each.id == id))


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.id)
def test_the_check_supports_what_is_declared(each: Statement) -> None:
    result = result_of(each.id)
    assert not result.complaint
    assert result.outcome.expected
    assert result.outcome.measured


@pytest.mark.parametrize(
    "each",
    [each for each in EVERY if each.verdict is Verdict.WRONG],
    ids=lambda each: each.id,
)
def test_the_verdict_follows_the_formula(each: Statement) -> None:
    """As if the article had printed the corrected form: no longer wrong, and what is declared falls."""
    swapped = run(each.swapped())
    assert swapped.verdict is not Verdict.WRONG
    assert "declared wrong" in swapped.complaint
    assert result_of(each.id).verdict is Verdict.WRONG  # and back


@pytest.mark.parametrize(
    "each",
    [each for each in EVERY if each.verdict is Verdict.CONDITIONAL and each.right is not None],
    ids=lambda each: each.id,
)
def test_a_corrected_form_needs_no_further_assumption(each: Statement) -> None:
    assert run(each.swapped()).verdict is Verdict.HOLDS
    assert result_of(each.id).verdict is Verdict.CONDITIONAL


def test_ids_name_one_statement_each() -> None:
    assert len({each.id for each in EVERY}) == len(EVERY)


def test_wrong_statements_say_what_is_right() -> None:
    for each in EVERY:
        assert (each.verdict is Verdict.WRONG) <= bool(each.corrected and each.right is not None), each.id
        assert (each.verdict is Verdict.CONDITIONAL) <= bool(each.needs), each.id


TRUE_MADE_FALSE = {
    "7": lambda beta: math.log(2) / (1 - beta),
    "1.3-window": lambda beta: 2 / (1 - beta),
    "13": lambda losses: min(losses),
    "11-variance": lambda beta, rho: (1 + beta) / (1 - beta),
    "36": lambda t, ramp, low, high: low + t / ramp * (high - low),
    "51": lambda beta, ee, dd, ed: beta**2 * ee + (1 - beta) ** 2 * dd + beta * (1 - beta) * ed,
    "5.2-alpha": lambda alpha: alpha,
    "69": 0.7,
    "81-ema": lambda eta, beta: eta / (1 - beta),
    "84": lambda L, T: -2 * L / T,
    "88": lambda L, T: -L / (2 * T),
    "87": 1.0,
    "100": lambda a, theta, beta: a + beta * (theta - a),
    "115": lambda t, warm, low=0.0, high=0.999: low + t / warm * (high - low),
    "13.4-rc": lambda a: a,
    "17.4-batch-size": lambda beta, times: beta,
    "15": lambda S, H, g: float((S * H).sum() / (g @ g)),
    "24": lambda theta, n: sum(theta[-n - 1 :]) / n,
    "63": lambda beta, f: (1 - beta) / (1 - beta - 2j * math.pi * f),
    "92": lambda eta, beta, T, h: T * (1 - beta) / eta,
    "10": lambda beta, rho: (1 - beta) / (1 + beta) / 2,
    "16": lambda beta: 1 - beta,
    "8.1-gain": (0.3, 0.6),
    "15.3-cost": (1, 2),
    "17.3-slower": 4,
}


@pytest.mark.parametrize("id", TRUE_MADE_FALSE)
def test_a_true_formula_made_false_is_wrong(id: str) -> None:
    each = next(each for each in EVERY if each.id == id)
    made_false = run(replace(each, printed=TRUE_MADE_FALSE[id], right=None))
    assert made_false.verdict is Verdict.WRONG
    assert made_false.complaint
    assert not result_of(id).complaint
