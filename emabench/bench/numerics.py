"""The rounding errors of an EMA, measured: the table of §15.3, `emabench table numerics`.

Three forms of the update (plain, lerp, Kahan), three types, five decays, up to 100 000 steps, against float64, with
the article's formulas beside. Then the claims of §15, judged over eleven paths of weights (`numerics.yaml`).
Deterministic: one process, about two minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import emabench
from emabench.averaging import numerics
from emabench.report import html, terminal
from emabench.runs.result import Result, Row
from emabench.tables import provenance, spec
from emabench.tables.gather import Run
from emabench.tables.judge import Judged, judge

NOTES = (
    "error: ‖a − a₆₄‖ / ‖a₆₄‖; of the path: as a share of the distance from the first weights, which is what an "
    "average that stalls loses.",
    "The article's √T·ε/(1 − β) is far too large for every form: an EMA forgets its rounding errors as it forgets "
    "everything else, so they stop growing after about 1/(1 − β) steps. Its worked example, T = 10⁵ and β = 0.9, "
    "is 0.03 %, not the 3 % that it states.",
    "Its T·ε² for Kahan summation is far too small: the result is still stored with an error of about ε.",
)


def main(argv: Sequence[str]) -> None:
    """`emabench table numerics [--steps N] [--out FILE]`"""
    parser = argparse.ArgumentParser(prog="emabench table numerics", description=__doc__)
    parser.add_argument("--steps", type=int, default=max(numerics.LENGTHS), help="the longest run")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    parser.add_argument(
        "--pages", type=Path, help="a folder for the judged table as HTML, Markdown, CSV and JSON"
    )
    args = parser.parse_args(argv)
    lengths = sorted({length for length in numerics.LENGTHS if length < args.steps} | {args.steps})
    rows = numerics.measure(lengths=lengths)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows, args.steps)
    table = spec.read(Path(__file__).with_suffix(".yaml"))
    plan = table.plan("small")
    paths = judged(table, range(plan.first, plan.first + plan.looks[-1]))
    terminal.show(paths)
    if args.pages:
        print(f"\npage    {html.write_table(paths, args.pages)}")


def judged(table: spec.Table, seeds: Iterable[int], lengths: Sequence[int] = (1000, 10_000)) -> Judged:
    """The claims of §15 judged on paths of weights drawn from these seeds, each a run in memory."""
    commit = provenance.head(Path(__file__).parent)
    runs: dict[int, Run | None] = {}
    for seed in seeds:
        rows = numerics.measure(types=["float32"], decays=[0.9, 0.999], lengths=lengths, seed=seed)
        result = Result(
            run_id=f"numerics-{seed}",
            task="numerics",
            scale="small",
            seed=seed,
            steps=max(lengths),
            status="finished",
            rows=tuple(
                Row(f"{row['form']}_{row['decay']:g}_{row['steps']}", {}, {"error": float(row["error"])})
                for row in rows
            ),
            metrics={"error": "lower"},
            measured_with={},
            references={},
            timing={},
            environment={"emabench": emabench.__version__, "commit": commit},
        )
        runs[seed] = Run(result)
    since = provenance.claims_since(table.file) if table.file else []
    return judge(table, "small", {"path": runs}, since=since)


def show(rows: Sequence[dict[str, float | int | str]], steps: int) -> None:
    """The rows at the longest length: a line for each type and decay, the three forms side by side."""
    at = {(r["type"], r["decay"], r["form"]): r for r in rows if r["steps"] == steps}
    labels = ("plain", "lerp", "Kahan")
    grid = _grid(f"Relative error of an EMA after {steps:,} steps", *labels, "article (97)", "article, Kahan")
    path = _grid("The same as a share of the path", *labels)
    for kind in numerics.TYPES:
        for decay in numerics.DECAYS:
            forms = [at[kind, decay, form] for form in numerics.FORMS]
            errors = [f"{row['error']:.1e}" for row in forms]
            article = [f"{forms[0]['article']:.1e}", f"{forms[2]['article']:.1e}"]
            paths = [_percent(100 * float(row["error_of_path"])) for row in forms]
            grid.add_row(kind, f"{decay:g}", *errors, *article)
            path.add_row(kind, f"{decay:g}", *paths)
    console = Console()
    console.print(grid)
    console.print()
    console.print(path)
    for note in NOTES:
        console.print(f" [dim]{note}[/]", highlight=False)


def _grid(title: str, *columns: str) -> Table:
    """Types and decays, then what was measured; legible in 80 columns."""
    grid = Table(title=title, title_justify="left", box=None)
    grid.add_column("type", no_wrap=True)
    for column in ("β", *columns):
        grid.add_column(column, justify="right", no_wrap=True)
    return grid


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
