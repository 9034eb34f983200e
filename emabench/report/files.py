"""The same table as Markdown, LaTeX and CSV, for other documents."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emabench.errors import UserError
from emabench.paths import COMMAND
from emabench.report import format as say
from emabench.report import tex, words
from emabench.runs.files import NoRoom, write_text
from emabench.tables import records
from emabench.tables.judge import Judged
from emabench.tables.measure import MeasuredRow
from emabench.tables.statistics import Estimate

CSV_COLUMNS = (
    "table", "section", "scale", "row", "arm", "average", "window", "metric", "better", "measured_with",
    "mean", "low", "high", "n", "planned", "diverged", "failed",
    "against", "difference", "difference_low", "difference_high", "relative", "relative_low", "relative_high",
    "article", "published", "sources",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CLAIM_COLUMNS = (
    "table", "scale", "claim", "metric", "expected_by", "verdict", "words", "why", "exploratory",
    "effect", "relative", "mean", "low", "high", "median", "better", "worse", "seeds", "estimand",
)  # fmt: skip


FOLDER = "report"  # below the results directory: pages, and numbers in other formats


def folder_for(results_dir: Path, out: str = "") -> Path:
    """Where pages are written: the folder that the user names by `out=`, else one below the results directory."""
    return Path(out).expanduser() if out else results_dir / FOLDER


def page_of(table: str, scale: str, folder: Path) -> Path:
    """A table's page."""
    return folder / f"{_stem(table, scale)}.html"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises UserError where files cannot be written to the folder, which is created if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except NoRoom:
        raise
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); out=DIR writes to another folder"
        ) from error


def write(judged: Judged, folder: Path) -> list[Path]:
    """Write a table's numbers and verdicts; returns the paths.

    `<table>.md`, `.tex`, `.csv` (numbers), `.claims.csv` (verdicts) and `.json` (the runs, to be judged again).
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    command = os.environ.get(COMMAND) or f"emabench table {judged.table.name}"
    texts = {
        "md": markdown(judged),
        "tex": latex(judged),
        "csv": as_csv(judged),
        "claims.csv": claims_csv(judged),
    }
    texts["json"] = records.to_json(judged, command)
    for ending, text in texts.items():
        path = folder / f"{stem(judged)}.{ending}"
        write_text(path, text)
        written.append(path)
    return written


def stem(judged: Judged) -> str:
    """The name of a table's files: those of different scales lie side by side."""
    return _stem(judged.table.name, judged.scale)


def _stem(table: str, scale: str) -> str:
    return table if scale == "small" else f"{table}-{scale}"


def markdown(judged: Judged) -> str:
    """Numbers and verdicts as Markdown."""
    table = judged.table
    lines = [
        f"## {table.titled(judged.scale)}{f' (§{table.section})' if table.section else ''}",
        "",
        table.question,
        "",
    ]
    lines += [
        f"Trained: {words.header(judged)}; {judged.seeds} seeds, {len(judged.all_runs)} runs. {_caption(judged)}",
        "",
    ]
    lines += [f"{words.error_rate(judged)}", ""] if judged.all_runs else []
    lines += [
        f"{line}."
        for line in (words.provenance(judged), words.control(judged), words.baselines(judged))
        if line
    ]
    lines += [""]
    for metric, about in table.metrics.items():
        lines += [
            _pipe(
                [
                    f"{about.label} {say.arrow(about.better)}",
                    "weights",
                    "measured",
                    "n",
                    "change",
                    "article",
                    "published",
                ]
            )
        ]
        lines += ["|---|---|--:|--:|--:|--:|--:|"]
        lines += [_pipe(_cells(judged, row, metric)) for row in judged.rows.values()]
        lines += [""]
    lines += ["| claim | measured | article | literature |", "|---|---|---|---|"]
    for ruling in judged.rulings:
        verdicts = []
        for who in ("article", "literature"):
            verdict = ruling.verdicts.get(who)
            why = words.reason(verdict, judged, ruling) if verdict else ""
            text = words.verdict(verdict, judged, ruling) if verdict else ""
            verdicts.append(f"{text}: {why}" if why else text)
        measured = "<br>".join(map(words.effect, ruling.effects))
        notes = "; ".join(part for part in (ruling.estimand, words.since(ruling)) if part)
        claim = f"{ruling.claim.text}<br><sub>{notes}</sub>"
        lines += [_pipe([claim, measured, *verdicts])]
    lines += ["", *(f"- {problem}." for problem in judged.problems)]
    return "\n".join(lines).rstrip() + "\n"


def latex(judged: Judged) -> str:
    """Numbers and verdicts as two LaTeX tables (packages: booktabs, amssymb; ASCII alone)."""
    table = judged.table
    head = f"{table.heading(judged.scale)}. {words.header(judged)}."
    numbers = []
    for i, (metric, about) in enumerate(table.metrics.items()):
        title = f"{about.label} {say.arrow(about.better)}"
        numbers += ["\\midrule"] if i else []
        numbers += [
            tex.row([title, "weights", "measured", "n", "change", "article", "published"]),
            "\\midrule",
            *(tex.row(_cells(judged, row, metric)) for row in judged.rows.values()),
        ]
    claims = [tex.row(["claim", "measured", "article", "literature"]), "\\midrule"]
    for ruling in judged.rulings:
        verdicts = [
            words.verdict(verdict, judged, ruling) if (verdict := ruling.verdicts.get(who)) else ""
            for who in ("article", "literature")
        ]
        claims.append(tex.row([ruling.claim.text, words.effects(ruling.effects), *verdicts]))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,amssymb}",
            *tex.table("llrrrrr", numbers, f"{head} {_caption(judged)}", f"tab:{table.name}"),
            *tex.table(
                "p{.3\\linewidth}p{.27\\linewidth}p{.17\\linewidth}p{.17\\linewidth}",
                claims,
                f"{head} {words.error_rate(judged)}",
                f"tab:{table.name}-claims",
            ),
            "",
        ]
    )


def as_csv(judged: Judged) -> str:
    """One line a row and metric, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(map(_plain_cells, _lines(judged)))
    return out.getvalue()


def claims_csv(judged: Judged) -> str:
    """One line a claim, expectation and effect: the verdict, and what was measured, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CLAIM_COLUMNS)
    writer.writerows(map(_plain_cells, _claim_lines(judged)))
    return out.getvalue()


def _claim_lines(judged: Judged) -> Iterator[list[object]]:
    for ruling in judged.rulings:
        for who, verdict in ruling.verdicts.items():
            for effect in ruling.effects or (None,):
                measured = (
                    [effect.what, effect.relative, *_ends(effect.estimate), effect.median]
                    if effect
                    else ["", "", *_ends(None), None]
                )
                counts = (
                    [effect.better, effect.worse] if effect and effect.higher is not None else [None, None]
                )
                yield [
                    judged.table.name, judged.scale, ruling.claim.text, ruling.claim.metric, who, str(verdict.kind),
                    words.label(verdict, judged.stand_in), words.reason(verdict, judged, ruling),
                    "; ".join(judged.exploratory), *measured, *counts, len(ruling.seeds), ruling.estimand,
                ]  # fmt: skip


def _plain_cells(cells: Sequence[object]) -> list[object]:
    """Text that a spreadsheet would run as a formula begins with an apostrophe instead."""
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells]


def _lines(judged: Judged) -> Iterator[list[object]]:
    table = judged.table
    for key, row in judged.rows.items():
        for metric, about in table.metrics.items():
            cell = row.cells[metric]
            published = [n for n in row.spec.published if n.metric == metric]
            yield [
                table.name, table.section, judged.scale, row.spec.label, row.spec.arm, row.average, row.window,
                metric, about.better, judged.measured_with.get(metric, ""),
                *_ends(cell.mean), len(cell.values), row.planned, row.diverged, row.failed,
                table.rows[row.against].label if row.against else "", *_ends(cell.change), *_ends(cell.relative),
                judged.table.rows[key].reported.get(metric),
                "; ".join(f"{n.value:g}" for n in published),
                "; ".join(table.sources[n.source].text for n in published),
            ]  # fmt: skip


def _cells(judged: Judged, row: MeasuredRow, metric: str) -> list[str]:
    table, cell = judged.table, row.cells[metric]
    published = [n for n in row.spec.published if n.metric == metric]
    return [
        row.spec.label,
        say.average(row.average),
        say.typical(cell.values.values(), cell.mean),
        say.share(len(cell.values), row.planned),
        say.change_of(cell),
        say.with_change(
            say.reported(row.spec.reported.get(metric)), say.change(table.reported_change(row.key, metric))
        ),
        say.with_change(say.published(published), say.changes(table.published_change(row.key, metric))),
    ]


def _caption(judged: Judged) -> str:
    text = "± and [ ] are 95 % intervals over seeds and decide nothing; changes are paired by seed and relative to the row without averaging."
    if judged.stand_in:
        text += " Values are not comparable with the article's at this scale; changes are."
    return text


def _ends(estimate: Estimate | None) -> list[float | None]:
    return [estimate.mean, estimate.low, estimate.high] if estimate else [None, None, None]


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
