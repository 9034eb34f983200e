"""What every type of claim is made of: its keys in the YAML, the values it is judged by, how rows are compared.

A type of claim is one file in `claims/`: a subclass of Claim with its own keys and `prepare`, which turns measured
values into statements, and the statements into verdicts with their words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from emabench.config import Section
from emabench.tables.parts import Amount, TableRow
from emabench.tables.verdict import Effect, PreparedClaim

Rows = Mapping[str, TableRow]


class Unfit(ValueError):
    """These values cannot be judged so; the message says why."""


@dataclass(frozen=True)
class Values:
    """What a claim is judged by: numbers by row and seed, of finished runs alone."""

    by_row: Mapping[str, Mapping[int, float]]
    higher: bool  # is better
    tracks: Mapping[str, Mapping[int, Sequence[tuple[int, float]]]] = field(
        default_factory=dict
    )  # along the run
    target: float | None = None

    def seeds(self, rows: Sequence[str]) -> list[int]:
        """The seeds that all of these rows have."""
        return sorted(set.intersection(*(set(self.by_row.get(row, {})) for row in rows)))

    def positive(self, rows: Sequence[str]) -> bool:
        return all(value > 0 for row in rows for value in self.by_row[row].values())

    def mean(self, row: str) -> float:
        numbers = self.by_row[row].values()
        return sum(numbers) / len(numbers)

    def changes(self, row: str, over: str, relative: bool) -> list[float]:
        """By seed: how the row differs from the other, as a logarithm of the ratio where `relative`."""
        self.check_positive(relative, [row, over])
        numbers, base = self.by_row[row], self.by_row[over]
        seeds = self.seeds([row, over])
        if relative:
            return [math.log(numbers[seed] / base[seed]) for seed in seeds]
        return [numbers[seed] - base[seed] for seed in seeds]

    def gains(self, row: str, over: str, relative: bool) -> list[float]:
        """The same, positive where the row is better."""
        sign = 1 if self.higher else -1
        return [sign * change for change in self.changes(row, over, relative)]

    def check_positive(self, relative: bool, rows: Sequence[str]) -> None:
        if relative and not self.positive(rows):
            raise Unfit("a relative change needs values above zero")

    def effect(self, row: str, over: str, relative: bool, rows: Rows) -> Effect:
        """The change of one row over another, named."""
        what = f"{rows[row].label} over {rows[over].label}"
        return Effect(what, self.changes(row, over, relative), relative)


class Claim(Section):
    """Something the rows are said to show. `article` and `literature` hold what each of them expects."""

    text: str
    metric: str
    sources: list[str] = Field(default_factory=list)  # of the literature's expectation
    note: str = ""

    def rows(self) -> list[str]:
        """The rows it is about."""
        raise NotImplementedError

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        """The statements to be tested on these values. Raises Unfit."""
        raise NotImplementedError

    def expectations(self, rows: Rows) -> dict[str, Any]:
        """What is expected, by who expects it."""
        expected = {
            "article": getattr(self, "article", None),
            "literature": getattr(self, "literature", None),
        }
        return {who: each for who, each in expected.items() if each is not None}

    def only_at_paper_scale(self) -> bool:
        """Does it compare values in a unit that other data or another network would change?"""
        return False


class Pair(Claim):
    """A claim about one row over another."""

    row: str
    over: str

    def rows(self) -> list[str]:
        return [self.row, self.over]


def to_log(amount: Amount, shift: float = 0.0) -> float:
    """An amount, moved by `shift`, on the scale that is tested: relative changes as logarithms of ratios."""
    value = amount.value + shift
    if not amount.relative:
        return value
    return math.log1p(value) if value > -1 else -math.inf
