"""What every type of claim is made of: its keys in the YAML, the values it is judged by, how rows are compared.

A type of claim is one file in `claims/`: a subclass of Claim with its own keys, its estimand in words, and
`prepare`, which turns measured values into statements and says which verdict follows from which of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field

from emabench.config import Section
from emabench.tables.parts import Amount, Scale, TableRow
from emabench.tables.statistics import Most
from emabench.tables.verdict import Effect, PreparedClaim

Rows = Mapping[str, TableRow]
Track = Sequence[tuple[int, float]]


class Unfit(ValueError):
    """These values cannot be judged so; the message says why."""


@dataclass(frozen=True)
class Measured:
    """What a claim is judged by.

    values: by row and seed what was measured, None where the run diverged or the metric is not finite. Every row
    has every seed: those that are still to be run, and all after them, are not among `seeds`.
    looks: the planned numbers of seeds at which the claim is judged.
    """

    rows: Rows
    scale: Scale
    label: str  # of the metric
    higher: bool  # is better
    seeds: Sequence[int]
    looks: tuple[int, ...]
    values: Mapping[str, Mapping[int, float | None]]
    diverged: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)
    tracks: Mapping[str, Mapping[int, Track]] = field(default_factory=dict)  # along the run

    def most(
        self, values: Sequence[float], *, above: float | None = None, below: float | None = None
    ) -> Most:
        """The statement that most seeds lie above or below a threshold."""
        if above is not None:
            return Most([value > above for value in values], self.looks)
        return Most([value < below for value in values], self.looks)  # type: ignore[operator]

    def at_least(self, values: Sequence[float], end: float) -> Most:
        return Most([value >= end for value in values], self.looks)

    def at_most(self, values: Sequence[float], end: float) -> Most:
        return Most([value <= end for value in values], self.looks)

    def gains(self, row: str, over: str, relative: bool) -> list[float]:
        """By seed: by how much the row is better, as a logarithm of the ratio where `relative`.

        A row without a number is the worst: −inf where only `row` has none, inf where only `over` has none, NaN
        (which bears nothing out) where both have none.
        """
        sign = 1 if self.higher else -1
        return [sign * change for change in self.changes(row, over, relative)]

    def changes(self, row: str, over: str, relative: bool) -> list[float]:
        """By seed: how the row differs from the other; for the better where `higher`, else for the worse if above 0."""
        if relative and not self.positive([over], some=True):
            raise Unfit("a relative change needs values above zero")
        return [
            self._change(self.values[row][seed], self.values[over][seed], relative) for seed in self.seeds
        ]

    def _change(self, value: float | None, base: float | None, relative: bool) -> float:
        if value is None and base is None:
            return math.nan
        if value is None or base is None:
            return math.inf if (value is None) != self.higher else -math.inf
        if not relative:
            return value - base
        if base <= 0:  # no share of it can be taken: bears nothing out
            return math.nan
        return math.log(value / base) if value > 0 else -math.inf  # a fall by 100 % or more

    def positive(self, rows: Sequence[str], some: bool = False) -> bool:
        """Are all numbers of these rows above zero (or some)?"""
        values = [self.values[row][seed] for row in rows for seed in self.seeds]
        above = [value > 0 for value in values if value is not None]
        return any(above) or not above if some else all(above)

    def effect(self, row: str, over: str, relative: bool, named: bool = True) -> Effect:
        """The change of one row over another."""
        what = f"{self.rows[row].label} over {self.rows[over].label}" if named else ""
        return Effect(what, self.changes(row, over, relative), relative, self.higher, self.seeds)


class Claim(Section):
    """Something that the rows are claimed to show. `article` and `literature` hold what each of them expects.

    of: `size` judges the size of a metric whose best value is zero (a bias), `value` the number itself.
    cannot_hold: an argument that refutes what the article expects, whatever is measured; `check` says how the
    argument itself is checked.
    """

    families: ClassVar[int] = 1  # of statements, for each expectation

    text: str
    metric: str
    of: Literal["value", "size"] = "value"
    sources: list[str] = Field(default_factory=list)  # of the literature's expectation
    section: str = ""  # of the article, where it says so
    note: str = ""
    cannot_hold: str = ""
    check: str = ""

    def rows(self) -> list[str]:
        """The rows it is about."""
        raise NotImplementedError

    def estimand(self, label: str, rows: Rows) -> str:
        """What is judged, in words: of which seeds, of what, on which scale. `label` is the metric's."""
        raise NotImplementedError

    def prepare(self, measured: Measured) -> PreparedClaim:
        """The statements to be tested on these values. Raises Unfit."""
        raise NotImplementedError

    def expectations(self, rows: Rows) -> dict[str, Any]:
        """What is expected, by who expects it."""
        expected = {
            "article": getattr(self, "article", None),
            "literature": getattr(self, "literature", None),
        }
        return {who: each for who, each in expected.items() if each is not None}

    def family_count(self, rows: Rows) -> int:
        """How many families of statements it puts to the test: the same, whatever was measured."""
        return self.families * len({repr(each) for each in self.expectations(rows).values()})

    def only_at_paper_scale(self) -> bool:
        """Does it compare values in a unit that other data or another network would change?"""
        return False

    def called(self, label: str) -> str:
        """The metric as it is judged."""
        return f"the size of {label}" if self.of == "size" else label


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


def size_of(amount: Amount) -> str:
    """An amount without its sign, in words; "" for zero."""
    return f"{amount}".lstrip("+−") if amount.value else ""
