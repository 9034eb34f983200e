"""The claims of §15 about rounding errors, judged."""

from __future__ import annotations

from pathlib import Path

from emabench.bench import numerics
from emabench.tables import spec
from emabench.tables.verdict import Kind


def test_the_claims_of_section_15_are_judged() -> None:
    table = spec.read(Path(numerics.__file__).with_suffix(".yaml"))
    judged = numerics.judged(table, range(100, 111), lengths=(100, 1000))
    # Rows at 10 000 steps are not there: nothing of them is reported.
    assert judged.rulings[0].verdicts["article"].kind is Kind.NOT_COMPARABLE
    shorter = {
        key: row.model_copy(update={"average": row.average.replace("_1000", "_100")})  # type: ignore[union-attr]
        for key, row in table.rows.items()
    }
    judged = numerics.judged(table.model_copy(update={"rows": shorter}), range(100, 111), lengths=(100, 1000))
    kinds = {r.claim.text: {who: v.kind for who, v in r.verdicts.items()} for r in judged.rulings}
    assert kinds["The form (100) is more accurate than (98)"]["article"] is Kind.HOLDS
    assert kinds["Kahan summation is more accurate than (100)"]["article"] is Kind.HOLDS
    assert kinds["(97) at β = 0.9"]["article"] is Kind.FAILS
    growth = kinds["From 1000 to 10 000 steps the error at β = 0.9 grows by √10"]
    assert (growth["article"], growth["literature"]) == (Kind.FAILS, Kind.HOLDS)
    assert kinds["The worked example, 3 % at T = 100 000 and β = 0.9"]["article"] is Kind.CANNOT_HOLD
    assert not judged.exploratory
