"""The pictures of a table: changes by row, the change against the averaging window, learning curves.

What is compared is drawn as it is tested: seed by seed, against one baseline on an axis, with intervals that hold for
all that is compared in the picture together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from emabench.report import format as say
from emabench.report import words
from emabench.report.svg import WIDTH, Axis, Figure
from emabench.runs.result import RAW
from emabench.tables import curves
from emabench.tables.curves import Paired, Track, WindowCurve, tracks
from emabench.tables.judge import Judged
from emabench.tables.measure import MeasuredRow
from emabench.tables.statistics import Estimate

LOG_ABOVE = 2.5  # a metric that spans more than this ratio is drawn on a logarithmic axis
SQUEEZED = 0.12  # of an axis: what takes less has one of its own
LETTER = 6.4  # the width of one, on average
ROW = 40.0  # the height of a row


@dataclass(frozen=True)
class Picture:
    """A figure with its name in files, and what is seen in it."""

    name: str
    svg: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()  # class and label of each line


def all_of(judged: Judged) -> Iterator[Picture]:
    """Every picture of a table."""
    for metric in judged.table.metrics:
        yield from changes(judged, metric)
    for metric in claimed(judged):
        yield from against_window(judged, metric)
    yield from learning(judged, next(iter(judged.table.metrics)))


def claimed(judged: Judged) -> list[str]:
    """The metrics of which a claim is made and a best can be named."""
    about = {claim.metric for claim in judged.table.claims}
    return [name for name, metric in judged.table.metrics.items() if name in about and metric.ranked]


def changes(judged: Judged, metric: str) -> list[Picture]:
    """Every row's change by seed, a picture for each row that others are set against; all on one scale."""
    found, relative = curves.changes(judged, metric)
    if not any(paired for by_row in found.values() for paired in by_row.values()):
        return []
    by_base = {}
    for base, by_row in found.items():
        rows = [_marks(judged, judged.rows[key], metric, paired, relative) for key, paired in by_row.items()]
        if rows := [row for row in rows if row.paired or row.elsewhere or row.reported is not None]:
            by_base[base] = rows
    everything = [row for rows in by_base.values() for row in rows]
    reaches = [
        _reach(
            [0.0, *(value for row in rows for value in row.points())], [row.mean for row in rows if row.mean]
        )
        for rows in by_base.values()
    ]
    left = 14 + LETTER * max(max(map(len, row.lines)) for row in everything)
    return [
        _changes(judged, metric, base, rows, axis, left, relative)
        for (base, rows), axis in zip(by_base.items(), _axes(reaches), strict=True)
    ]


@dataclass(frozen=True)
class _Marks:
    """What is drawn of one row: values as they are on the axis (in per cent where relative)."""

    row: MeasuredRow
    paired: Paired | None
    seeds: Mapping[int, float]
    mean: Estimate | None
    reported: float | None
    elsewhere: Sequence[float]
    lines: Sequence[str]  # the label

    def points(self) -> list[float]:
        own = [self.mean.mean] if self.mean else []
        reported = [self.reported] if self.reported is not None else []
        return [*self.seeds.values(), *own, *reported, *self.elsewhere]


def _marks(judged: Judged, row: MeasuredRow, metric: str, paired: Paired | None, relative: bool) -> _Marks:
    table, factor = judged.table, 100 if relative else 1
    reported = table.reported_change(row.key, metric) if relative else None
    return _Marks(
        row,
        paired,
        {seed: factor * value for seed, value in paired.by_seed.items()} if paired else {},
        paired.mean.map(lambda x: factor * x) if paired and paired.mean else None,
        None if reported is None else 100 * reported,
        [100 * value for value in table.published_change(row.key, metric)] if relative else [],
        _wrapped(row.spec.label),
    )


def _changes(
    judged: Judged, metric: str, base: str, rows: Sequence[_Marks], x: Axis, left: float, relative: bool
) -> Picture:
    about = judged.table.metrics[metric]
    size = curves.by_size(judged, metric)
    label = f"the size of {about.label}" if size else about.label
    figure = Figure(x, Axis(len(rows) - 0.5, -0.5), height=60 + ROW * len(rows), left=left, top=12, bottom=42)
    floor = figure.height - figure.bottom
    for value in x.ticks():
        a = figure.at_x(value)
        figure._add(f'<line class="grid" x1="{a:.1f}" x2="{a:.1f}" y1="{figure.top:.1f}" y2="{floor:.1f}"/>')
        text = "0" if abs(value) < 1e-9 else f"{value:+.6g}".replace("-", "−")
        figure.text(a, floor + 17, text, kind="tick")
    figure.upright(0.0, "zero")
    for i, marks in enumerate(rows):
        _row(figure, i, marks, left)
    against = judged.rows[base].spec.label
    lower = about.better == "lower" or size
    better = ("← better" if lower else "better →") if about.ranked or size else ""
    unit = ", %" if relative else ""
    figure.text(WIDTH - 14, floor + 35, f"change of {label}{unit}   {better}", anchor="end", kind="title")
    caption = words.changes_caption(label, against, max(len(m.seeds) for m in rows))
    return Picture(f"{metric}-against-{base}", figure.svg(caption), caption)


def _row(figure: Figure, i: int, marks: _Marks, left: float) -> None:
    """One row: its seeds, the mean with its interval, and what the article and others report."""
    x = figure.x
    for n, line in enumerate(marks.lines):
        figure.text(
            left - 10,
            figure.at_y(i) + 4 + 13 * (n - (len(marks.lines) - 1) / 2),
            line,
            anchor="end",
            kind="row",
        )
    others = marks.reported is not None or bool(marks.elsewhere)
    lane = i - (0.14 if others else 0.0)
    for n, (seed, value) in enumerate(marks.seeds.items()):
        aside = lane + 0.09 * (n % 3 - 1)
        figure.dot(x.clip(value), aside, "seed", f"seed {seed}: {_signed(value)}", radius=2.6, seed=seed)
    if marks.mean:
        mean, unit = marks.mean, "%" if marks.paired and marks.paired.relative else ""
        tip = f"mean: {say.interval(mean)}{unit}, {mean.n} seeds"
        if mean.low is not None and mean.high is not None:
            figure.bar(x.clip(mean.low), x.clip(mean.high), lane, "measured", tip)
        figure.dot(mean.mean, lane, "measured", tip)
    if marks.elsewhere:
        tip = f"published: {say.changes([value / 100 for value in marks.elsewhere])}"
        figure.bar(min(marks.elsewhere), max(marks.elsewhere), i + 0.24, "published", tip)
        for value in marks.elsewhere:
            figure.dot(value, i + 0.24, "published", tip, radius=3.5)
    if marks.reported is not None:
        figure.diamond(marks.reported, i + 0.24, "article", f"article: {say.change(marks.reported / 100)}")


def _wrapped(label: str, width: int = 22) -> list[str]:
    """A label on one line, or on two of about the same length."""
    if len(label) <= width or " " not in label:
        return [label]
    spaces = [i for i, letter in enumerate(label) if letter == " "]
    middle = min(spaces, key=lambda i: abs(2 * i - len(label)))
    return [label[:middle], label[middle + 1 :]]


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def against_window(judged: Judged, metric: str) -> list[Picture]:
    """How the averages differ from none, seed by seed, against the averaging window; on axes of one height."""
    ready = []
    for curve in curves.window_curves(judged, metric):
        if based := curves.against_base(curve):
            ready.append((curve, *based))
    if not ready:
        return []
    relative = all(is_relative for *_, is_relative in ready)
    if not relative:
        ready = [(curve, base, changes, False) for curve, base, changes, own in ready if not own] or ready
    factor = 100 if relative else 1
    reaches = []
    for _, _, by_average, _ in ready:
        known = [paired for paired in by_average.values() if paired]
        points = [0.0, *(factor * value for paired in known for value in paired.by_seed.values())]
        reaches.append(_reach(points, [p.mean.map(lambda x: factor * x) for p in known if p.mean]))
    return [
        _against_window(judged, curve, base, by_average, y, factor)
        for (curve, base, by_average, _), y in zip(ready, _axes(reaches), strict=True)
    ]


def _against_window(
    judged: Judged,
    curve: WindowCurve,
    base: str,
    by_average: Mapping[str, Paired | None],
    y: Axis,
    factor: int,
) -> Picture:
    about = judged.table.metrics[curve.metric]
    drawn = [point for point in curve.points if by_average.get(point.average)]
    figure = Figure(Axis.around([point.window for point in drawn], log=True), y)
    unit = ", %" if factor == 100 else ""
    of = words.arm(judged, curve.arm) if curve.arm else base
    figure.axes("averaging window, steps", f"change of {about.label}{unit} {say.arrow(about.better)}")
    figure.level(0.0, "raw")
    # A line joins averages of one family; a mean over a stretch (SWA) stands on its own.
    line = [point for point in drawn if not curve.arm or point.average.startswith("ema_")]
    seeds = sorted({seed for point in line for seed in by_average[point.average].by_seed})  # type: ignore[union-attr]
    for seed in seeds:
        track = [
            (point.window, y.clip(factor * paired.by_seed[seed]))
            for point in line
            if (paired := by_average[point.average]) and seed in paired.by_seed
        ]
        if len(track) > 1:
            figure.line(track, "seed", f"seed {seed}", seed)
    means = [
        (p, paired.mean.map(lambda x: factor * x))
        for p in drawn
        if (paired := by_average[p.average]) and paired.mean
    ]
    joined = [(point.window, mean.mean) for point, mean in means if point in line]
    if len(joined) > 1:
        figure.line(joined, "measured")
    for point, mean in means:
        share = say.share_of_run(point.window, curve.steps)
        tip = (
            f"{words.called(curve, point)}, window {say.steps(point.window)} ({share} of the run): "
            f"{say.interval(mean)}{'%' if factor == 100 else ''}"
        )
        if mean.low is not None and mean.high is not None:
            figure.upright_bar(point.window, y.clip(mean.low), y.clip(mean.high), "measured", tip)
        if point is curve.best:
            figure.dot(point.window, mean.mean, "halo", radius=9)
        apart = "" if point in line else " apart"
        figure.dot(point.window, mean.mean, f"measured{'' if point.tied else ' hollow'}{apart}", tip)
    _row_names(figure, [point for point in drawn if point.rows])
    where = re.sub(r"\W+", "-", curve.arm or curve.family or "targets")
    caption = words.window_caption(about.label, of or base, len(seeds))
    return Picture(f"{curve.metric}-window-{where}", figure.svg(caption), caption)


def _row_names(figure: Figure, points: Sequence[curves.Point]) -> None:
    """The names of the table's rows above the plot; one too close to the one before steps down, or is left to the tip."""
    last = [-1e9, -1e9]
    for point in points:
        x = figure.at_x(point.window)
        name = point.rows[0].partition(",")[0]
        half = 3.3 * len(name)
        at = min(max(x, figure.left + half), WIDTH - figure.right - half)
        lane = next((n for n in (0, 1) if at - half > last[n] + 4), None)
        if lane is None:
            continue
        figure.text(at, figure.top - 3 + 12 * lane, name, kind="name")
        last[lane] = at + half


def learning(judged: Judged, metric: str) -> list[Picture]:
    """By arm, the metric along training, with a thin line for every seed; on axes of one height."""
    found = {arm: each for arm in judged.table.arms if (each := tracks(judged, arm, metric))}
    # What comes before the first tenth of training would squeeze the rest into a corner.
    late = [
        e for each in found.values() for t in each for step, e in t.points if step >= t.points[-1][0] / 10
    ]
    if not late:
        return []
    y = _axis([e.mean for e in late])
    return [_learning(judged, arm, metric, each, y) for arm, each in found.items()]


def _learning(judged: Judged, arm: str, metric: str, found: Sequence[Track], y: Axis) -> Picture:
    about = judged.table.metrics[metric]
    figure = Figure(Axis(0, found[0].points[-1][0] * 1.02), y)
    figure.axes("training steps", f"{about.label} {say.arrow(about.better)}")
    legend = []
    for i, track in enumerate(found):
        kind = "raw" if track.average == RAW else f"s{i}"
        for seed, points in track.seeds.items():
            inside = [(step, value) for step, value in points if y.low <= value <= y.high]
            if len(inside) > 1 and len(track.seeds) > 1:
                figure.line(inside, f"seed {kind}", f"{_name(judged, arm, track)}, seed {seed}", seed)
        means = [(step, e.mean) for step, e in track.points if y.low <= e.mean <= y.high]
        if len(means) > 1:
            figure.line(means, kind)
        legend.append((kind, _name(judged, arm, track)))
    caption = words.learning_caption(about.label, words.arm(judged, arm))
    return Picture(f"{metric}-training-{arm}", figure.svg(caption), caption, legend)


def _name(judged: Judged, arm: str, track: Track) -> str:
    rows = [row for row in judged.rows.values() if row.spec.arm == arm and row.average == track.average]
    return rows[0].spec.label if rows and track.average != RAW else say.average(track.average)


def _axis(means: Sequence[float], margin: float = 0.08) -> Axis:
    """A vertical axis on which these means are seen."""
    log = min(means) > 0 and max(means) / min(means) > LOG_ABOVE
    return Axis.around(means, log=log, margin=margin)


def _axes(reaches: Sequence[Sequence[float]]) -> list[Axis]:
    """One axis for all that is set side by side; one of its own for what would be squeezed on it."""
    together = Axis.around([value for reach in reaches for value in reach], margin=0.08)
    span = SQUEEZED * (together.high - together.low)
    return [
        together if max(reach) - min(reach) > span else Axis.around(reach, margin=0.08) for reach in reaches
    ]


def _reach(points: Sequence[float], found: Sequence[Estimate]) -> list[float]:
    """What an axis is to show: all points, and of intervals no more than half the points' range beyond them."""
    low, high = min(points), max(points)
    span = high - low
    ends = [end for each in found for end in (each.low, each.high) if end is not None]
    return [*points, *(min(max(end, low - span / 2), high + span / 2) for end in ends if math.isfinite(end))]
