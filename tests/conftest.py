"""What tests counted, printed at the end; and what one test must not leave to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("emabench.testing.suite")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The words a test leaves by `record_property("summary", …)`: also those of other processes (xdist)."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(f"\n{report.nodeid}\n{value}")


@pytest.fixture(autouse=True)
def _paths_of_children() -> Iterator[None]:
    """The command keeps what it starts from importing out of the working directory; only tests that run it want that.

    Left set, a process that another test starts would find torch-fidelity's package `tests` in place of this one.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    yield
    if before is None:
        os.environ.pop("PYTHONSAFEPATH", None)
    else:
        os.environ["PYTHONSAFEPATH"] = before
