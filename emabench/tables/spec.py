"""What a table of the article says, and what is needed to test it: one YAML in `conf/table/`.

A table is written before anything is measured: its rows with the numbers that the article reports and that the
literature publishes, the claims that these rows make, and the tolerances that decide about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from emabench.config import SCALES, Section, checked
from emabench.errors import UserError, nearest
from emabench.paths import conf_dir
from emabench.runs.files import read_yaml
from emabench.runs.result import RAW

Scale = Literal["smoke", "small", "paper"]
Direction = Literal["lower", "higher"]
Seeds = Annotated[int, Field(ge=1, le=1000)]


@dataclass(frozen=True)
class Amount:
    """A difference: in the metric's own unit (`0.15`), or relative to the row compared with (`-38%`)."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return (f"{100 * self.value:+.4g}%" if self.relative else f"{self.value:+.4g}").replace("-", "−")


def _amount(value: Any) -> Any:
    try:
        if isinstance(value, str) and value.endswith("%"):
            return Amount(float(value[:-1].replace("−", "-")) / 100, relative=True)
        if not isinstance(value, bool):
            return Amount(float(value), relative=False)
    except (TypeError, ValueError):
        pass
    raise ValueError("is neither a number nor a percentage like -38%")


def _amounts(value: Any) -> Any:
    """One amount, or the two ends of a range, as a sorted pair."""
    ends = [_amount(end) for end in (value if isinstance(value, list) else [value])]
    if len(ends) > 2 or not ends:
        raise ValueError("is neither an amount nor a range [low, high]")
    if len({end.relative for end in ends}) > 1:
        raise ValueError("mixes a percentage with a plain number")
    ends.sort(key=lambda end: end.value)
    return (ends[0], ends[-1])


OneAmount = Annotated[Amount, BeforeValidator(_amount)]
Range = Annotated[tuple[Amount, Amount], BeforeValidator(_amounts)]
Overrides = list[str] | dict[Scale, list[str]]


def at_scale(value: Any, scale: str) -> Any:
    """The value for one scale of what may be written once for all. What is left out for `smoke` is as for `small`."""
    if not isinstance(value, dict):
        return value
    return value.get(scale, value.get("small") if scale == "smoke" else None)


class Metric(Section):
    """How a metric is called and which way it is better.

    `ranked` is false where further that way is not better without end (a bias, whose best is zero): claims may
    speak of a direction, but no row is called the best.
    """

    label: str
    better: Direction
    ranked: bool = True


class Source(Section):
    """Where published numbers stand. `mark`: V opened in the primary source, V2 seen in a copy that quotes it."""

    text: str
    mark: Literal["V", "V2"]


class Published(Section):
    """One published number."""

    metric: str
    value: float
    plus_minus: float | None = None
    source: str
    note: str = ""


class Note(Section):
    """What a reader has to know of numbers: why one cannot be right, what another was measured on."""

    text: str
    metric: str | None = None
    rows: list[str] = Field(default_factory=list)


class TableRow(Section):
    """One row of the table: which average of which trajectory it is, and what others say of it."""

    label: str
    arm: str
    average: str | dict[Scale, str]
    decay: float | dict[Scale, float] | None = (
        None  # of the target network, where that is what the row is about
    )
    against: str | None = None  # the row it is compared with; else the raw weights of the same trajectory
    reported: dict[str, float] = Field(default_factory=dict)  # the article's numbers, by metric
    published: list[Published] = Field(default_factory=list)


class Claim(Section):
    """Something the rows are said to show. `article` and `literature` hold what each of them expects."""

    text: str
    metric: str
    sources: list[str] = Field(default_factory=list)  # of the literature's expectation
    note: str = ""

    def rows(self) -> list[str]:
        """The rows it is about."""
        raise NotImplementedError

    def expectations(self, table: Table) -> dict[str, Any]:
        """What is expected, by who expects it."""
        found = {"article": getattr(self, "article", None), "literature": getattr(self, "literature", None)}
        return {who: expected for who, expected in found.items() if expected is not None}

    def only_at_paper_scale(self) -> bool:
        """Does it compare values in a unit that other data or another network would change?"""
        return False


class Order(Claim):
    """The metric gets better (or worse) with every step along the rows.

    A step back within `margin` is none, and less than `margin` from the first row to the last is no gain.
    """

    type: Literal["order"]
    along: Annotated[list[str], Field(min_length=2)]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse"] | None = None
    literature: Literal["better", "worse"] | None = None

    def rows(self) -> list[str]:
        return self.along


class Pair(Claim):
    """A claim about one row over another."""

    row: str
    over: str

    def rows(self) -> list[str]:
        return [self.row, self.over]


class Difference(Pair):
    """`row` is better or worse than `over`, or equal to it within `margin`."""

    type: Literal["difference"]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse", "equal"] | None = None
    literature: Literal["better", "worse", "equal"] | None = None

    @model_validator(mode="after")
    def _margin(self) -> Self:
        if self.margin.value < 0 or ("equal" in (self.article, self.literature) and not self.margin.value):
            raise ValueError("equality is judged within a margin above zero; set margin")
        return self


class Gain(Pair):
    """`row` changes the metric of `over` by so much, within `tolerance`."""

    type: Literal["gain"]
    article: Range | None = None
    literature: Range | None = None
    tolerance: OneAmount

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _check_units(self.tolerance, self.article, self.literature)
        return self

    def only_at_paper_scale(self) -> bool:
        return not self.tolerance.relative


class StepsToTarget(Pair):
    """`row` reaches a value of the metric in so many per cent fewer or more steps than `over`."""

    type: Literal["steps"]
    target: float | dict[Scale, float] | None = None
    target_row: str | None = None  # instead: the mean final value of this row
    article: Range | None = None
    literature: Range | None = None
    tolerance: OneAmount

    def rows(self) -> list[str]:
        return [self.row, self.over, *([self.target_row] if self.target_row else [])]

    @model_validator(mode="after")
    def _relative_and_one_target(self) -> Self:
        _check_units(self.tolerance, self.article, self.literature)
        if not self.tolerance.relative:
            raise ValueError(
                "steps are compared by their ratio; write article, literature and tolerance in per cent"
            )
        if (self.target is None) == (self.target_row is None):
            raise ValueError("takes one of target and target_row")
        return self


class Diverged(Pair):
    """Of `row`'s runs a smaller (or larger) share diverges than of `over`'s."""

    type: Literal["diverged"]
    article: Literal["fewer", "more"] | None = None
    literature: Literal["fewer", "more"] | None = None


class Optimum(Claim):
    """Along the rows the metric is best inside, not at either end; or at the rows that the expectation names."""

    type: Literal["optimum"]
    along: Annotated[list[str], Field(min_length=3)]
    article: Literal["interior"] | list[str] | None = None
    literature: Literal["interior"] | list[str] | None = None

    def rows(self) -> list[str]:
        return self.along

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for expected in (self.article, self.literature):
            for row in expected if isinstance(expected, list) else []:
                if row not in self.along[1:-1]:
                    raise ValueError(f"{row!r} is not inside along; an optimum is expected between its ends")
        return self


class Value(Claim):
    """The row's own number: measured is what the row reports (article) and publishes (literature)."""

    type: Literal["value"]
    row: str
    tolerance: OneAmount

    def rows(self) -> list[str]:
        return [self.row]

    def expectations(self, table: Table) -> dict[str, Any]:
        row = table.rows[self.row]
        reported = [row.reported[self.metric]] if self.metric in row.reported else []
        published = [number.value for number in row.published if number.metric == self.metric]
        return {
            who: (Amount(min(numbers), relative=False), Amount(max(numbers), relative=False))
            for who, numbers in (("article", reported), ("literature", published))
            if numbers
        }

    def only_at_paper_scale(self) -> bool:
        return True


AnyClaim = Annotated[
    Order | Difference | Gain | StepsToTarget | Diverged | Optimum | Value,
    Field(discriminator="type"),
]


class Table(Section):
    """One table of the article."""

    name: str
    title: str
    section: str
    question: str
    task: str
    metrics: Annotated[dict[str, Metric], Field(min_length=1)]  # the main one first
    seeds: Seeds | dict[Scale, Seeds]
    overrides: Overrides = Field(default_factory=list)  # of every arm
    arms: Annotated[dict[str, Overrides], Field(min_length=1)]  # overrides of each trajectory
    rows: Annotated[dict[str, TableRow], Field(min_length=1)]
    claims: list[AnyClaim]
    sources: dict[str, Source] = Field(default_factory=dict)
    context: list[Published] = Field(default_factory=list)  # published numbers that belong to no row
    measured_with: dict[str, str] = Field(
        default_factory=dict
    )  # of the reported and published numbers, by metric
    notes: list[Note] = Field(default_factory=list)

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Self:
        for at, word, known in self._references():
            if word not in known:
                raise ValueError(
                    f"{at}={word}: there is no such {at.rpartition('.')[2]}{nearest(word, known)}"
                )
        for key, row in self.rows.items():
            if isinstance(row.average, dict) and not {"small", "paper"} <= set(row.average):
                raise ValueError(f"rows.{key}.average: name one for small and one for paper")
        for index, claim in enumerate(self.claims):
            if not claim.expectations(self):
                raise ValueError(f"claims.{index}: nobody expects anything; set article or literature")
            if getattr(claim, "literature", None) is not None and not claim.sources:
                raise ValueError(f"claims.{index}: the literature's expectation needs its sources")
        return self

    def _references(self) -> Iterator[tuple[str, str, list[str]]]:
        """Every mention of something that is defined elsewhere in the file: where, the word, what there is."""
        rows, metrics, sources = list(self.rows), list(self.metrics), list(self.sources)
        for key, row in self.rows.items():
            yield f"rows.{key}.arm", row.arm, list(self.arms)
            if row.against:
                yield f"rows.{key}.row", row.against, rows
            for metric in row.reported:
                yield f"rows.{key}.reported.metric", metric, metrics
            for number in row.published:
                yield f"rows.{key}.published.metric", number.metric, metrics
                yield f"rows.{key}.published.source", number.source, sources
        for number in self.context:
            yield "context.metric", number.metric, metrics
            yield "context.source", number.source, sources
        for index, claim in enumerate(self.claims):
            yield f"claims.{index}.metric", claim.metric, metrics
            yield from ((f"claims.{index}.row", key, rows) for key in claim.rows())
            for source in claim.sources:
                yield f"claims.{index}.source", source, sources
        for note in self.notes:
            if note.metric:
                yield "notes.metric", note.metric, metrics
            yield from (("notes.row", key, rows) for key in note.rows)

    def words(self, arm: str, scale: str) -> list[str]:
        """The overrides of one arm's trajectories, without the seed."""
        arm_words = at_scale(self.arms[arm], scale) or []
        return [f"task={self.task}", f"scale={scale}", *(at_scale(self.overrides, scale) or []), *arm_words]

    def seed_count(self, scale: str) -> int:
        """How many seeds each arm is run with where nothing else is asked for."""
        return at_scale(self.seeds, scale) or 1

    def average(self, row: str, scale: str) -> str:
        """Which average of its trajectory a row is at this scale."""
        return at_scale(self.rows[row].average, scale)

    def against(self, row: str) -> str | None:
        """The row that this one is compared with; None for one that is compared with nothing."""
        mine = self.rows[row]
        if mine.against:
            return mine.against
        raw = (key for key, other in self.rows.items() if other.arm == mine.arm and other.average == RAW)
        first = next(raw, None)
        return first if first != row else None

    def says(self, metric: str) -> bool:
        """Is there a reported or published number of this metric?"""
        rows = self.rows.values()
        return any(metric in row.reported or any(n.metric == metric for n in row.published) for row in rows)

    def published_change(self, row: str, metric: str) -> list[float]:
        """The relative changes over the row compared with, from sources that publish both."""
        base = self.against(row)
        if base is None:
            return []
        there = {n.source: n.value for n in self.rows[base].published if n.metric == metric}
        mine = [n for n in self.rows[row].published if n.metric == metric and n.source in there]
        return [n.value / there[n.source] - 1 for n in mine]

    def reported_change(self, row: str, metric: str) -> float | None:
        """The relative change that the article's numbers amount to."""
        base = self.against(row)
        if base is None or metric not in self.rows[row].reported or metric not in self.rows[base].reported:
            return None
        return self.rows[row].reported[metric] / self.rows[base].reported[metric] - 1


def _check_units(tolerance: Amount, *expected: tuple[Amount, Amount] | None) -> None:
    if tolerance.value < 0:
        raise ValueError("tolerance is below zero")
    if any(each and each[0].relative != tolerance.relative for each in expected):
        raise ValueError(
            "write article, literature and tolerance all in per cent, or all in the metric's unit"
        )


def names() -> list[str]:
    """The tables there are."""
    return sorted(path.stem for path in (conf_dir() / "table").glob("*.yaml"))


def load(name: str) -> Table:
    """One table by name. Raises UserError for one that is not there or not right."""
    if name not in names():
        raise UserError(f"table {name!r}: there is no such table{nearest(name, names())}")
    return read(conf_dir() / "table" / f"{name}.yaml")


def read(path: Path) -> Table:
    """One table from its file. Raises UserError that names the file, the key and what would be right."""
    try:
        data = read_yaml(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a table; it begins with title: …")
    try:
        return checked(Table, {"name": path.stem, **data})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def of_task(task: str) -> list[Table]:
    """The tables that a task's runs belong to."""
    return [table for table in map(load, names()) if table.task == task]


def check_scale(scale: str) -> None:
    """Raises UserError where there is no such scale."""
    if scale not in SCALES:
        raise UserError(f"scale={scale}: is none of {', '.join(SCALES)}{nearest(scale, SCALES)}")
