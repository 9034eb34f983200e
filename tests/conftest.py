"""What tests counted, printed at the end."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("emabench.testing.suite")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The words a test leaves by `record_property("summary", …)`: also those of other processes (xdist)."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(f"\n{report.nodeid}\n{value}")
