"""measure emabench itself: averaging, devices, loop, report, verdicts; write committed tables again"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from emabench.errors import DONE, UserError, nearest
from emabench.paths import PACKAGE


def main(words: Sequence[str]) -> int:
    """`emabench bench NAME [options]`: each benchmark is a module of `emabench/bench/`."""
    names = sorted(path.stem for path in (PACKAGE / "bench").glob("[a-z]*.py"))
    if not words or words[0] not in names:
        usage = (
            f"{words[0]!r} is no benchmark{nearest(words[0], names)}"
            if words
            else f"one of {', '.join(names)}"
        )
        raise UserError(f"emabench bench NAME: {usage}")
    import_module(f"emabench.bench.{words[0]}").main(list(words[1:]))
    return DONE
