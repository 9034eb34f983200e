"""A judged table as plain data: every number and every sentence that a page lays out, ready for JSON.

Templates and scripts take their words from here (and `words`), so that every sentence is written and tested in one place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from emabench.report import words
from emabench.tables import curves
from emabench.tables.judge import Judged, Ruling
from emabench.tables.measure import MeasuredRow
from emabench.tables.statistics import Estimate
from emabench.tables.verdict import Effect, Verdict


def overview(tables: Sequence[Judged]) -> dict[str, Any]:
    """Several tables, with their common error rate."""
    return {
        "error_rate": words.overview(len(tables)),
        "how": list(words.HOW),
        "verdicts": [
            {"kind": str(kind), "mark": words.MARKS[kind], "meaning": meaning, "stand_in": words.kind(kind, True), "published": words.kind(kind, False)}
            for kind, meaning in words.MEANINGS.items()
        ],
        "tables": [table(judged) for judged in tables],
    }  # fmt: skip


def table(judged: Judged) -> dict[str, Any]:
    """One table: what was trained, what was measured of every row by seed, every claim with its verdicts."""
    spec = judged.table
    metric = next(iter(spec.metrics))
    return {
        "name": spec.name,
        "scale": judged.scale,
        "stand_in": judged.stand_in,
        "title": spec.titled(judged.scale),
        "published_title": spec.titled("paper"),
        "where": spec.where,
        "question": spec.question,
        "answer": words.answer(judged),
        "trained": words.header(judged),
        "seeds": judged.seeds,
        "planned": {"first": spec.plan(judged.scale).first, "looks": list(spec.plan(judged.scale).looks)},
        "exploratory": list(judged.exploratory),
        "error_rate": words.error_rate(judged),
        "made": words.provenance(judged),
        "control": words.control(judged),
        "baselines": words.baselines(judged),
        "problems": list(judged.problems),
        "findings": [
            {"arm": curve.arm or curve.family, "text": words.finding(judged, curve)}
            for curve in curves.window_curves(judged, metric)
        ],
        "claims": [
            claim(judged, ruling) for ruling in judged.rulings if ruling not in judged.of_paper_scale_alone
        ],
        "paper_scale_alone": [ruling.claim.text for ruling in judged.of_paper_scale_alone],
        "metrics": {name: _metric(judged, name) for name in spec.metrics},
        "measured_with": dict(judged.measured_with),
        "references": dict(judged.references),
        "notes": [{"text": note.text, "metric": note.metric, "rows": list(note.rows)} for note in spec.notes],
    }


def claim(judged: Judged, ruling: Ruling) -> dict[str, Any]:
    """One claim: its estimand, what was measured of it, and the verdict on each that makes it."""
    return {
        "text": ruling.claim.text,
        "metric": ruling.claim.metric,
        "rows": ruling.claim.rows(),
        "section": ruling.claim.section,
        "estimand": ruling.estimand,
        "since": words.since(ruling),
        "after_data": ruling.after_data,
        "seeds": list(ruling.seeds),
        "note": ruling.claim.note,
        "check": ruling.claim.check,
        "effects": [_effect(effect) for effect in ruling.effects],
        "verdicts": {who: _verdict(judged, ruling, verdict) for who, verdict in ruling.verdicts.items()},
    }


def _verdict(judged: Judged, ruling: Ruling, verdict: Verdict) -> dict[str, Any]:
    return {
        "kind": str(verdict.kind),
        "mark": words.MARKS[verdict.kind],
        "text": words.verdict(verdict, judged, ruling)[2:],
        "why": words.reason(verdict, judged, ruling),
        "holds_beside_all": verdict.overview,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    """Values by seed are changes (or values) as they are shown; null where one of two rows has no number."""
    shown = [math.expm1(x) if effect.relative and math.isfinite(x) else x for x in effect.tested]
    return {
        "what": effect.what,
        "relative": effect.relative,
        "text": words.effect(effect),
        "tail": words.tail(effect),
        "mean": _estimate(effect.estimate),
        "median": effect.median,
        "better": effect.better if effect.higher is not None else None,
        "worse": effect.worse if effect.higher is not None else None,
        "by_seed": {str(seed): _finite(x) for seed, x in zip(effect.seeds, shown, strict=False)},
    }


def _metric(judged: Judged, metric: str) -> dict[str, Any]:
    about = judged.table.metrics[metric]
    return {
        "label": about.label,
        "better": about.better,
        "ranked": about.ranked,
        "unit": about.unit_at(judged.scale),
        "published_unit": about.unit_at("paper"),
        "rows": {key: _row(row, metric, about.unit_at(judged.scale)) for key, row in judged.rows.items()},
    }


def _row(row: MeasuredRow, metric: str, unit: str) -> dict[str, Any]:
    cell = row.cells[metric]
    mean = cell.mean.mean if cell.mean else None
    return {
        "label": row.spec.label,
        "arm": row.spec.arm,
        "average": row.average,
        "window": row.window,
        "against": row.against,
        "by_seed": _by_seed(cell.values),
        "paired": _by_seed(cell.paired),
        "mean": _estimate(cell.mean),
        "change": _estimate(cell.change),
        "relative": _estimate(cell.relative),
        "nats_per_character": math.log(mean) if mean and mean > 0 and unit == "per character" else None,
        "planned": row.planned,
        "diverged": row.diverged,
        "failed": row.failed,
        "reported": row.spec.reported.get(metric),
        "published": [number.value for number in row.spec.published if number.metric == metric],
    }


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def _estimate(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    if estimate is None:
        return None
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
