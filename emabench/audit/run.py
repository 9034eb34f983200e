"""Run checks and hold what is declared against what they come to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emabench.audit.catalog import statements
from emabench.audit.statement import NOT_CHECKABLE, WRONG, Outcome, Statement, Verdict
from emabench.audit.units import units


@dataclass(frozen=True)
class Result:
    """A statement after its check."""

    statement: Statement
    outcome: Outcome
    corrected: Outcome | None  # of the corrected form, by the same check
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The check's, whatever is declared."""
        return self.outcome.verdict

    @property
    def complaint(self) -> str:
        """Why the declared verdict does not stand; empty where it does."""
        declared = self.statement.verdict
        if self.verdict is not declared:
            return f"declared {declared!s}, but the check says: {self.verdict}"
        if declared is WRONG and self.corrected is None:
            return "declared wrong without a corrected form"
        if self.corrected is not None and self.corrected.verdict in (WRONG, NOT_CHECKABLE):
            return f"the corrected form does not pass the check ({self.corrected.measured})"
        return ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        of = self.statement
        return {
            "id": of.id,
            "section": of.section,
            "statement": of.says,
            "formula": of.formula,
            "verdict": str(self.verdict),
            "corrected": of.corrected,
            "assumptions": {"stated": of.states, "needed": of.needs},
            "method": of.method,
            "expected": self.outcome.expected,
            "measured": self.outcome.measured,
            "corrected_verdict": str(self.corrected.verdict) if self.corrected else "",
            "corrected_measured": self.corrected.measured if self.corrected else "",
            "units": units(of.id),
            "note": of.note,
            "table": of.table,
            "supported": not self.complaint,
            "address": f"#{of.anchor}",
        }


def from_plain(records: Iterable[Mapping[str, Any]]) -> list[Result]:
    """Results as `plain` gave them, of statements that are still there."""
    by_id = {each.id: each for each in statements()}
    results = []
    for record in records:
        if record["id"] in by_id:
            outcome = Outcome(Verdict(record["verdict"]), record["expected"], record["measured"])
            corrected = (
                Outcome(
                    Verdict(record["corrected_verdict"]), record["expected"], record["corrected_measured"]
                )
                if record["corrected_verdict"]
                else None
            )
            results.append(Result(by_id[record["id"]], outcome, corrected, 0.0))
    return results


def run(statement: Statement, deep: bool = False) -> Result:
    """Check one statement: its printed form, and its corrected form where it has one."""
    began = time.perf_counter()
    effort = statement.effort(deep)
    outcome = statement.check(statement.printed, effort)
    corrected = None
    if statement.right is not None:
        corrected = statement.check(statement.right, effort)
    return Result(statement, outcome, corrected, time.perf_counter() - began)


def run_all(statements: Iterable[Statement], deep: bool = False) -> list[Result]:
    """Check them one after another."""
    return [run(each, deep) for each in statements]


def counts(results: Sequence[Result]) -> dict[Verdict, int]:
    """How many came to each verdict, in the order of the vocabulary."""
    counted = Counter(result.verdict for result in results)
    return {verdict: counted[verdict] for verdict in Verdict}


def worst(results: Sequence[Result]) -> list[Result]:
    """The ten that do most harm when copied, worst first."""
    return sorted((r for r in results if r.statement.rank), key=lambda r: r.statement.rank)
