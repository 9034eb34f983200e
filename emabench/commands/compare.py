"""compare runs side by side"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emabench.errors import DONE, UserError


def main(words: Sequence[str]) -> int:
    """`emabench compare RUN RUN…`: runs that differ in their seed alone form a group; groups are compared."""
    if not words:
        raise UserError("emabench compare RUN RUN…: name the directories of finished runs")
    from emabench.report import terminal
    from emabench.tables.compare import compare
    from emabench.tables.gather import run_at

    terminal.show_comparison(compare([run_at(Path(word)) for word in words]))
    return DONE
