"""Results on a terminal: as much as fits into 80 columns, and nothing that only colour would tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from emabench.report import format as say
from emabench.report import words
from emabench.runs.result import RAW, Result
from emabench.tables import spec
from emabench.tables.compare import Comparison
from emabench.tables.gather import Run
from emabench.tables.judge import Judged
from emabench.tables.verdict import Kind

STYLES = {
    Kind.HOLDS: "green",
    Kind.PARTLY: "yellow",
    Kind.NO_EFFECT: "red",
    Kind.OPPOSITE: "red",
    Kind.FAILS: "red",
    Kind.UNDECIDED: "cyan",
    Kind.NOT_COMPARABLE: "dim",
    Kind.NOT_RUN: "dim",
    Kind.CANNOT_HOLD: "red",
}
WIDEST = 110


def show(judged: Judged, console: Console | None = None) -> None:
    """A table with what was measured, what is reported and published, and the verdicts."""
    console = console or _console()
    table = judged.table
    _print(console, "\n", (table.titled(judged.scale), "bold"), f"  {table.where}")
    _print(console, (words.header(judged), "dim"))
    _print(console, (table.question, "dim"))
    if judged.all_runs:
        runs, seeds = len(judged.all_runs), judged.seeds
        _print(console, (f"{seeds} seed{_s(seeds)} in every arm, {runs} run{_s(runs)}", "dim"))
    for who in ("article", "literature"):
        if tally := judged.tally(who):
            _print(console, f"{who:<11}{words.tally(tally, judged.stand_in)}")
    for metric in table.metrics:
        console.print()
        console.print(_metric(judged, metric, narrow=console.width < 96))
    console.print()
    console.print(_claims(judged))
    for line in _footnotes(judged):
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 1)))


def show_run(
    result: Result,
    tables: Sequence[spec.Table] | None = None,
    console: Console | None = None,
    path: Path | None = None,
) -> None:
    """One run, in its directory `path`: every set of weights measured, and beneath it what the article and the literature say of its task."""
    console = console or _console()
    run = Run(result, path)
    took = f" · {say.steps(result.steps)} steps · {say.seconds(sum(result.timing.values()))}"
    _print(console, "\n", (result.task, "bold"), f" {result.run_id}{took if result.timing else ''}")
    if result.status != "finished":
        _print(console, (f"✗ {result.status}", "red"), f": {result.reason or 'no reason given'}")
        return
    console.print(_weights(run, console))
    for text in dict.fromkeys(result.measured_with.values()):
        names = ", ".join(name for name, other in result.measured_with.items() if other == text)
        _print(console, (f" {names}: {text}", "dim"))
    for note in run.irregularities:
        _print(console, f" ! {note}")
    if result.references:
        listed = " · ".join(f"{name} {say.number(value)}" for name, value in result.references.items())
        _print(console, (f" for comparison: {listed}", "dim"))
    tables_with_numbers = [
        t for t in (spec.of_task(result.task) if tables is None else tables) if _has_numbers(t)
    ]
    for table in tables_with_numbers:
        console.print()
        console.print(_reported_numbers(table))
        if result.scale != "paper":
            note = (
                f"Not comparable with the values above: those are of scale {result.scale} (other data, another "
                f"network, fewer steps). Look at the relative changes; emabench table {table.name} judges them."
            )
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))


def _weights(run: Run, console: Console) -> Grid:
    """A line for every set of weights; on a narrow terminal without what can be done without."""
    result = run.result
    main = next(iter(result.metrics), None)
    raw = run.value(RAW, main) if main else None
    lines = []
    for row in result.rows:
        about = run.describe(row.average)
        value = row.metrics.get(main) if main else None
        window = run.window(row.average)
        lines.append(
            {
                "weights": row.average,
                **{_titled(result, name): _with_reason(row.metrics.get(name)) for name in result.metrics},
                "to raw": say.change(value / raw - 1) if value and raw and row.average != RAW else "",
                "window": say.steps(window) if row.average != RAW else "1",
                "half-life": say.steps(about.get("half_life")) if about else "",
                "of run": say.share_of_run(window, result.steps) if about and window else "",
                "weight on init": say.weight(about.get("start_weight")),
            }
        )
    titles = list(lines[0])
    spare = [
        "half-life",
        "weight on init",
        "of run",
        *(_titled(result, n) for n in reversed([*result.metrics][1:])),
    ]
    unbounded = console.options.update(max_width=10_000)
    while True:
        grid = _grid()
        for title in titles:
            grid.add_column(title, justify="left" if title == "weights" else "right", no_wrap=True)
        for line in lines:
            grid.add_row(*(line[title] for title in titles))
        if not spare or Measurement.get(console, unbounded, grid).maximum <= console.width:
            return grid
        titles.remove(spare.pop(0))


def _titled(result: Result, metric: str) -> str:
    return f"{metric} {say.arrow(result.metrics[metric])}"


def show_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Groups of runs side by side; differences to the first group are paired by seed."""
    console = console or _console()
    names = [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(comparison.groups))]
    _print(console, "\n", (comparison.task, "bold"))
    for name, group in zip(names, comparison.groups, strict=True):
        seeds = ", ".join(map(str, group.runs))
        title = "  ".join(group.differs) or "one configuration"
        lost = f", {group.diverged} diverged" if group.diverged else ""
        _print(console, " ", (name, "bold"), f"  {title}  ", (f"(seed {seeds}{lost})", "dim"))
    for metric in comparison.metrics:
        console.print()
        if metric in comparison.unlike:
            listed = "; ".join(comparison.unlike[metric])
            _print(console, f" {metric}: ", ("not comparable", "bold"), f", measured with {listed}")
            continue
        wide, long = _side_by_side(comparison, metric, names), _one_below(comparison, metric, names)
        unbounded = console.options.update(max_width=10_000)
        fits = Measurement.get(console, unbounded, wide).maximum <= console.width
        console.print(wide if fits else long)
    _print(console, (" ± and [ ] are 95 % intervals over seeds; differences are paired by seed.", "dim"))


def _side_by_side(comparison: Comparison, metric: str, names: Sequence[str]) -> Grid:
    """A column for every group, and one for how it differs from the first."""
    grid = _grid(title=f"{metric} {say.arrow(comparison.metrics[metric])}")
    grid.add_column("weights", no_wrap=True)
    for name in [*names, *(f"{name} − {names[0]}" for name in names[1:])]:
        grid.add_column(name, justify="right", no_wrap=True)
    for average in comparison.averages:
        means = [say.measured(group.mean(average, metric)) for group in comparison.groups]
        changes = [comparison.change(group, average, metric) for group in comparison.groups[1:]]
        grid.add_row(average, *means, *(say.interval(c) if c else "–" for c in changes))
    return grid


def _one_below(comparison: Comparison, metric: str, names: Sequence[str]) -> Grid:
    """A line for every group, where there are more than fit side by side."""
    grid = _grid(title=f"{metric} {say.arrow(comparison.metrics[metric])}")
    for title in ("weights", "runs", "measured", f"− {names[0]}"):
        grid.add_column(title, justify="left" if title in ("weights", "runs") else "right", no_wrap=True)
    for average in comparison.averages:
        for name, group in zip(names, comparison.groups, strict=True):
            change = comparison.change(group, average, metric) if name != names[0] else None
            grid.add_row(
                average if name == names[0] else "",
                name,
                say.measured(group.mean(average, metric)),
                "" if name == names[0] else say.interval(change) if change else "–",
            )
    return grid


def _metric(judged: Judged, metric: str, narrow: bool) -> Grid:
    table = judged.table
    about = table.metrics[metric]
    grid = _grid(title=f"{about.label} {say.arrow(about.better)}")
    grid.add_column("row")
    if not narrow:
        grid.add_column("weights", style="dim", no_wrap=True)
    for title in ("measured", "n", "change"):
        grid.add_column(title, justify="right", no_wrap=True)
    has_reported = judged.table.has_reported(metric)
    for title in ("article", "published") if has_reported else ():
        grid.add_column(title, justify="right", no_wrap=narrow)
    for row in judged.rows.values():
        cell = row.cells[metric]
        reported = row.spec.reported.get(metric)
        numbers = [n for n in row.spec.published if n.metric == metric]
        change = say.change_of(cell)
        gap = "\n" if narrow else " "
        values = [
            say.typical(cell.values.values(), cell.mean),
            say.share(len(cell.values), row.planned),
            change.replace(" [", "\n[") if narrow else change,
        ]
        others = [
            say.with_change(say.reported(reported), say.change(table.reported_change(row.key, metric)), gap),
            say.with_change(
                say.published(numbers), say.changes(table.published_change(row.key, metric)), gap
            ),
        ]
        weights = [] if narrow else [row.average]
        label = Text(row.spec.label)
        if narrow and row.average != RAW:
            label.append(f"\n{row.average}", style="dim")
        grid.add_row(label, *weights, *values, *(others if has_reported else []))
    return grid


def _claims(judged: Judged) -> Grid:
    grid = _grid(title="Claims")
    grid.add_column("claim", ratio=10)
    grid.add_column("article", ratio=7)
    grid.add_column("literature", ratio=7)
    for ruling in judged.rulings:
        if ruling in judged.of_paper_scale_alone:
            continue
        claim = [Text(ruling.claim.text)]
        if ruling.effects:
            claim.append(Text(words.effects(ruling.effects), style="dim"))
        cells = []
        for who in ("article", "literature"):
            verdict = ruling.verdicts.get(who)
            if not verdict:
                cells.append(Group(Text("")))
                continue
            why = words.reason(verdict, judged, ruling)
            lines = [Text(words.verdict(verdict, judged, ruling), style=STYLES[verdict.kind])]
            cells.append(Group(*lines, *([Text(why, style="dim")] if why else [])))
        grid.add_row(Group(*claim), *cells)
    return grid


def _footnotes(judged: Judged) -> list[str]:
    lines = [f"! {problem}" for problem in judged.problems]
    lines += [
        line for line in (words.provenance(judged), words.control(judged), words.baselines(judged)) if line
    ]
    if judged.all_runs:
        lines.append(
            "± and [ ] are 95 % intervals over seeds and decide nothing; changes are paired by seed and relative to "
            f"the row without averaging. {words.error_rate(judged)}"
        )
    if judged.stand_in and any(map(judged.table.has_reported, judged.table.metrics)):
        lines.append(
            f"Values of scale {judged.scale} are not comparable with the article's: look at the changes."
        )
    if left_out := len(judged.of_paper_scale_alone):
        lines.append(
            f"{left_out} claim{_s(left_out)} about values themselves can be judged at scale paper alone."
        )
    for metric, text in judged.measured_with.items():
        lines.append(f"{judged.table.metrics[metric].label}: {text}")
    if judged.references:
        listed = " · ".join(f"{name} {say.number(value)}" for name, value in judged.references.items())
        lines.append(f"for comparison: {listed}")
    return lines


def _reported_numbers(table: spec.Table) -> Grid:
    """What article and literature say, without measurements."""
    grid = _grid(title=f"{table.heading('paper')}: as reported and as published")
    grid.add_column("row", no_wrap=True)
    metrics = [m for m in table.metrics if table.has_reported(m)]
    for metric in metrics:
        label = f"{table.metrics[metric].label} {say.arrow(table.metrics[metric].better)}"
        grid.add_column(f"{label} article", justify="right")
        grid.add_column("published", justify="right")
    for key, row in table.rows.items():
        if not row.reported and not row.published:
            continue
        cells = []
        for metric in metrics:
            reported = row.reported.get(metric)
            cells.append(
                say.with_change(
                    "" if reported is None else f"{reported:g}",
                    say.change(table.reported_change(key, metric)),
                )
            )
            numbers = [n for n in row.published if n.metric == metric]
            cells.append(
                say.with_change(say.published(numbers), say.changes(table.published_change(key, metric)))
            )
        grid.add_row(row.label, *cells)
    return grid


def _has_numbers(table: spec.Table) -> bool:
    """Does anybody report or publish a number for its rows?"""
    return any(map(table.has_reported, table.metrics))


def _grid(title: str | None = None) -> Grid:
    return Grid(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        show_edge=False,
        title=title,
        title_style="bold",
        title_justify="left",
        header_style="dim",
    )


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    """A line of texts, some of them with a style. Nothing in them is read as markup: results may be a stranger's."""
    console.print(Text.assemble(*parts), highlight=False)


def _console() -> Console:
    console = Console(markup=False)  # for the cells of tables
    console.width = min(console.width, WIDEST)
    return console


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _with_reason(value: float | None) -> str:
    return say.number(value) if value is not None else "not finite"
