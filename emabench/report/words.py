"""Every sentence of a report about verdicts, claims and what was trained; pages, terminal and files only lay them out.

At a stand-in's scale a verdict is about the stand-in. "Reproduced" and "contradicted" are kept for runs of the
published setting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from emabench.report import format as say
from emabench.runs.result import RAW
from emabench.tables import curves
from emabench.tables.boundary import at_most
from emabench.tables.judge import Judged, Ruling
from emabench.tables.provenance import POOLABLE
from emabench.tables.statistics import ALPHA
from emabench.tables.verdict import DECIDED, Effect, Kind, Verdict

MARKS = {  # distinguished by shape, not by colour
    Kind.HOLDS: "✓",
    Kind.PARTLY: "◐",
    Kind.NO_EFFECT: "○",
    Kind.OPPOSITE: "⇅",
    Kind.FAILS: "✗",
    Kind.UNDECIDED: "?",
    Kind.NOT_COMPARABLE: "≠",
    Kind.NOT_RUN: "·",
    Kind.CANNOT_HOLD: "⊥",
}
STAND_IN = {
    Kind.HOLDS: "seen in the stand-in",
    Kind.PARTLY: "partly seen in the stand-in",
    Kind.NO_EFFECT: "no effect in the stand-in",
    Kind.OPPOSITE: "opposite in the stand-in",
    Kind.FAILS: "not seen in the stand-in",
}
PUBLISHED = {
    Kind.HOLDS: "reproduced",
    Kind.PARTLY: "partly reproduced",
    Kind.NO_EFFECT: "contradicted: no effect",
    Kind.OPPOSITE: "contradicted: the opposite",
    Kind.FAILS: "contradicted",
}
MEANINGS = {
    Kind.HOLDS: "what is claimed is borne out by most seeds, as the estimand beside the claim says",
    Kind.PARTLY: "a part of it is; the words say which part is open or otherwise",
    Kind.NO_EFFECT: "in most seeds there is no effect of the size that is claimed",
    Kind.OPPOSITE: "in most seeds it is the other way round",
    Kind.FAILS: "it is not so in most seeds; that it is the other way round is not shown",
    Kind.UNDECIDED: "none of these is shown; with the number of seeds that would decide, were the shares as seen so far. "
    "Seeds beyond the plan are not counted: more take a new plan, with seeds not yet seen",
    Kind.NOT_COMPARABLE: "these runs cannot speak of it: another unit, another protocol, runs that differ in code",
    Kind.NOT_RUN: "there is nothing yet to judge it by",
    Kind.CANNOT_HOLD: "an argument refutes it, whatever is measured; the argument and its check are beside it",
}
HOW = (
    "Every claim is about most seeds: in more than half of all seeds that could be drawn, the row is better, or a "
    "typical (median) seed lies in a band. It is decided by the exact sign test on seeds planned beforehand, with "
    "Holm's correction over all claims of a table, so that a table has a chance of at most 5 % of any false verdict "
    "whatever the distribution over seeds.",
    "A run that diverges, or whose metric is not finite, counts as the worst outcome; a run that is missing or failed "
    "makes the verdict wait. A tie is not better.",
    "Means with ± and [ ] are 95 % t-intervals over seeds: they describe and decide nothing.",
    "Verdicts on other seeds than the planned ones, with other settings, or on claims written after their data are "
    "marked as such.",
    "The sentence about the best average is a test of its own, at 5 % over all averages of its picture; it is no verdict.",
    "The test data are the same for all seeds, so verdicts speak of this test set.",
)


def kind(kind: Kind, stand_in: bool) -> str:
    """A kind of verdict in words."""
    return (STAND_IN if stand_in else PUBLISHED).get(kind, str(kind))


def label(verdict: Verdict, stand_in: bool) -> str:
    """A verdict in words, without its mark."""
    where = " in the stand-in" if stand_in else ""
    if verdict.kind is Kind.PARTLY:
        return f"{verdict.part}{where}" if stand_in else f"partly reproduced: {verdict.part}"
    if verdict.kind is Kind.NO_EFFECT and verdict.size:
        return (
            f"no effect above {verdict.size}{where}"
            if stand_in
            else f"contradicted: no effect above {verdict.size}"
        )
    return kind(verdict.kind, stand_in)


def verdict(verdict: Verdict, judged: Judged, ruling: Ruling | None = None) -> str:
    """Mark and words, with what restricts them."""
    text = f"{MARKS[verdict.kind]} {label(verdict, judged.stand_in)}"
    if verdict.kind not in DECIDED:
        return text
    limits = []
    if judged.exploratory:
        limits.append("exploratory")
    if ruling and ruling.after_data:
        limits.append("chosen after seeing data")
    return f"{text} ({', '.join(limits)})" if limits else text


def reason(verdict: Verdict, judged: Judged, ruling: Ruling) -> str:
    """Why, or what it would take."""
    if verdict.kind is not Kind.UNDECIDED or verdict.why:
        return verdict.why
    n, first = len(ruling.seeds), judged.table.plan(judged.scale).looks[0]
    if n < first and not judged.exploratory:
        return f"{n} of the {first} seeds planned"
    if verdict.seeds is None or math.isinf(verdict.seeds):
        return "at the shares seen so far no number of seeds in reach would decide"
    return f"a plan of about {verdict.seeds:.0f} seeds would decide, at the shares seen so far"


def effect(effect: Effect) -> str:
    """What was measured of a claim: the mean with its interval, and in how many seeds."""
    mean = effect.estimate
    if effect.higher is None and not effect.relative:  # a value, no change
        shown = say.measured(mean)
    else:
        shown = "–" if mean is None else say.percent(mean) if effect.relative else say.interval(mean)
    parts = [f"{effect.what}: {shown}" if effect.what else shown, *_seeds(effect)]
    return "; ".join(parts)


def effects(several: Sequence[Effect]) -> str:
    """What was measured of a claim in one line: of several effects the means and counts alone."""
    if len(several) == 1:
        return effect(several[0])
    return "step by step: " + ", ".join(map(_short, several)) if several else ""


def _short(effect: Effect) -> str:
    mean = effect.estimate
    shown = "–" if mean is None else say.single(mean.mean) if effect.relative else say.signed(mean.mean)
    return f"{shown} ({effect.better}/{len(effect.tested)})" if effect.higher is not None else shown


def _seeds(effect: Effect) -> Iterator[str]:
    n = len(effect.tested)
    if effect.higher is None or not n:
        return
    yield f"better in {effect.better} of {n} seeds"
    if n > 1 and effect.at_odds:
        yield "the mean goes the other way than most seeds"


def tail(effect: Effect) -> str:
    """What the seeds say of the next one, and which was the worst."""
    n = len(effect.tested)
    if effect.higher is None or n < 2:
        return ""
    better, worse = effect.better, effect.worse
    way, count = ("better", better) if better >= worse else ("worse", worse)
    text = (
        f"{count} of {n} seeds {way}; a new seed is {way} with at least {100 * effect.next_seed:.0f} % (95 %)"
    )
    if count == n:
        text += f"; none of {n} went the other way: up to {100 * at_most(0, n):.0f} % still may"
    sign = 1 if effect.higher else -1
    worst = min(
        range(n), key=lambda i: -math.inf if math.isnan(effect.tested[i]) else sign * effect.tested[i]
    )
    if effect.seeds:
        value = effect.tested[worst]
        shown = math.expm1(value) if effect.relative and math.isfinite(value) else value
        outcome = (
            "no number"
            if not math.isfinite(value)
            else say.single(shown)
            if effect.relative
            else say.signed(shown)
        )
        text += f"; worst seed {effect.seeds[worst]}: {outcome}"
    return text


def tally(counts: Mapping[Kind, int], stand_in: bool) -> str:
    """How many verdicts of each kind."""
    return "  ".join(f"{MARKS[each]} {count} {kind(each, stand_in)}" for each, count in counts.items())


def header(judged: Judged) -> str:
    """What was trained, in a line: model, data, schedule, steps, seeds."""
    trained = judged.table.trained.get("small" if judged.scale == "smoke" else judged.scale, "")  # type: ignore[call-overload]
    steps = {run.result.steps for run in judged.all_runs}
    count = f"{say.steps(max(steps))} steps" if len(steps) == 1 else ""
    where = f"scale {judged.scale}" + (", a stand-in" if judged.stand_in else "")
    return " · ".join(part for part in (trained, count, where) if part)


def control(judged: Judged) -> str:
    """Whether the stand-in shows a published effect, in a line; "" where none is named."""
    if not judged.table.control or not judged.stand_in:
        return ""
    ruling = next(r for r in judged.rulings if r.claim.text == judged.table.control)
    who = "literature" if "literature" in ruling.verdicts else "article"
    return f"Positive control: {ruling.claim.text}: {verdict(ruling.verdicts[who], judged, ruling)}"


def baselines(judged: Judged) -> str:
    """The rows that say what no training, or no average, is worth."""
    labels = [judged.table.rows[key].label for key in judged.table.baselines]
    return f"Baselines: {'; '.join(labels)}" if labels else ""


def provenance(judged: Judged) -> str:
    """What made the runs, in a line: commits, torch, precision, devices; a run that was reused shows its own."""
    parts = []
    for name, of in POOLABLE.items():
        counts = Counter(of(run) for run in judged.all_runs)
        if len(counts) == 1:
            parts.append(next(iter(counts)))
        elif counts:
            listed = ", ".join(f"{text} ({count})" for text, count in sorted(counts.items()))
            parts.append(f"{name}: {listed}")
    known = [part.replace(", torch not stated", "") for part in parts if part != "not stated"]
    return f"{len(judged.all_runs)} runs made by {'; '.join(known)}" if known else ""


def since(ruling: Ruling) -> str:
    """Since when a claim stands."""
    if ruling.since is None:
        return ""
    if not ruling.since.commit:
        return "not committed yet"
    return f"stands since {ruling.since.short} ({ruling.since.date})"


def error_rate(judged: Judged) -> str:
    """What the verdicts of one table are worth together, and what had been seen before its claims were written."""
    count = judged.claims_judged
    text = f"{count} claim{'' if count == 1 else 's'} judged"
    if judged.exploratory:
        text += f". Exploratory, without a known chance of false verdicts: {'; '.join(judged.exploratory)}."
    else:
        late = any(ruling.after_data for ruling in judged.rulings)
        apart = ", those chosen after seeing data left aside" if late else ""
        text += (
            f", with a chance of at most {100 * ALPHA:.0f} % that any verdict of this table is false{apart}."
        )
    return f"{text} The claims were written after seeing {judged.table.seen}." if judged.table.seen else text


def overview(tables: int) -> str:
    """What the verdicts of several tables are worth together."""
    return (
        f"Each table has a chance of at most 5 % of any false verdict: of {tables} tables expect at most "
        f"{ALPHA * tables:.1f} with one. Verdicts marked * hold beside all claims of all these tables as well, so that "
        "the chance of any false one among those marked is at most 5 %."
    )


def answer(judged: Judged) -> str:
    """The table's question answered in a sentence: the verdicts on the claims that answer it, and what they rest on."""
    if not judged.all_runs:
        return "Not run yet."
    return "; ".join(_answered(judged, ruling) for ruling in answering(judged)) + "."


def answering(judged: Judged) -> list[Ruling]:
    """The claims that answer the table's question: those that it names, else the first two that can be judged."""
    named = [r for text in judged.table.answers for r in judged.rulings if r.claim.text == text]
    return (
        named
        or [r for r in judged.rulings if r not in judged.of_paper_scale_alone][:2]
        or list(judged.rulings[:1])
    )


def _answered(judged: Judged, ruling: Ruling) -> str:
    texts = {who: verdict(each, judged, ruling)[2:] for who, each in ruling.verdicts.items()}
    if len(set(texts.values())) == 1:
        shown = next(iter(texts.values()))
    else:
        shown = ", ".join(f"{text} ({who})" for who, text in texts.items())
    decided = any(each.kind in DECIDED for each in ruling.verdicts.values())
    return f"{ruling.claim.text}: {shown}{_evidence(ruling, decided)}"


def _evidence(ruling: Ruling, decided: bool) -> str:
    """The mean change of a decided claim, and in how many seeds it is for the better."""
    if len(ruling.effects) != 1:
        return f", {_count(len(ruling.seeds))}" if ruling.effects else ""
    one = ruling.effects[0]
    counted = next(_seeds(one), "")
    text = effect(one) if decided else counted
    return f", {text.replace('; ', ', ')}" if text else ""


def arm(judged: Judged, arm: str) -> str:
    """A trajectory by the row that is its raw weights; "" where there is one trajectory alone."""
    if len(judged.table.arms) == 1:
        return ""
    rows = (row for row in judged.rows.values() if row.spec.arm == arm and row.average == RAW)
    return next((row.spec.label for row in rows), arm.replace("_", " "))


def changes_caption(label: str, against: str, seeds: int) -> str:
    """What a picture of changes by row shows."""
    return f"Change of {label} against {against}, seed by seed ({_count(seeds)})"


def window_caption(label: str, of: str, seeds: int) -> str:
    """What a picture of changes by window shows."""
    return f"Change of {label} against {of}, seed by seed ({_count(seeds)}), by averaging window"


def learning_caption(label: str, of: str) -> str:
    """What a learning curve shows."""
    return f"{label} along training{f', {of}' if of else ''}"


def _count(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


INTERVALS = (
    "Small points are seeds, each paired with the same seed of the baseline. Bars are 95 % intervals of the mean that "
    "hold for all rows of the metric together; verdicts are decided by counting seeds, not by these bars."
)


def finding(judged: Judged, curve: curves.WindowCurve) -> str:
    """The averages of one group of trajectories beside none, in a sentence that says no more than is shown."""
    metric = judged.table.metrics[curve.metric].label
    without, best = curve.without, curve.best
    if best is None:
        return f"No average has a better mean {metric} than {without} ({say.typical(curve.raw_values.values(), curve.raw)})."
    share = f"a window of {say.steps(best.window)} steps or {say.share_of_run(best.window, curve.steps)} of the run"
    name, value = called(curve, best), say.typical(best.values.values(), best.value)
    hits, n = curve.ahead_in
    if not curve.raw:
        return f"{name} ({share}) has the best mean {metric} of {len(curve.points)}, {value}; there is nothing without averaging to set it against."
    against = f"{value} against {say.typical(curve.raw_values.values(), curve.raw)} of {without}, better in {hits} of {n} seeds"
    if not curve.ahead:
        return (
            f"No average is shown to beat {without}: {name} ({share}) has the best mean {metric} of "
            f"{len(curve.points)}, {against}, which does not decide."
        )
    tied = [called(curve, point) for point in curve.points if point.tied and point is not best]
    also = f" {say.listed(tied)} {'is' if len(tied) == 1 else 'are'} not shown to be worse." if tied else ""
    return (
        f"{name} ({share}) has the best mean {metric} of {len(curve.points)} and beats {without} in most seeds, corrected "
        f"for having been chosen: {against}.{also}"
    )


def called(curve: curves.WindowCurve, point: curves.Point) -> str:
    """An average by its name; a row that is a trajectory of its own by its label."""
    return say.average(point.average) if curve.arm else point.rows[0]
