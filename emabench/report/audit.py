"""What the audit of the article's statements came to: on the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from rich.text import Text

from emabench.audit import Result, Statement, Verdict, counts, worst
from emabench.audit.units import units
from emabench.report.plain_math import plain

IN_FULL = 12  # results: more are listed, a line each
STYLES = {
    Verdict.HOLDS: "green",
    Verdict.CONDITIONAL: "yellow",
    Verdict.APPROXIMATE: "yellow",
    Verdict.WRONG: "red",
    Verdict.DEFINITION: "dim",
    Verdict.EMPIRICAL: "blue",
    Verdict.NOT_CHECKABLE: "dim",
}
SHORT = {Verdict.CONDITIONAL: "holds under more assumptions"}  # where there is no room


def as_json(results: Sequence[Result]) -> str:
    """A list of objects, one a statement."""
    return json.dumps([result.plain() for result in results], ensure_ascii=False, indent=1)


def counted(statements: Sequence[Statement]) -> Iterable[Statement]:
    """The statements, with a bar on a terminal that says how far their checks are."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or len(statements) <= IN_FULL
    return track(statements, "checking", console=console, transient=True, disable=hidden)


def show_each(results: Sequence[Result]) -> None:
    """Every result in full."""
    console = Console()
    for i, result in enumerate(results):
        if i:
            console.print()
        _show(console, result)


def show_all(results: Sequence[Result]) -> None:
    """The counts, the worst, and a line on each statement."""
    console = Console()
    listed = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    listed.add_column(no_wrap=True)
    listed.add_column(no_wrap=True)
    listed.add_column()
    section = ""
    for result in results:
        if result.statement.section.partition(".")[0] != section:
            section = result.statement.section.partition(".")[0]
            listed.add_row(Text(f"§{section}", style="bold"), "", "")
        says = Text(result.statement.says)
        if result.complaint:
            says.append(f"\n{result.complaint}", style="bold red")
        listed.add_row(f"  {result.statement.label}", _badge(result.verdict, short=True), says)
    console.print(listed)
    console.print()
    console.print(Text("Those that would hurt you most if you copied them", style="bold"))
    for result in worst(results):
        line = f"{result.statement.rank:>3}  {result.statement.label}  {result.statement.harm}"
        console.print(Padding.indent(Text(line), 1))
    console.print()
    counted = Table(box=None, padding=(0, 2, 0, 1), show_header=False)
    counted.add_column(justify="right")
    for verdict, count in counts(results).items():
        if count:
            counted.add_row(str(count), _badge(verdict), Text(verdict.meaning, style="dim"))
    console.print(counted)
    seconds = sum(result.seconds for result in results)
    console.print(
        Text(
            f" {len(results)} statements, {seconds:.0f} s; `emabench audit 35` shows one in full", style="dim"
        )
    )


def _show(console: Console, result: Result) -> None:
    """One result: the statement, what it says, what came out, what is right."""
    of = result.statement
    console.print(Text.assemble((of.label, "bold"), f"  §{of.section}  ", _badge(result.verdict)))
    console.print(Text(of.says))
    rows = Table(box=None, padding=(0, 2, 0, 1), show_header=False)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    for name, value in (
        ("printed", _form(result, of.formula)),
        ("assumes", of.states),
        ("needs", of.needs),
        ("checked by", of.method),
        ("expected", result.outcome.expected),
        ("measured", result.outcome.measured),
        ("corrected", _form(result, of.corrected)),
        ("its check", f"{result.corrected.verdict}: {result.corrected.measured}" if result.corrected else ""),
        ("units", units(of.id)),
        ("note", of.note),
        ("harm", of.harm),
        ("table", f"emabench table {of.table}" if of.table else ""),
    ):
        if value:
            rows.add_row(name, Text(value))
    console.print(rows)
    if result.complaint:
        console.print(Text(result.complaint, style="bold red"))


def _form(result: Result, text: str) -> str:
    """A printed or corrected form as text; a listing as it is."""
    return text.rstrip() if result.statement.listing else plain(text)


def _badge(verdict: Verdict, short: bool = False) -> Text:
    return Text(SHORT.get(verdict, str(verdict)) if short else str(verdict), style=STYLES[verdict])
