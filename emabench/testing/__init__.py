"""The test suite that every task passes, for the package's own tasks and for a user's.

    emabench test task NAME                     # with --path DIR for a task of your own
    from emabench.testing import run; run(["NAME"])

or, in a test module of your own project, so that pytest collects it with your other tests:

    from emabench.testing.suite import *
    TASKS = ["NAME"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VARIABLE = "EMABENCH_TEST_TASKS"  # environment variable: names of the tasks to test, separated by commas


def run(names: Sequence[str], options: Sequence[str] = ()) -> int:
    """Run the suite on these tasks in this process. Returns pytest's exit status, 0 where all tests pass.

    Args:
        names: Tasks, as `task=NAME` finds them.
        options: Further options of pytest (`["-x", "-k", "resumed"]`).
    """
    import pytest

    suite = Path(__file__).with_name("suite.py")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(VARIABLE, ",".join(names))
        command = ["-q", "-p", "no:cacheprovider", "--rootdir", str(suite.parent), "-c", "/dev/null"]
        return int(pytest.main([*command, str(suite), *options]))
