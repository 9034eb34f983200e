"""run the suite that every task passes on a task of your own"""

from __future__ import annotations

from collections.abc import Sequence

from emabench import plugins, tasks
from emabench.errors import DONE, FAILED, UserError

USAGE = "emabench test task NAME… [-x] [-k EXPRESSION] [--path DIR]"


def main(words: Sequence[str]) -> int:
    """`emabench test task NAME… [--path DIR]`: does it train, stop, resume bit-identically and keep its contract?

    Further options go to pytest: -x stops at the first failure, -k resumed runs the tests of that name.
    """
    names = []
    options = list(words[1:])
    while options and not options[0].startswith("-"):
        names.append(options.pop(0))
    if words[:1] != ["task"] or not names:
        raise UserError(USAGE)
    for name in names:
        plugins.get("conf/task", name, f"test task {name}")
        tasks.load(name)
    try:
        from emabench.testing import run

        status = run(names, options)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise UserError("emabench test needs pytest (pip install pytest)") from error
    return DONE if status == 0 else FAILED
