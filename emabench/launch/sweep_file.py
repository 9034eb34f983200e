"""Named sweeps, one YAML in `conf/sweep/` (or in a folder of the user's) each: `emabench -m sweep=clipping task=lstm`.

A file says which `key` it is about, and either the `values` of that key or named `points` that set several keys; both
may be given by scale, and what is left out for `smoke` is as for `small`. In either,

    x2               is twice the task's own value
    x2 by optimizer  the same for SGD, √2 times for Adam and AdamW
    ^2               is the task's own decay (each of them) to the power 2

`one_run: true` says that the points are averages of one run. An active task's average is part of its training: a run
for each decay then, and other sweeps of the average are refused.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from emabench import compose, plugins
from emabench.config import SCALES, Config, Section, checked
from emabench.errors import UserError, nearest
from emabench.runs.files import read_yaml

RELATIVE = re.compile(r"(?P<how>[x^])(?P<number>\d+(\.\d+)?)(?P<by> by optimizer)?")


class NamedSweep(Section):
    """One file of `conf/sweep/`."""

    name: str
    path: Path
    key: str
    one_run: bool = False
    values: Any = None
    points: Any = None

    @model_validator(mode="after")
    def _one_of_values_and_points(self) -> Self:
        if (self.values is None) == (self.points is None):
            raise ValueError("takes one of values and points")
        given = self.values if self.points is None else self.points
        by_scale = isinstance(given, dict) and given and set(given) <= set(SCALES)
        for scale in given if by_scale else SCALES:
            self.at(scale)
        return self

    def at(self, scale: str) -> dict[str, dict[str, Any]]:
        """The points at a scale by name: for each the value of every key that it sets."""
        given = self.values if self.points is None else self.points
        if isinstance(given, dict) and given and set(given) <= set(SCALES):
            given = given.get(scale, given.get("small") if scale == "smoke" else None)
            if given is None:
                raise ValueError(f"says nothing for scale={scale}")
        if self.points is None:
            if not isinstance(given, list) or not given:
                raise ValueError("values: is not a list, nor a list for each scale")
            return {f"{self.key.rpartition('.')[2]}_{value}": {self.key: value} for value in given}
        if not isinstance(given, dict) or not all(
            isinstance(p, dict) and self.key in p for p in given.values()
        ):
            raise ValueError(f"points: each has a name and sets {self.key}: {{NAME: {{{self.key}: VALUE}}}}")
        return given


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the overrides it is composed from, and those that may tell it from the others."""

    words: tuple[str, ...]
    title: tuple[str, ...]


def split(words: Sequence[str]) -> tuple[list[NamedSweep], list[str]]:
    """The sweeps that `sweep=…` names, and the other words. Raises UserError."""
    rest, named = [], []
    for word in words:
        key, _, value = word.partition("=")
        if key != "sweep":
            rest.append(word)
            continue
        inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        names = [name.strip() for name in inside.split(",")]
        if inside == value and len(names) > 1:
            raise UserError(f"{word}: every combination of several sweeps is written sweep=[{value}]")
        named += [load(name) for name in names]
    if len({sweep.key for sweep in named}) < len(named):
        raise UserError(
            f"{' '.join(w for w in words if w not in rest)}: two of these sweeps set the same key"
        )
    return named, rest


def load(name: str) -> NamedSweep:
    """One sweep by its name. Raises UserError."""
    path = plugins.get("conf/sweep", name, f"sweep={name}").path
    try:
        data = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a sweep; it begins with key: …")
    try:
        return checked(NamedSweep, {"name": name, "path": path, **data})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def jobs(
    sweeps: Sequence[NamedSweep], words: Sequence[str], configuration: Callable[..., Config]
) -> list[Job]:
    """Every combination of the points of the sweeps and of the values in the user's words. Raises UserError.

    configuration: of a tuple of words, `compose.configuration` or a cache of it.
    """
    own = {sweep.key: sweep for sweep in sweeps}
    given = {o.key_or_group: o for o in compose.parse(words) if o.key_or_group in own}
    replaced = {key: o for key, o in given.items() if o.is_sweep_override() or isinstance(o.value(), list)}
    kept = [word for word in words if _key(word) not in replaced]
    jobs = []
    for job in compose.sweep(kept):
        unseeded = tuple(word for word in job if not word.startswith("seed="))
        base = configuration(unseeded)
        choices = []
        for sweep in sweeps:
            try:
                choices.append(list(_choices(sweep, base, replaced.get(sweep.key), sweep.key in given)))
            except ValueError as error:
                raise UserError(f"sweep={sweep.name}: {error}") from error
        group = () if any(word.startswith("group=") for word in job) else (f"group={group_of(sweeps)}",)
        user = tuple(word for word in job if _key(word) not in own)
        for combination in itertools.product(*choices):
            title = tuple(part for part, _ in combination)
            added = tuple(word for _, own_words in combination for word in own_words)
            jobs.append(Job((*user, *group, *added), (*title, *user)))
    return jobs


def group_of(sweeps: Sequence[NamedSweep]) -> str:
    """What W&B groups the runs under, and jobs are named after: sweep-decay-clipping."""
    return "-".join(["sweep", *(sweep.name for sweep in sweeps)])


def _choices(
    sweep: NamedSweep, base: Config, replaced: Any, moved: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each run that a sweep needs at this configuration: what to call it, and the words that make it."""
    points = {
        name: {key: _resolved(key, value, base) for key, value in point.items()}
        for name, point in sweep.at(base.scale).items()
    }
    if replaced is not None:
        points = _selected(sweep, points, replaced)
    elif moved and not any(
        isinstance(p[sweep.key], str) and RELATIVE.fullmatch(p[sweep.key])
        for p in sweep.at(base.scale).values()
    ):
        raise ValueError(
            f"it sets {sweep.key} itself; give it several values ({sweep.key}=v1,v2), or leave it out"
        )
    if not sweep.one_run:
        titles = [_word(sweep.key, point[sweep.key]) for point in points.values()]
        unique = len(set(titles)) == len(titles)
        for (name, point), title in zip(points.items(), titles, strict=True):
            yield (
                title if unique else f"{sweep.name}={name}",
                tuple(_word(key, value) for key, value in point.items()),
            )
        return
    values = [point[sweep.key] for point in points.values()]
    if base.ema.active:
        if sweep.key != "ema.decay":
            raise ValueError(
                f"task={base.task_name} trains with its average (ema.active), of which ema.decay alone can be swept"
            )
        for value in values:
            yield _word(sweep.key, value), (_word(sweep.key, value),)
    elif sweep.key == "ema.decay":
        yield sweep.name, (_word(sweep.key, values),)
    else:
        yield sweep.name, tuple(_average(name, point, base) for name, point in points.items())


def _selected(
    sweep: NamedSweep, points: dict[str, dict[str, Any]], override: Any
) -> dict[str, dict[str, Any]]:
    """The points for the values that the user gives the key; where points set several keys, those among them."""
    key = sweep.key
    if override.is_sweep_override():
        values = [compose.parse([word])[0].value() for word in compose.choices(override)]
    else:
        values = override.value()
    if sweep.points is None:
        return {f"{key.rpartition('.')[2]}_{value}": {key: value} for value in values}
    by_value = {_word(key, point[key]): name for name, point in points.items()}
    chosen = {}
    for value in values:
        name = by_value.get(_word(key, value))
        if name is None:
            known = ", ".join(word.partition("=")[2] for word in by_value)
            raise ValueError(f"has no point {_word(key, value)}, only {known} (of {sweep.path})")
        chosen[name] = points[name]
    return chosen


def _average(name: str, point: Mapping[str, Any], base: Config) -> str:
    """A point of the EMA's settings as an average of its own."""
    ema = base.ema.model_dump()
    if not base.decays():
        raise ValueError("ema.decay=null carries no average; give it a decay")
    spec: dict[str, Any] = {"kind": "ema", "decay": max(base.decays())}
    spec |= {key: ema[key] for key in ("every", "start", "warmup", "debias")}
    for key, value in point.items():
        section, _, option = key.partition(".")
        if section != "ema" or option not in spec:
            raise ValueError(f"{key}: is nothing that averages of one run can differ in")
        spec[option] = value
    return _word(f"+averages.{name}", {option: value for option, value in spec.items() if value is not None})


def _resolved(key: str, value: Any, base: Config) -> Any:
    """A value of a file with `x2` and `^2` worked out."""
    own: Any = base.model_dump()
    for part in key.split("."):
        if not isinstance(own, dict) or part not in own:
            raise ValueError(f"there is no key {key}{nearest(part, own) if isinstance(own, dict) else ''}")
        own = own[part]
    match = RELATIVE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number = float(match["number"])
    if match["by"] and base.optimizer.name != "sgd":
        number = math.sqrt(number)
    if match["how"] == "^" and isinstance(own, list):
        return [float(f"{decay**number:.9g}") for decay in own]
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise ValueError(f"{key}: {value} is of a number, and the task's own value is {own}")
    if match["how"] == "^":
        return float(f"{own**number:.9g}")
    if isinstance(own, int):
        if number * own < 1:
            raise ValueError(f"{number:g} times {key}={own} is less than 1; give a larger {key}")
        return round(number * own)
    return float(f"{number * own:.9g}")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _word(key: str, value: Any) -> str:
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    """A value in the grammar of overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.12g}" if isinstance(value, float) else str(value)
