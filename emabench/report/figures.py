"""The three pictures of a table: changes by row, the metric against the averaging window, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emabench.report import format as say
from emabench.report.svg import WIDTH, Axis, Figure
from emabench.runs.result import RAW
from emabench.tables.curves import Track, WindowCurve, tracks
from emabench.tables.judge import Judged
from emabench.tables.statistics import Estimate

LOG_ABOVE = 2.5  # a metric that spans more than this ratio is drawn on a logarithmic axis


def changes(judged: Judged, metric: str) -> str | None:
    """Every row's relative change: as measured, as the article has it, as it is published."""
    table = judged.table
    rows = []
    for key, row in judged.rows.items():
        change = row.cells[metric].relative
        reported = table.reported_change(key, metric)
        elsewhere = table.published_change(key, metric)
        if row.against and (change or reported is not None or elsewhere):
            rows.append((row, change, reported, elsewhere))
    if not rows:
        return None
    points = [0.0]
    for _, change, reported, elsewhere in rows:
        points += elsewhere + ([reported] if reported is not None else []) + ([change.mean] if change else [])
    x = Axis.around([100 * value for value in _reach(points, [change for _, change, *_ in rows if change])])
    step = 34.0
    left = 12 + 7.2 * max(len(row.spec.label) for row, *_ in rows)
    figure = Figure(
        x, Axis(len(rows) - 0.5, -0.5), height=64 + step * len(rows), left=left, top=14, bottom=40
    )
    floor = figure.height - figure.bottom
    for value in x.ticks():
        a = figure.at_x(value)
        figure._add(f'<line class="grid" x1="{a:.1f}" x2="{a:.1f}" y1="{figure.top:.1f}" y2="{floor:.1f}"/>')
        figure.text(
            a, floor + 17, "0" if abs(value) < 1e-9 else f"{value:+.6g}".replace("-", "−"), kind="tick"
        )
    figure.upright(0.0, "zero")
    about = table.metrics[metric]
    better = "← better" if about.better == "lower" else "better →"
    figure.text(
        WIDTH - 14, floor + 34, f"relative change of {about.label}, %   {better}", anchor="end", kind="title"
    )
    for i, (row, change, reported, elsewhere) in enumerate(rows):
        figure.text(left - 10, figure.at_y(i) + 4, row.spec.label, anchor="end", kind="row")
        lanes = iter(_lanes(i, sum((bool(change), reported is not None, bool(elsewhere)))))
        if change:
            lane, tip = next(lanes), f"measured: {say.percent(change)}, n = {change.n}"
            if change.low is not None and change.high is not None:
                figure.bar(x.clip(100 * change.low), x.clip(100 * change.high), lane, "measured", tip)
            figure.dot(100 * change.mean, lane, "measured", tip)
        if reported is not None:
            figure.diamond(100 * reported, next(lanes), "article", f"article: {say.change(reported)}")
        if elsewhere:
            lane, tip = next(lanes), f"published: {say.changes(elsewhere)}"
            figure.bar(100 * min(elsewhere), 100 * max(elsewhere), lane, "published", tip)
            for value in elsewhere:
                figure.dot(100 * value, lane, "published", tip, radius=3.5)
    return figure.svg(f"Relative change of {about.label} by row: measured, in the article, and published")


def _lanes(row: int, count: int) -> list[float]:
    """Where in a row so many marks go, one above the other."""
    return [row + 0.26 * (i - (count - 1) / 2) for i in range(count)]


def against_window(judged: Judged, found: Sequence[WindowCurve]) -> list[str]:
    """The metric against the averaging window, the optimum and the table's rows marked; on axes of one height."""
    means = [point.value for curve in found for point in curve.points] + [c.raw for c in found if c.raw]
    y = _axis([each.mean for each in means], means, margin=0.1)
    return [_against_window(judged, curve, y) for curve in found]


def _against_window(judged: Judged, curve: WindowCurve, y: Axis) -> str:
    about = judged.table.metrics[curve.metric]
    figure = Figure(Axis.around([point.window for point in curve.points], log=True), y)
    figure.axes("averaging window, steps", f"{about.label} {say.arrow(about.better)}")
    _row_names(figure, curve)
    if curve.raw:
        figure.level(curve.raw.mean, "raw")
        _name_raw(figure, curve, curve.raw.mean)
    # The line joins averages of one family; a mean over a stretch (SWA) stands on its own.
    line = [point for point in curve.points if not curve.arm or point.average.startswith("ema_")]
    with_ends = [
        (p.window, y.clip(p.value.low), y.clip(p.value.high))
        for p in line
        if p.value.low is not None and p.value.high is not None
    ]
    if len(with_ends) > 1:
        figure.band(
            [(w, low) for w, low, _ in with_ends], [(w, high) for w, _, high in with_ends], "measured"
        )
    if len(line) > 1:
        figure.line([(point.window, point.value.mean) for point in line], "measured")
    for point in curve.points:
        kind = "measured" if point.tied else "measured hollow"
        if point.average not in {p.average for p in line}:
            kind += " apart"
        best = point is curve.best
        share = say.share_of_run(point.window, curve.steps)
        tip = f"{point.average}, window {say.steps(point.window)} ({share} of the run): {say.measured(point.value)}"
        if best:
            figure.dot(point.window, point.value.mean, "halo", radius=9)
        figure.dot(point.window, point.value.mean, kind, tip)
    return figure.svg(f"{about.label} against the averaging window{f', {curve.arm}' if curve.arm else ''}")


def _name_raw(figure: Figure, curve: WindowCurve, level: float) -> None:
    """Name the line of the raw weights at the end, above or below it, where the curve is furthest away."""
    dots = [figure.at(point.window, point.value.mean) for point in curve.points]
    places = [
        (x, figure.at_y(level) + dy, anchor)
        for x, anchor in ((figure.left + 4, "start"), (WIDTH - figure.right, "end"))
        for dy in (-6, 14)
    ]
    x, y, anchor = max(
        places, key=lambda place: min(math.hypot(place[0] - a, 2 * (place[1] - b)) for a, b in dots)
    )
    figure.text(x, y, "raw weights" if curve.arm else "without", anchor=anchor, kind="raw")


def _row_names(figure: Figure, curve: WindowCurve) -> None:
    """The names of the table's rows above the plot, on thin uprights; a name too close to the one before steps down."""
    last, lane = -1e9, 0
    for point in curve.points:
        if not point.rows:
            continue
        figure.upright(point.window, "row")
        x = figure.at_x(point.window)
        words = point.rows[0].partition(",")[0]
        half = 3.3 * len(words)
        x = min(max(x, figure.left + half), WIDTH - figure.right - half)
        lane = (lane + 1) % 2 if x - half < last + 4 else 0
        figure.text(x, figure.top - 3 + 12 * lane, words, kind="name")
        last = x + half


def learning(judged: Judged, metric: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """By arm, the metric along training: the arm, the plot, and (class, label) of each line; on axes of one height."""
    found = {arm: each for arm in judged.table.arms if (each := tracks(judged, arm, metric))}
    # What comes before the first tenth of training would squeeze the rest into a corner.
    late = [
        e for each in found.values() for t in each for step, e in t.points if step >= t.points[-1][0] / 10
    ]
    return [
        (arm, *_learning(judged, arm, metric, each, _axis([e.mean for e in late], [])))
        for arm, each in found.items()
    ]


def _learning(
    judged: Judged, arm: str, metric: str, found: Sequence[Track], y: Axis
) -> tuple[str, list[tuple[str, str]]]:
    about = judged.table.metrics[metric]
    figure = Figure(Axis(0, found[0].points[-1][0] * 1.02), y)
    figure.axes("training steps", f"{about.label} {say.arrow(about.better)}")
    legend = []
    for i, track in enumerate(found):
        kind = "raw" if track.average == RAW else f"s{i}"
        spread_of_many = track.points[-1][1].n > 2  # with two seeds a band hides more than it shows
        inside = [(step, e) for step, e in track.points if y.low <= e.mean <= y.high]
        spread = [
            (s, y.clip(e.low), y.clip(e.high)) for s, e in inside if e.low is not None and e.high is not None
        ]
        if len(spread) > 1 and track.average != RAW and spread_of_many:
            figure.band([(s, low) for s, low, _ in spread], [(s, high) for s, _, high in spread], kind)
        if len(inside) > 1:
            figure.line([(step, e.mean) for step, e in inside], kind)
        legend.append((kind, _name(judged, arm, track)))
    return figure.svg(f"{about.label} along training, {arm}"), legend


def _name(judged: Judged, arm: str, track: Track) -> str:
    rows = [row for row in judged.rows.values() if row.spec.arm == arm and row.average == track.average]
    return rows[0].spec.label if rows and track.average != RAW else track.label


def _axis(means: Sequence[float], found: Sequence[Estimate], margin: float = 0.08) -> Axis:
    """A vertical axis on which these means are seen, and what is sensible of their intervals."""
    log = min(means) > 0 and max(means) / min(means) > LOG_ABOVE
    reach = [value for value in _reach(means, found) if value > 0 or not log]
    return Axis.around(reach, log=log, margin=margin)


def _reach(points: Sequence[float], found: Sequence[Estimate]) -> list[float]:
    """What an axis is to show: all points, the intervals of three seeds and more, and a part of those of two."""
    low, high = min(points), max(points)
    reach, span = list(points), high - low
    for each in found:
        for end in (each.low, each.high):
            if end is not None:
                reach.append(end if each.n > 2 else min(max(end, low - span / 2), high + span / 2))
    return reach
