"""the tasks and the tables there are"""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from rich.console import Console
from rich.table import Table

from emabench.errors import DONE, UserError
from emabench.paths import conf_dir


def main(words: Sequence[str]) -> int:
    """`emabench list`: every task of `conf/task/` and every table of `conf/table/` with a line on each."""
    if words:
        raise UserError(f"list takes no arguments, not {' '.join(words)!r}")
    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    shown.add_row("[bold]tasks[/]", "[dim]emabench task=NAME[/]")
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        shown.add_row(f"  {path.stem}", _first_comment(path.read_text(encoding="utf-8")))
    shown.add_row()
    shown.add_row("[bold]tables[/]", "[dim]emabench table NAME[/]")
    for path in sorted((conf_dir() / "table").glob("*.yaml")):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        shown.add_row(f"  {path.stem}", f"{spec.get('title', '')} (§{spec.get('section', '?')})")
    shown.add_row(
        "  numerics", "Rounding errors of an EMA beside the article's formulas; no training (§15.3)"
    )
    Console(soft_wrap=True).print(shown)
    return DONE


def _first_comment(text: str) -> str:
    """A task's YAML begins with Hydra's package line and then says in a comment what the task is."""
    for line in text.splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""
