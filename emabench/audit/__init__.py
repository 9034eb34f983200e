"""Every statement of the article, with a check that decides whether it holds.

    from emabench.audit import chosen, run
    run(chosen(["35"])[0]).verdict        # wrong

`sections/` holds the statements, a file a section; `statement.py` says what one is.
"""

from emabench.audit.catalog import chosen, of_table, statements
from emabench.audit.run import Result, counts, from_plain, run, run_all, worst
from emabench.audit.statement import Effort, Outcome, Statement, Verdict

__all__ = [
    "Effort",
    "Outcome",
    "Result",
    "Statement",
    "Verdict",
    "chosen",
    "counts",
    "from_plain",
    "of_table",
    "run",
    "run_all",
    "statements",
    "worst",
]
