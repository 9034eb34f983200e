"""What a statement of the article is, and what a check of it can come to.

A statement is next to the function that checks it. The formula under test is an argument of that function: the
printed form and the corrected one go through the same check, so that a verdict cannot be written down, only computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Form = Any  # the formula under test: a function, a sympy expression, a number, the text of a listing


class Verdict(StrEnum):
    """The verdicts on a statement."""

    HOLDS = "holds"
    CONDITIONAL = "holds under assumptions that the text does not state"
    APPROXIMATE = "approximately"
    WRONG = "wrong"
    DEFINITION = "definition"
    EMPIRICAL = "empirical"
    NOT_CHECKABLE = "not checkable"

    @property
    def meaning(self) -> str:
        """The verdict in a sentence."""
        return MEANINGS[self]


HOLDS, CONDITIONAL, APPROXIMATE, WRONG, DEFINITION, EMPIRICAL, NOT_CHECKABLE = Verdict

MEANINGS: Mapping[Verdict, str] = {
    HOLDS: "true under the assumptions that the article states",
    CONDITIONAL: "true only with the further assumptions that are named",
    APPROXIMATE: "not exact; the size of the error, and where it grows, are given",
    WRONG: "false under the article's own assumptions; the corrected form passes the same check",
    DEFINITION: "introduces a quantity or a rule; it is well formed and has the properties that the text uses",
    EMPIRICAL: "a measurement, not a theorem; the table that measures it is linked",
    NOT_CHECKABLE: "says too little to be true or false: what is missing is named",
}


@dataclass(frozen=True)
class Outcome:
    """What a check came to."""

    verdict: Verdict
    expected: str
    measured: str


def truth(holds: bool, expected: str, measured: str) -> Outcome:
    """Of a statement that is true or false."""
    return Outcome(HOLDS if holds else WRONG, expected, measured)


def conditional(as_stated: bool, as_needed: bool, expected: str, measured: str) -> Outcome:
    """Of a statement that may need more than the text grants.

    Args:
        as_stated: whether it holds under the assumptions that the text states.
        as_needed: whether it holds once those of `needs` are added.
        expected: what the statement says.
        measured: what came out.
    """
    return Outcome(HOLDS if as_stated else CONDITIONAL if as_needed else WRONG, expected, measured)


def approximate(error: float, within: float, expected: str, measured: str) -> Outcome:
    """Of a statement with an error: none (to rounding) holds, one `within` the tolerance is approximate."""
    small = error <= within
    return Outcome(HOLDS if error <= 1e-9 else APPROXIMATE if small else WRONG, expected, measured)


def defined(well: bool, expected: str, measured: str) -> Outcome:
    """Of a definition: is it well formed, and does it have the properties that the text then uses?"""
    return Outcome(DEFINITION if well else WRONG, expected, measured)


def reported(consistent: bool, expected: str, measured: str) -> Outcome:
    """Of reported numbers: do they agree with what the linked table carries, and with each other?"""
    return Outcome(EMPIRICAL if consistent else WRONG, expected, measured)


def undefined(missing: Sequence[str], expected: str) -> Outcome:
    """Of a statement that leaves out what it would take to check it."""
    return Outcome(NOT_CHECKABLE if missing else HOLDS, expected, "not given: " + ", ".join(missing))


@dataclass(frozen=True)
class Effort:
    """How hard a check tries. Its random numbers depend on the statement alone."""

    deep: bool = False
    seed: int = 0

    def times(self, ordinary: int, deep: int | None = None) -> int:
        """A number of trials: `ordinary`, or with --deep `deep` (ten times as many, unless given)."""
        return (deep if deep is not None else 10 * ordinary) if self.deep else ordinary

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator, the same one every time."""
        import numpy as np

        return np.random.default_rng(self.seed)


Check = Callable[[Form, Effort], Outcome]


@dataclass(frozen=True)
class Curves:
    """The data of a figure: lines by name over shared axes."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Statement:
    """One statement of the article, and its check.

    id: an equation's number, or a section and a word ("9.2-apply"). says: the statement in English. formula: LaTeX
    as printed, or a worked number or listing as text. verdict: what is declared, which the check has to support.
    printed, right: the form under test as the article has it and as it should be. corrected: `right` in LaTeX or words.
    states, needs: the assumptions that the text makes, and those that it takes besides. table: the name of the
    table in conf/table that measures it. rank: 1–10, the place among those that do most harm when copied; harm: which.
    """

    id: str
    section: str
    says: str
    verdict: Verdict
    method: str
    check: Check
    formula: str = ""
    printed: Form = None
    right: Form = None
    corrected: str = ""
    states: str = ""
    needs: str = ""
    note: str = ""
    table: str = ""
    rank: int = 0
    harm: str = ""
    figure: Callable[[], Curves] | None = None
    listing: bool = False

    @property
    def is_equation(self) -> bool:
        """Whether it is one of the numbered equations (1)–(116)."""
        return self.id.isdigit()

    @property
    def label(self) -> str:
        """Its name in text: (35), (7) approx for a part of an equation, §9.2 apply."""
        first, _, word = self.id.partition("-")
        of_section = "." in first or (word and first == self.section)
        return (f"§{first}" if of_section else f"({first})") + f" {word}".rstrip()

    @property
    def anchor(self) -> str:
        """Its address on the page, after the #."""
        return f"eq-{self.id}" if self.is_equation else f"s-{self.id}"

    def effort(self, deep: bool = False) -> Effort:
        return Effort(deep, zlib.crc32(self.id.encode()))

    def swapped(self) -> Statement:
        """The same statement as if the article had printed the corrected form, and nothing were to correct."""
        return replace(self, printed=self.right, right=None)


def statement(id: str, section: str, says: str, **given: Any) -> Callable[[Check], Statement]:
    """Make a statement of the check below it; the arguments are those of `Statement`."""

    def made(check: Check) -> Statement:
        return Statement(id=id, section=section, says=says, check=check, **given)

    return made
