"""What a table of the article says, and what is needed to test it: one YAML in `conf/table/`.

A table is written before its planned seeds are measured: its rows with the numbers that the article reports and that the
literature publishes, the claims that these rows make, and the tolerances that decide about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, create_model, model_validator

from emabench import plugins
from emabench.config import SCALES, Section, checked
from emabench.errors import UserError, nearest
from emabench.runs.files import read_yaml
from emabench.runs.result import RAW
from emabench.tables import claims
from emabench.tables.claims import AnyClaim
from emabench.tables.parts import (
    Metric,
    Note,
    Overrides,
    Published,
    Scale,
    SeedPlan,
    Source,
    TableRow,
    at_scale,
)


class Table(Section):
    """One table of the article."""

    name: str
    title: str | dict[Scale, str]  # what was run at a scale; of `paper`, what the article is about
    trained: dict[Scale, str] = Field(default_factory=dict)  # model, data, schedule, in a line
    exact: bool = False  # the small scale is what the claims are about, no stand-in for it
    control: str = ""  # of the stand-in: the text of a claim whose effect is published and should be seen
    answers: list[str] = Field(default_factory=list)  # texts of the claims whose verdicts answer the question
    baselines: list[str] = Field(default_factory=list)  # rows of weights that were not trained, or kept fixed
    section: str = ""  # of the article; empty for a table of the user's own
    question: str
    task: str
    metrics: Annotated[dict[str, Metric], Field(min_length=1)]  # the main one first
    seeds: SeedPlan | dict[Scale, SeedPlan]
    seen: str = ""  # what had been measured before the claims were written, where anything had
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
    _file: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        for at, word, known in self._references():
            if word not in known:
                raise ValueError(
                    f"{at}={word}: there is no such {at.rpartition('.')[2]}{nearest(word, known)}"
                )
        for key, row in self.rows.items():
            if isinstance(row.average, dict) and not {"small", "paper"} <= set(row.average):
                raise ValueError(f"rows.{key}.average: name one for small and one for paper")
        for index, claim in enumerate(self.claims):
            if not claim.expectations(self.rows):
                raise ValueError(f"claims.{index}: nobody expects anything; set article or literature")
            if getattr(claim, "literature", None) is not None and not claim.sources:
                raise ValueError(f"claims.{index}: the literature's expectation needs its sources")
        return self

    @property
    def file(self) -> Path | None:
        """Where it was read from."""
        return self._file

    def titled(self, scale: str) -> str:
        """What was run at this scale."""
        return at_scale(self.title, scale) or at_scale(self.title, "paper") or self.name

    def plan(self, scale: str) -> SeedPlan:
        """The seeds it is measured with, and the numbers of them at which it is judged."""
        return at_scale(self.seeds, scale) or SeedPlan(looks=(1,))

    def stand_in(self, scale: str) -> bool:
        """Does this scale stand in for the setting that the article and the literature speak of?"""
        return scale != "paper" and not self.exact

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
        if self.control:
            yield "control.claim", self.control, [claim.text for claim in self.claims]
        yield from (("answers.claim", text, [claim.text for claim in self.claims]) for text in self.answers)
        yield from (("baselines.row", key, rows) for key in self.baselines)
        for note in self.notes:
            if note.metric:
                yield "notes.metric", note.metric, metrics
            yield from (("notes.row", key, rows) for key in note.rows)

    @property
    def where(self) -> str:
        """Where the claims are made, for a reader."""
        return f"§{self.section} of the article" if self.section else "own table"

    def heading(self, scale: str) -> str:
        """The title with the section, where there is one."""
        title = self.titled(scale)
        return f"{title}, §{self.section}" if self.section else title

    def words(self, arm: str, scale: str) -> list[str]:
        """The overrides of one arm's trajectories, without the seed."""
        arm_words = at_scale(self.arms[arm], scale) or []
        return [f"task={self.task}", f"scale={scale}", *(at_scale(self.overrides, scale) or []), *arm_words]

    def average(self, row: str, scale: str) -> str:
        """Which average of its trajectory a row is at this scale."""
        return at_scale(self.rows[row].average, scale)

    def against(self, row: str) -> str | None:
        """The row that this one is compared with; None for one that is compared with nothing."""
        own = self.rows[row]
        if own.against:
            return own.against
        raw = (key for key, other in self.rows.items() if other.arm == own.arm and other.average == RAW)
        first = next(raw, None)
        return first if first != row else None

    def has_reported(self, metric: str) -> bool:
        """Whether the article or a publication gives a number of this metric."""
        rows = self.rows.values()
        return any(metric in row.reported or any(n.metric == metric for n in row.published) for row in rows)

    def published_change(self, row: str, metric: str) -> list[float]:
        """The relative changes over the row compared with, from sources that publish both."""
        base = self.against(row)
        if base is None:
            return []
        base_values = {n.source: n.value for n in self.rows[base].published if n.metric == metric}
        numbers = [n for n in self.rows[row].published if n.metric == metric and n.source in base_values]
        return [n.value / base_values[n.source] - 1 for n in numbers]

    def reported_change(self, row: str, metric: str) -> float | None:
        """The relative change that the article's numbers amount to."""
        base = self.against(row)
        if base is None or metric not in self.rows[row].reported or metric not in self.rows[base].reported:
            return None
        return self.rows[row].reported[metric] / self.rows[base].reported[metric] - 1


def names() -> list[str]:
    """The tables there are."""
    return sorted(plugins.find("conf/table"))


def all_tables() -> list[Table]:
    """All tables by name. One from outside the package that cannot be read is named to the user and left out."""
    tables = []
    for item in sorted(plugins.find("conf/table").values(), key=lambda item: item.name):
        try:
            tables.append(read(item.path))
        except UserError as error:
            if item.source.built_in:
                raise
            plugins.left_out(str(error))
    return tables


def load(name: str) -> Table:
    """One table by name. Raises UserError for one that does not exist or is wrong."""
    return read(plugins.get("conf/table", name, f"table {name}").path)


def read(path: Path) -> Table:
    """One table from its file. Raises UserError that names the file, the key and what would be right."""
    try:
        data = read_yaml(path, aliases=True)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a table; it begins with title: …")
    try:
        table = checked(_table_type(), {"name": path.stem, **data})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    table._file = path
    return table


def _table_type() -> type[Table]:
    """`Table`, with the types of claims that are not the package's own, where there are any."""
    outside = claims.outside_types()
    if not outside:
        return Table
    any_claim = claims.any_of([*claims.types(), *outside])
    return create_model("Table", __base__=Table, claims=(list[any_claim], ...))  # type: ignore[valid-type]


def of_task(task: str) -> list[Table]:
    """The tables that a task's runs belong to."""
    return [table for table in all_tables() if table.task == task]


def check_scale(scale: str) -> None:
    """Raises UserError where there is no such scale."""
    if scale not in SCALES:
        raise UserError(f"scale={scale}: is none of {', '.join(SCALES)}{nearest(scale, SCALES)}")
