"""list tasks, tables, sweeps and averages"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emabench import plugins
from emabench.averaging.profiles import KINDS
from emabench.errors import DONE, UserError
from emabench.plugins import Item

NUMERICS = "Rounding errors of an EMA next to the article's formulas; no training (§15.3)"


def main(words: Sequence[str]) -> int:
    """`emabench list`: every task, table and sweep with a line on each, and the kinds of averages.

    Your own, from --path DIR, EMABENCH_PATH or an installed distribution, are shown with the place they are from.
    """
    if words:
        raise UserError(f"list takes no arguments, not {' '.join(words)!r}")
    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    _section(shown, "tasks", "emabench task=NAME", plugins.find("conf/task"), _task)
    _section(shown, "tables", "emabench table NAME", plugins.find("conf/table"), _table)
    shown.add_row("  numerics", NUMERICS)
    if sweeps := plugins.find("conf/sweep"):
        shown.add_row()
        _section(shown, "sweeps", "emabench -m sweep=NAME task=NAME", sweeps, _comment)
    shown.add_row()
    shown.add_row("[bold]averages[/]", r"[dim]emabench '+averages.NAME={kind: KIND, …}'[/]")
    own = plugins.find("averages")
    shown.add_row("", ", ".join(sorted(set(KINDS) - set(own))))
    _section(shown, "", "", own, _docstring)
    for title, use in (("metrics", r"emabench metrics=\[NAME]"), ("claims", "type: NAME")):
        outside = {name: item for name, item in plugins.find(title).items() if not item.source.built_in}
        if outside:
            shown.add_row()
            _section(shown, title, use, outside, _docstring)
    Console(soft_wrap=True).print(shown)
    return DONE


def _section(
    shown: Table, title: str, use: str, items: dict[str, Item], describe: Callable[[Item], str]
) -> None:
    if title:
        shown.add_row(f"[bold]{title}[/]", f"[dim]{use}[/]")
    for name in sorted(items):
        item = items[name]
        try:
            text = describe(item)
        except Exception as error:
            if item.source.built_in:
                raise
            plugins.left_out(plugins.why(item.path, error))
            continue
        place = "" if item.source.built_in else f"[dim]{escape(item.source.name)}[/]"
        shown.add_row(f"  {name}", escape(text), place)


def _task(item: Item) -> str:
    """What a task is, from the comment of its YAML; its Python file, where it is a user's own, has to compile."""
    text = _comment(item)
    if item.name not in plugins.find("tasks"):
        raise ValueError(f"there is no tasks/{item.name}.py for it")
    if not item.source.built_in:
        _docstring(plugins.find("tasks")[item.name])
    return text


def _table(item: Item) -> str:
    spec = yaml.safe_load(item.path.read_text(encoding="utf-8"))
    title = spec.get("title", "")
    title = title.get("paper", "") if isinstance(title, dict) else title  # what the article is about
    return f"{title}{f' (§{section})' if (section := spec.get('section')) else ''}"


def _comment(item: Item) -> str:
    """The first line of the comment that a YAML file begins with, after Hydra's package line."""
    text = item.path.read_text(encoding="utf-8")
    if not item.source.built_in:
        yaml.safe_load(text)
    for line in text.splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _docstring(item: Item) -> str:
    """The first line of a module's docstring, read without importing it."""
    tree = ast.parse(item.path.read_text(encoding="utf-8"), str(item.path))
    return (ast.get_docstring(tree) or "").partition("\n")[0]
