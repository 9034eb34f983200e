"""The configuration of a run: typed, checked as a whole, and hashed into the run's identity.

`conf/` holds the values (composed by Hydra, see `compose.py`); the classes here say what each key means and
which values it may take. Nothing here imports torch, so a mistake is answered at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from emabench import plugins
from emabench.averaging import profiles
from emabench.errors import UserError, nearest
from emabench.masking import looks_like_key

SCALES = ("smoke", "small", "paper")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


def _whole(value: Any) -> Any:
    """1e4 as 10000: a float that is a whole number, in the place of one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Expanded = Annotated[str, AfterValidator(os.path.expanduser)]  # a path: ~ is the user's home directory


class Section(BaseModel):
    """A section of the configuration: unknown keys and wrong types are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


S = TypeVar("S", bound=Section)


class OptimizerConfig(Section):
    """The optimiser of the task's main parameters (torch.optim)."""

    name: Literal["sgd", "adam", "adamw"] = Field(description="sgd, adam, adamw")
    lr: Positive = Field(description="learning rate, before the schedule")
    momentum: Momentum = Field(description="sgd")
    nesterov: bool = Field(description="sgd")
    betas: list[Momentum] = Field(min_length=2, max_length=2, description="adam, adamw")
    eps: Positive = Field(description="adam, adamw")
    weight_decay: NonNegative = Field(description="decoupled in adamw, an L2 penalty in the others")


class ScheduleConfig(Section):
    """The learning rate over the run, as a factor of optimizer.lr."""

    name: Literal["constant", "linear", "cosine", "step"] = Field(
        description="constant, linear, cosine, step"
    )
    warmup: int = Field(ge=0, description="steps of linear warm-up, before the rest")
    final: Fraction = Field(description="linear, cosine: the factor at the last step")
    milestones: list[Fraction] = Field(description="step: shares of the run at which the rate drops")
    factor: Positive = Field(description="step: what each milestone multiplies the rate by")


class ClipConfig(Section):
    """Clipping of the gradient's global norm."""

    max_norm: Positive | None = Field(description="of the gradient's global norm; null: no clipping")


class EmaConfig(Section):
    """The moving averages that a run carries, or the target network of an active task."""

    decay: float | list[float] | None = Field(
        description="a number, or a list: several averages of one training; null: none"
    )
    every: Count = Field(description="update every so many steps, with decay^every")
    start: int = Field(ge=0, description="steps before the first update")
    warmup: Any = Field(
        description="a ramp of the decay, {shape: linear, steps: 500} for example; null: none"
    )
    debias: bool = Field(description="false: start from the initial weights, as eq. (1) of the article")
    buffers: Literal["average", "copy", "recompute"] = Field(
        description="average, copy, recompute: batch-norm statistics of averaged weights"
    )
    active: bool = Field(description="set by tasks whose training depends on the average: one decay a run")
    compensated: bool = Field(
        False, description="true: Kahan summation, for decays above .99999; twice the averages' memory"
    )

    @field_validator("decay", mode="before")
    @classmethod
    def _decays(cls, value: Any) -> Any:
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("is an empty list; give a decay, or several")
        for decay in values:
            if isinstance(decay, bool) or not isinstance(decay, int | float):
                raise ValueError(f"{decay!r} is not a number; a decay lies in [0, 1), 0.999 say")
            if not 0 <= decay < 1:
                raise ValueError(f"{decay} is not in [0, 1); 0.999 averages over about 1000 steps")
        if len(set(values)) < len(values):
            raise ValueError("names a decay twice; give each once")
        decays = sorted(float(decay) for decay in values)
        return decays if len(decays) > 1 else decays[0]

    @model_validator(mode="after")
    def _one_decay_if_active(self) -> Self:
        if self.active and self.decay is None:
            raise ValueError("decay=null: training depends on this average; give a decay, 0 for no averaging")
        if self.active and isinstance(self.decay, list):
            sweep = ",".join(f"{decay:g}" for decay in self.decay)
            raise ValueError(
                f"decay={self.decay}: training depends on this average, so each decay needs a run of its own; "
                f"use -m ema.decay={sweep}"
            )
        return self


class SupportsConfig(Section):
    """What the task supports; set in its YAML, so that a run is refused before anything is imported"""

    precision: list[Literal["fp32", "bf16", "fp16"]] = Field(
        default=["fp32", "bf16", "fp16"], description="values of precision"
    )
    parallel: list[Literal["ddp", "fsdp"]] = Field(
        default=[], description="values of parallel with devices above 1; []: one process only"
    )


class EvaluateConfig(Section):
    """When the weights are evaluated; they always are at the end."""

    every: Count | None = Field(description="steps between evaluations; null: at the end only")


class SnapshotsConfig(Section):
    """Two power-function averages, from which emabench posthoc rebuilds any average afterwards."""

    every: Count | None = Field(description="steps between snapshots; null: none are kept")
    sigma_rel: list[Positive] = Field(
        min_length=1, description="widths of the averages, as shares of the run"
    )


class CheckpointConfig(Section):
    """What an interrupted run resumes from."""

    every: Count | None = Field(description="steps between checkpoints; null: by time only")
    minutes: Positive = Field(description="at least one checkpoint in so many minutes")
    keep: Count = Field(description="how many of the latest to keep")


class Config(Section):
    """All of a run. What decides its result makes up its identity; the rest (see `PRIVATE`) does not.

    A key with a default came later than some runs: without it, or at its default, a run is the one it was before.
    """

    task: dict[str, Any]
    scale: Literal["smoke", "small", "paper"] = Field(
        description="smoke (seconds), small (minutes on two cores, real data), paper (the published setting)"
    )
    seed: int = Field(ge=0, lt=2**63, description="of every random draw of the run")
    steps: Count = Field(description="length of the training, in optimiser steps")
    batch_size: Count = Field(description="samples a step, of all processes together")
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    clip: ClipConfig
    ema: EmaConfig
    averages: dict[str, dict[str, Any]] = Field(
        description="further averages by name: {swa: {kind: mean, start: 3000, every: 20}}"
    )
    metrics: list[str] = Field(
        [], description="further metrics by name, each a metrics/NAME.py in a folder of --path"
    )
    snapshots: SnapshotsConfig
    evaluate: EvaluateConfig
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="fp32, bf16, fp16: autocast of the forward passes; weights stay fp32"
    )
    task_version: Count = Field(
        1, description="set by the task's YAML, raised whenever its numbers change; part of run_id"
    )
    compile: bool = Field(description="true: torch.compile for forward and backward passes")
    channels_last: bool = Field(
        False, description="memory format of image networks; faster on most GPUs with bf16 or fp16"
    )

    supports: SupportsConfig = SupportsConfig()
    results_dir: Expanded = Field(min_length=1, description="runs lie in <results_dir>/<task>/<run_id>/")
    data_dir: Expanded = Field(min_length=1, description="where data sets are looked for and downloaded to")
    device: str = Field(description="auto, cpu, cuda, cuda:1")
    devices: Count = Field(
        1, description="processes that share each batch, one GPU each where there are GPUs"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp; fsdp: each process holds a shard of weights, optimiser and averages"
    )
    workers: int = Field(ge=0, description="data-loading processes")
    checkpoint: CheckpointConfig
    log: Literal["none", "offline", "wandb"] = Field(
        description="none, offline, wandb (WANDB_PROJECT and WANDB_ENTITY say where)"
    )
    log_every: Count = Field(description="steps between logged losses")
    log_weights: bool = Field(
        False, description="true: raw and averaged weights too, as a W&B artifact at the end"
    )
    group: str | None = Field(description="W&B group; null: the table or sweep that asked for the run")
    rerun: bool = Field(description="true: train again although a finished run exists")

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not index.isdecimal()):
            raise ValueError(f"{value!r} is not a device; auto, cpu, cuda or cuda:0")
        return value

    @model_validator(mode="after")
    def _averages_are_sound(self) -> Self:
        self.profiles()
        return self

    @property
    def task_name(self) -> str:
        return str(self.task["name"])

    def decays(self) -> list[float]:
        """The decays asked for, as a list in every case; empty for ema.decay=null."""
        if self.ema.decay is None:
            return []
        return self.ema.decay if isinstance(self.ema.decay, list) else [self.ema.decay]

    def check_supported(self, world_size: int | None = None) -> None:
        """Refuse a precision or a number of processes that the task does not support. Raises UserError.

        Args:
            world_size: Processes that train the run, where they were not started by `devices`.
        """
        world_size, task = world_size or self.devices, self.task_name
        if self.precision not in self.supports.precision:
            raise UserError(
                f"precision={self.precision}: task {task} supports only {', '.join(self.supports.precision)}"
            )
        if world_size == 1:
            return
        if not self.supports.parallel:
            raise UserError(f"devices={world_size}: task {task} trains in one process; use devices=1")
        if self.parallel not in self.supports.parallel:
            raise UserError(
                f"parallel={self.parallel}: task {task} supports only {', '.join(self.supports.parallel)}"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise UserError(
                "precision=fp16: its loss scale does not support shards; use bf16 with parallel=fsdp"
            )
        if self.batch_size % world_size:
            near = max(1, round(self.batch_size / world_size)) * world_size
            raise UserError(
                f"batch_size={self.batch_size}: cannot be divided among devices={world_size}; "
                f"use batch_size={near}, or other devices"
            )

    def profiles(self) -> dict[str, profiles.Profile]:
        """The passive averages of this run by name. An active task's decay belongs to its target network."""
        named_profiles: dict[str, profiles.Profile] = {}
        if not self.ema.active:
            for decay in self.decays():
                try:
                    named_profiles[f"ema_{decay:.12g}"] = profiles.EMA(
                        decay=decay,
                        every=self.ema.every,
                        start=self.ema.start,
                        warmup=self.ema.warmup,
                        debias=self.ema.debias,
                    )
                except ValueError as error:
                    raise ValueError(f"ema: {error}") from error
        if self.snapshots.every:
            for width in self.snapshots.sigma_rel:
                name = f"power_{width:g}"
                if name in named_profiles:
                    raise ValueError(
                        f"snapshots.sigma_rel={self.snapshots.sigma_rel}: names {width:g} twice; give each once"
                    )
                named_profiles[name] = profiles.from_dict({"kind": "power_ema", "sigma_rel": width})
        for name, spec in self.averages.items():
            if (
                name == "raw"
                or name in named_profiles
                or not name.replace("_", "").replace(".", "").isalnum()
            ):
                raise ValueError(
                    f"averages.{name}: the name is taken or not made of letters, digits, _ and ."
                )
            try:
                named_profiles |= profiles.expand(name, spec)
            except UserError:
                raise
            except Exception as error:  # a kind from outside the package may raise anything
                text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"averages.{name}: {text}") from error
        for name, profile in named_profiles.items():
            start = profile.start if profile.start >= 1 else round(profile.start * self.steps)
            if start + profile.every > self.steps:
                named = name in self.averages
                raise ValueError(
                    f"{f'averages.{name}' if named else 'ema'}: start={start}, every={profile.every} leave nothing to "
                    f"average of steps={self.steps}; lower them" + (f", or ~averages.{name}" if named else "")
                )
        return named_profiles

    def run_id(self) -> str:
        """Names the run: the same for every configuration that gives the same result."""
        text = json.dumps(identity(self), sort_keys=True)
        return f"{self.scale}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def directory(self) -> Path:
        """Where the run's files lie: `<results_dir>/<task>/<run_id>/`."""
        return Path(self.results_dir) / self.task_name / self.run_id()

    def origins(self) -> dict[str, str]:
        """Which parts of this run are not the package's own, and the files that they are from."""
        kinds = [("averages", kind) for kind in _kinds_in(self.averages)]
        metrics = [("metrics", name) for name in self.metrics]
        return plugins.origins([("tasks", self.task_name), *kinds, *metrics])


def _kinds_in(spec: Any) -> Iterator[str]:
    """The kinds of average that plain data mentions, those inside others included."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get("kind"), str):
            yield spec["kind"]
        for value in spec.values():
            yield from _kinds_in(value)


def _search_average(kind: str) -> None:
    """Import the file that defines a kind of average which is not the package's own."""
    item = plugins.find("averages").get(kind) if isinstance(kind, str) else None
    if item is None:
        return
    module = plugins.load("averages", kind)
    known = profiles.KINDS.get(kind)
    if known is None or not f"{known.__module__}.".startswith(f"{module.__name__}."):
        raise UserError(f"{item.path}: defines no average of kind {kind!r}, the file's name")


profiles.SEARCH.append(_search_average)

PRIVATE = {"supports", "results_dir", "data_dir", "device", "devices", "parallel", "workers"}
PRIVATE |= {"checkpoint", "log", "log_every", "log_weights", "group", "rerun"}


def identity(config: Config) -> dict[str, Any]:
    """Everything that determines the run's result, as plain data."""
    return without_defaults(Config, config.model_dump(exclude=PRIVATE))


def without_defaults(kind: type[Section], data: Mapping[str, Any]) -> dict[str, Any]:
    """A section's plain data without the keys that are at a default of the type, here and in its sections."""
    kept = {}
    for key, value in data.items():
        field = kind.model_fields.get(key)
        if field is not None and value == field.default:
            continue
        inner = field.annotation if field is not None else None
        if isinstance(inner, type) and issubclass(inner, Section) and isinstance(value, Mapping):
            value = without_defaults(inner, value)
        kept[key] = value
    return kept


def bind(composed: DictConfig) -> Config:
    """Check a composed configuration as a whole. Raises UserError for the first few mistakes."""
    scale = OmegaConf.to_container(composed, resolve=False).get("scale")  # type: ignore[union-attr]
    if scale not in SCALES:
        raise UserError(f"scale={scale}: is none of {', '.join(SCALES)}{nearest(str(scale), SCALES)}")
    try:
        data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    for key, value in _texts(data):
        if looks_like_key(value):
            raise UserError(
                f"{key}: its value has the form of a service's key, and would be written to config.yaml, pages and "
                "W&B; give keys in the environment variables of the programs that need them"
            )
    config = checked(Config, data)
    config.check_supported()
    return config


def _texts(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested mappings and lists, with its key."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value, key)


def checked(kind: type[S], data: Any, at: str = "") -> S:
    """`data` as a section, or UserError in one line a mistake; `at` is the key that the section stands under."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = list(dict.fromkeys(_say(kind, detail, at) for detail in error.errors(include_url=False)))
        raise UserError("\n".join(lines[:2])) from error


def _say(kind: type[Section], detail: Any, at: str) -> str:
    """One pydantic error in the user's terms: key=value: what is right."""
    path = [str(part) for part in detail["loc"] if not _is_union_branch(str(part))]
    key = ".".join([at, *path] if at else path)
    value, message = detail["input"], detail["msg"]
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key{nearest(path[-1], _siblings(kind, path))}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    if detail["type"] == "value_error" and (not path or isinstance(value, dict)):
        prefix = f"{key}." if key else ""
        return f"{prefix}{message}"
    if isinstance(value, list) and detail["type"] in ("int_type", "float_type", "string_type", "bool_type"):
        several = ",".join(map(str, value))
        return (
            f"{key}={value}: is a list and {key} takes one value; several runs are written -m {key}={several}"
        )
    return f"{key}={value}: {message}" if not isinstance(value, dict) else f"{key}: {message}"


def _is_union_branch(part: str) -> bool:
    return part in ("float", "int", "str", "bool", "none") or part.startswith(
        ("list[", "constrained-", "function-")
    )


def _siblings(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path[:-1]:
        annotation = kind.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)
