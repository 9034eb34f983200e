"""Every declared verdict is supported by its check, and follows the formula under test."""

from __future__ import annotations

import functools

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


def test_ids_name_one_statement_each() -> None:
    assert len({each.id for each in EVERY}) == len(EVERY)


def test_wrong_statements_say_what_is_right() -> None:
    for each in EVERY:
        assert (each.verdict is Verdict.WRONG) <= bool(each.corrected and each.right is not None), each.id
        assert (each.verdict is Verdict.CONDITIONAL) <= bool(each.needs), each.id
