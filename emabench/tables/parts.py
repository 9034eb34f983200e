"""The parts of a table's YAML that claims refer to: amounts, metrics, sources, published numbers, rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from emabench.config import Section

Scale = Literal["smoke", "small", "paper"]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Amount:
    """A difference: in the metric's own unit (`0.15`), or relative to the row compared with (`-38%`)."""

    value: float
    relative: bool

    def __str__(self) -> str:
        if not self.value:
            return "0%" if self.relative else "0"
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
    speak of its direction or its size, but no row is called the best.
    `unit`: of what one value is ("per character"). Sizes of changes are compared in like units alone.
    """

    label: str
    better: Direction
    ranked: bool = True
    unit: str | dict[Scale, str] = ""

    def unit_at(self, scale: str) -> str:
        """The unit that runs of this scale measure in; published values are in that of scale paper."""
        return at_scale(self.unit, scale) or ""


class SeedPlan(Section):
    """Which seeds a table is measured with, fixed beforehand: from `first` on, judged at these numbers of seeds.

    Seeds 0 to 99 are for trying things out. Written as one number n, it is a single look at seeds 100 to 99 + n.
    """

    first: Annotated[int, Field(ge=0)] = 100
    looks: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(min_length=1, strict=False)]

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return {"looks": [value]} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks={list(self.looks)}: write each number of seeds once, rising")
        return self


class Source(Section):
    """Where published numbers stand.

    `mark`: V opened in the primary source, V2 seen in a copy that quotes it, D derived, with the formula in `text`.
    """

    text: str
    mark: Literal["V", "V2", "D"]


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


def check_units(tolerance: Amount, *expected: tuple[Amount, Amount] | None) -> None:
    """Raises ValueError unless tolerance and expectations are all relative, or all in the metric's unit."""
    if tolerance.value < 0:
        raise ValueError("tolerance is below zero")
    if any(each and each[0].relative != tolerance.relative for each in expected):
        raise ValueError(
            "write article, literature and tolerance all in per cent, or all in the metric's unit"
        )
