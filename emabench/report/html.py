"""The page: one self-contained HTML file, for one table or for all that was measured.

Nothing is loaded from anywhere: style, figures, pictures and numbers are in the file. A script sorts, filters and
saves figures; everything can be read without it. A policy in the page runs that script alone, whatever a run's
name or reason holds.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shlex
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import emabench
from emabench.audit import Statement, of_table
from emabench.masking import masked
from emabench.report import figures, files, svg, view, words
from emabench.report import format as say
from emabench.runs.files import read_bytes, write_text
from emabench.runs.result import RAW
from emabench.tables import curves, spec
from emabench.tables.gather import Run
from emabench.tables.judge import Judged, Ruling
from emabench.tables.measure import MeasuredRow
from emabench.tables.parts import Source
from emabench.tables.verdict import Kind

EVIDENCE = {"V": "opened in the primary source", "V2": "seen in a copy that quotes it", "D": "derived here"}
PICTURE_LIMIT = 400_000  # bytes of one picture: larger ones are named, not embedded


def write_table(judged: Judged, folder: Path) -> Path:
    """Write one table's page to a folder, its numbers in other formats next to it; returns the page.

    Raises UserError where the folder cannot be written to.
    """
    text, path = page([judged]), files.page_of(judged.table.name, judged.scale, folder)
    with files.writing(folder):
        files.write(judged, folder)
        write_figures(judged, folder)
        write_text(path, text)
    return path


def write_report(
    judged: Sequence[Judged], folder: Path, others: Sequence[Run] = (), unreadable: Sequence[str] = ()
) -> Path:
    """Write the page over all tables to a folder, and each table's numbers; returns the page.

    `others` are runs of no table, `unreadable` says what could not be read. Raises UserError where the folder cannot
    be written to.
    """
    text, path = page(judged, others, unreadable), folder / "index.html"
    with files.writing(folder):
        for each in judged:
            if each.all_runs:
                files.write(each, folder)
        write_text(path, text)
    return path


def write_figures(judged: Judged, folder: Path) -> list[Path]:
    """Write each figure as an SVG file; returns their paths."""
    paths = []
    for picture in figures.all_of(judged) if judged.all_runs else ():
        path = folder / f"{files.stem(judged)}-{picture.name}.svg"
        write_text(path, svg.standalone(picture.svg, figure_style()))
        paths.append(path)
    return paths


def page(judged: Sequence[Judged], others: Sequence[Run] = (), unreadable: Sequence[str] = ()) -> str:
    """The page's text."""
    script = _script()
    sections = [_Section(each) for each in judged]
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            tables=sections,
            shown=[each for each in sections if each.run or len(sections) == 1],
            lacking=[each for each in sections if not each.run] if len(sections) > 1 else [],
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            others=[_other(run) for run in others],
            unreadable=list(map(masked, unreadable)),
            kinds=list(Kind),
            meanings=words.MEANINGS,
            how=words.HOW,
            overview=words.overview(len(judged)) if len(judged) > 1 else "",
            version=emabench.__version__,
        )
    )


@functools.cache
def figure_style() -> str:
    """The style sheet of a figure that is a file of its own: colours of the light page, no variables."""
    loader = _templates().loader
    assert loader
    css, palette = (loader.get_source(_templates(), name)[0] for name in ("figure.css", "page.css"))
    return svg.literal(css, palette)


@functools.cache
def _script() -> str:
    """The page's script with the style that it gives to saved figures."""
    style = json.dumps(figure_style()).replace("<", "\\u003c")
    return f"const FIGURE_STYLE = {style};\n{_templates().get_template('page.js').render()}"


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emabench.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(say=say, words=words, marks=words.MARKS)
    # 10 000 stays on one line
    environment.filters["whole"] = lambda text: re.sub(r"(\d) (?=\d{3})", "\\1\u00a0", text)
    environment.filters["slug"] = lambda kind: re.sub(r"\W+", "-", str(kind))
    return environment


@dataclass(frozen=True)
class _Section:
    """One table as the template needs it."""

    judged: Judged

    @property
    def table(self) -> spec.Table:
        return self.judged.table

    @property
    def id(self) -> str:
        """Of its place on the page."""
        return files.stem(self.judged)

    @property
    def run(self) -> bool:
        return bool(self.judged.all_runs)

    @property
    def seeds(self) -> int:
        """How many seeds have a result in every arm that was run."""
        have = [{s for s, run in by_seed.items() if run} for by_seed in self.judged.runs.values()]
        return len(set.intersection(*filter(None, have))) if any(have) else 0

    def rulings(self) -> list[Ruling]:
        """Those that these runs can speak of."""
        return [
            ruling
            for ruling in self.judged.rulings
            if ruling not in self.judged.of_paper_scale_alone and not _not_run(ruling)
        ]

    def not_run(self) -> list[str]:
        """Rows and claims of which nothing was run."""
        rows = [row.spec.label for row in self.judged.rows.values() if not self._has_runs(row)]
        claims = [ruling.claim.text for ruling in self.judged.rulings if _not_run(ruling)]
        return [*rows, *claims] if self.run else []

    def _has_runs(self, row: MeasuredRow) -> bool:
        return any(self.judged.runs.get(row.spec.arm, {}).values())

    def has_reported(self, metric: str) -> bool:
        """Whether the article or a publication gives a number of this metric."""
        return self.table.has_reported(metric)

    def any_reported(self) -> bool:
        """Whether the article or the literature has numbers to compare with."""
        return any(map(self.table.has_reported, self.table.metrics))

    def findings(self) -> Iterator[tuple[str, str]]:
        """By arm, the best average of the main metric in a sentence."""
        for curve in curves.window_curves(self.judged, next(iter(self.table.metrics))):
            yield (
                words.arm(self.judged, curve.arm) if curve.arm else curve.family,
                words.finding(self.judged, curve),
            )

    def lead(self) -> str:
        """The metric of the claim that answers the question."""
        return next((r.claim.metric for r in words.answering(self.judged)), next(iter(self.table.metrics)))

    def hero(self) -> list[figures.Picture]:
        """What the answer rests on, seen."""
        return figures.changes(self.judged, self.lead()) if self.run else []

    def downloads(self) -> Iterator[tuple[str, str, str]]:
        """The numbers in other forms: what it is, the file's name, the file as an address."""
        kinds = [
            ("CSV", "csv", "text/csv", files.as_csv(self.judged)),
            ("verdicts as CSV", "claims.csv", "text/csv", files.claims_csv(self.judged)),
            ("JSON", "judged.json", "application/json", json.dumps(view.table(self.judged), allow_nan=False)),
            ("LaTeX", "tex", "application/x-tex", files.latex(self.judged)),
        ]
        for what, ending, kind, text in kinds if self.run else ():
            encoded = base64.b64encode(text.encode()).decode()
            yield what, f"{self.id}.{ending}", f"data:{kind};base64,{encoded}"

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The numbers of each metric: measured, reported, published."""
        for metric, about in self.table.metrics.items():
            rows = [
                self._row(row, metric)
                for row in self.judged.rows.values()
                if not self.run or self._has_runs(row)
            ]
            reported = self.table.has_reported(metric)
            yield {
                "key": metric,
                "label": about.label,
                "arrow": say.arrow(about.better),
                "rows": rows,
                "reported": reported,
                "why_not": self.judged.comparable(metric)
                if self.run and reported and not self.judged.stand_in
                else "",
                "with": self.judged.measured_with.get(metric, ""),
                "changes": figures.changes(self.judged, metric) if self.run and metric != self.lead() else [],
            }

    def _row(self, row: MeasuredRow, metric: str) -> dict[str, Any]:
        cell = row.cells[metric]
        published = [n for n in row.spec.published if n.metric == metric]
        return {
            "label": row.spec.label,
            "average": say.average(row.average),
            "window": "" if row.average == RAW or not row.window else f"{say.steps(row.window)} steps",
            "measured": say.typical(cell.values.values(), cell.mean),
            "n": say.share(len(cell.values), row.planned),
            "arm": row.spec.arm,
            "seeds": [
                (seed, say.number(value, 5), _address(self.judged.runs[row.spec.arm].get(seed)))
                for seed, value in cell.values.items()
            ],
            "change": say.change_of(cell).partition(" ["),
            "reported": say.reported(row.spec.reported.get(metric)),
            "reported_change": say.change(self.table.reported_change(row.key, metric)),
            "notes": self._notes(row.key, metric),
            "published": say.published(published),
            "published_change": say.changes(self.table.published_change(row.key, metric)),
            "sources": published,
        }

    def _notes(self, row: str, metric: str) -> list[int]:
        """Numbers of the notes on a cell."""
        return [
            i
            for i, note in enumerate(self.table.notes, 1)
            if row in note.rows and note.metric in (None, metric)
        ]

    def windows(self) -> list[figures.Picture]:
        """The change against the window, of each metric that a claim is about, in each arm."""
        return [
            picture
            for metric in figures.claimed(self.judged)
            for picture in figures.against_window(self.judged, metric)
        ]

    def ladder(self) -> Iterator[dict[str, Any]]:
        """Every average of every arm, in numbers."""
        for arm in self.table.arms:
            runs = curves.finished(self.judged, arm)
            if not runs:
                continue
            drawn = [(m, curves.window_curve(self.judged, arm, m)) for m in self.table.metrics]
            known = [(metric, curve) for metric, curve in drawn if curve]
            rows = []
            for average in dict.fromkeys(point.average for _, curve in known for point in curve.points):
                about, window = runs[0].describe(average), runs[0].window(average) or 0.0
                cells = [next((p for p in curve.points if p.average == average), None) for _, curve in known]
                rows.append(
                    {
                        "average": say.average(average),
                        "name": average,
                        "window": say.steps(window),
                        "share": say.share_of_run(window, runs[0].result.steps),
                        "half_life": say.steps(about.get("half_life")),
                        "start": say.weight(about.get("start_weight")),
                        "cells": [say.measured(p.value) if p else "–" for p in cells],
                    }
                )
            raw = [say.measured(curve.raw) for _, curve in known]
            yield {
                "arm": words.arm(self.judged, arm),
                "labels": [self.table.metrics[m].label for m, _ in known],
                "raw": raw,
                "rows": rows,
            }

    def learning(self) -> list[figures.Picture]:
        """Learning curves of the main metric in each arm."""
        return figures.learning(self.judged, next(iter(self.table.metrics)))

    def pictures(self) -> Iterator[dict[str, Any]]:
        """Samples of raw weights beside those of the table's averages, of the first finished run of each arm."""
        for arm in self.table.arms:
            run = next(iter(curves.finished(self.judged, arm)), None)
            if not run:
                continue
            averages = dict.fromkeys(
                [RAW, *(r.average for r in self.judged.rows.values() if r.spec.arm == arm)]
            )
            shown = [(average, picture) for average in averages if (picture := _embedded(run, average))]
            if shown:
                yield {"arm": words.arm(self.judged, arm), "seed": run.result.seed, "pictures": shown}

    def runs(self) -> Iterator[dict[str, Any]]:
        """Every run the numbers come from."""
        for arm, by_seed in self.judged.runs.items():
            for seed, run in by_seed.items():
                yield _run(run, arm, seed)

    def configurations(self) -> Iterator[dict[str, str]]:
        """By arm: the command that trains one of its runs, and the configuration of the first (its seed aside)."""
        seed = self.table.plan(self.judged.scale).first
        for arm in self.table.arms:
            command = [*self.table.words(arm, self.judged.scale), *self.judged.overrides, f"seed={seed}"]
            run = next((run for run in self.judged.runs.get(arm, {}).values() if run and run.config), None)
            plain = {key: value for key, value in run.config.items() if key != "seed"} if run else {}
            yield {
                "arm": arm,
                "label": words.arm(self.judged, arm),
                "command": masked(shlex.join(["emabench", *command])),
                "text": masked(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)) if plain else "",
            }

    def statements(self) -> list[Statement]:
        """The article's statements that the table measures (`emabench audit`)."""
        return of_table(self.table.name)

    def command(self) -> str:
        seeds = max((len(by_seed) for by_seed in self.judged.runs.values()), default=0)
        seeds = seeds or self.table.plan(self.judged.scale).looks[0]
        options = [f"seeds={seeds}", *self.judged.overrides]
        if self.judged.scale != "small" and f"scale={self.judged.scale}" not in options:
            options.insert(1, f"scale={self.judged.scale}")
        return masked(" ".join(["emabench table", self.table.name, *map(shlex.quote, options)]))

    def published(self) -> Iterator[dict[str, str]]:
        """Every published number with its source; those of no row last."""
        numbers = [(row.label, n) for row in self.table.rows.values() for n in row.published]
        for label, n in [*numbers, *(("", n) for n in self.table.context)]:
            source = self.table.sources[n.source]
            yield {
                "row": label,
                "metric": self.table.metrics[n.metric].label,
                "value": f"{n.value:g}" + (f" ± {n.plus_minus:g}" if n.plus_minus else ""),
                "source": source.text,
                "evidence": EVIDENCE[source.mark],
                "note": n.note,
            }

    def cited(self) -> list[Source]:
        """Sources of what the literature expects that have no number in the table."""
        numbers = {n.source for row in self.table.rows.values() for n in row.published}
        numbers |= {n.source for n in self.table.context}
        return [source for key, source in self.table.sources.items() if key not in numbers]

    def statistics(self) -> Iterator[dict[str, str]]:
        """Every effect in full: mean, median, in how many seeds, and what that says of the next seed."""
        for ruling in self.rulings():
            for effect in ruling.effects:
                mean, middle = effect.estimate, effect.median
                shown = say.percent if effect.relative else say.interval
                yield {
                    "claim": ruling.claim.text,
                    "what": effect.what,
                    "n": str(len(effect.tested)),
                    "t": shown(mean) if mean else "–",
                    "median": "–"
                    if middle is None
                    else say.single(middle)
                    if effect.relative
                    else say.signed(middle),
                    "tail": words.tail(effect),
                }


def _not_run(ruling: Ruling) -> bool:
    return bool(ruling.verdicts) and all(v.kind is Kind.NOT_RUN for v in ruling.verdicts.values())


def _address(run: Run | None) -> str:
    """Where a run is on W&B; "" where that is not known."""
    address = str(run.address) if run else ""
    return address if address.startswith(("https://", "http://")) else ""


def _run(run: Run | None, arm: str, seed: int) -> dict[str, Any]:
    if run is None:
        return {
            "arm": arm,
            "seed": seed,
            "status": "not run",
            "id": "",
            "commit": "",
            "device": "",
            "time": "",
            "reason": "",
            "address": "",
        }
    result = run.result
    environment = result.environment
    return {
        "arm": arm,
        "seed": seed,
        "status": result.status,
        "id": result.run_id,
        "commit": environment.get("commit") or "",
        "device": environment.get("device") or "",
        "time": say.seconds(sum(result.timing.values())) if result.timing else "",
        "reason": masked(result.reason or ""),
        "address": _address(run),
    }


def _other(run: Run) -> dict[str, Any]:
    """A run of no table: its main metric raw, and of the best average."""
    result = run.result
    metric = next(iter(result.metrics), "")
    values = {
        row.average: value for row in result.rows if (value := run.value(row.average, metric)) is not None
    }
    pick = max if result.metrics.get(metric) == "higher" else min
    averages = {name: value for name, value in values.items() if name != RAW}
    best = pick(averages, key=lambda name: averages[name]) if averages else None
    return {
        **_run(run, "", result.seed),
        "task": result.task,
        "scale": result.scale,
        "metric": metric,
        "raw": say.number(values.get(RAW)),
        "best": f"{best} {say.number(averages[best])}" if best else "–",
    }


def _embedded(run: Run, average: str) -> dict[str, Any] | None:
    """A picture as a data URI, with its size."""
    path = run.picture(average)
    if path is None:
        return None
    try:
        data = read_bytes(path, PICTURE_LIMIT)
    except OSError:
        return None
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return {
        "uri": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "width": width,
        "height": height,
        "small": width < 300,
    }
