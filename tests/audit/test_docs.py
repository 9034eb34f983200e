"""The committed results and the documentation are those of the statements as they are."""

from __future__ import annotations

import json
import re

from emabench.audit import Verdict, statements
from emabench.paths import PACKAGE

ROOT = PACKAGE.parent


def test_committed_results_are_of_the_present_statements() -> None:
    """Made again by `emabench audit --json > benchmarks/audit.json`."""
    records = json.loads((ROOT / "benchmarks" / "audit.json").read_text(encoding="utf-8"))
    assert [(r["id"], r["verdict"]) for r in records] == [
        (each.id, str(each.verdict)) for each in statements()
    ]
    assert all(record["supported"] for record in records)


def test_the_count_in_the_docs_is_right() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    counted = {
        name: int(number) for name, number in re.findall(r"^\| ([a-z ]+) \| (\d+) \|", text, re.MULTILINE)
    }
    declared = [str(each.verdict) for each in statements()]
    assert counted == {str(verdict): declared.count(str(verdict)) for verdict in Verdict}
    assert f"| **all** | **{len(declared)}** | 116 numbered" in text
