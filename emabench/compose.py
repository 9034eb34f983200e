"""From the words on the command line to checked configurations, through Hydra's composition."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emabench import plugins
from emabench.data import catalog
from emabench.errors import UserError
from emabench.paths import conf_dir
from emabench.words import NAMES_OR_PATHS, NOT_ONE, check, check_key, known, not_an_override, path_of

if TYPE_CHECKING:  # imported where they are used: a mistyped word is answered without them
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from emabench.config import Config


_NONE = object()


def configuration(overrides: Sequence[str]) -> Config:
    """Compose `conf/config.yaml` with the overrides, check it and bind it. Raises UserError."""
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            listed = "; a list of decays on one trajectory is written ema.decay=[0.9,0.99]"
            raise UserError(
                f"{override.input_line}: several values are a sweep: add -m (emabench -m …)"
                f"{listed if override.key_or_group == 'ema.decay' else ''}; one value with a comma in it "
                f"is written '{override.key_or_group}=\"…,…\"'"
            )

    from emabench.config import bind

    return bind(composed(parsed))


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, in Hydra's order, before anything is composed. Raises UserError."""
    return [list(job) for job in itertools.product(*map(choices, parse(overrides)))]


def choices(override: Override) -> list[str]:
    """One word for every value that an override gives its key."""
    key, line, value = override.get_key_element(), override.input_line or "", override.value()
    if not override.is_sweep_override():
        return [line]

    from hydra.core.override_parser.types import Glob

    if isinstance(value, Glob):
        values: Iterable[object] = value.filter(groups().get(override.key_or_group, []))
    elif override.is_discrete_sweep():
        values = override.sweep_string_iterator()
    else:
        raise UserError(f"{line}: is not a list of values; write {key}=v1,v2 or {key}=range(0,5)")
    listed = [f"{key}={value}" for value in values]
    if not listed:
        raise UserError(f"{line}: gives {key} no value")
    return listed


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words as Hydra reads them, paths as they are. Raises UserError for one that is no override."""
    check(overrides)
    parser = _parser()

    from hydra.errors import HydraException

    parsed = []
    for word in overrides:
        path, (key, _, value) = path_of(word), word.partition("=")
        try:
            override = parser.parse_override(_quoted(*path) if path else word)
        except HydraException as error:
            if key.lstrip("+") not in NAMES_OR_PATHS:
                raise UserError(not_an_override(word)) from error
            override = parser.parse_override(_quoted(key, value))
        if not override.key_or_group:
            raise UserError(f"{word!r} {NOT_ONE}")
        if override.is_hydra_override():
            raise UserError(
                f"{word}: Hydra's own settings have no effect here; results_dir=… sets where files go, "
                "and with -m launcher=slurm (or hydra/launcher=slurm) where runs are executed"
            )
        parsed.append(override)
    return parsed


def _parser() -> Any:
    """Hydra's parser of overrides, whose visitor works by assertions with effects: they stay on under `python -O`."""
    from hydra.core.override_parser import overrides_parser

    visitor = overrides_parser.HydraOverrideVisitor
    if sys.flags.optimize and sys.modules[visitor.__module__].__dict__.get("HydraOverrideVisitor") is visitor:
        spec = importlib.util.find_spec(visitor.__module__)
        assert spec and spec.origin
        module = importlib.util.module_from_spec(spec)
        exec(compile(Path(spec.origin).read_bytes(), spec.origin, "exec", optimize=0), module.__dict__)
        overrides_parser.HydraOverrideVisitor = module.HydraOverrideVisitor  # type: ignore[misc]
    return overrides_parser.OverridesParser.create()


def _quoted(key: str, text: str) -> str:
    """An override that gives a key this text, whatever is in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return f"{key}={QuotedString(text.replace('${', chr(92) + '${'), Quote.single).with_quotes()}"


def composed(overrides: Sequence[Override]) -> DictConfig:
    """The composed configuration, unresolved. Every key is checked against those that exist."""
    groups = [o for o in overrides if _is_group(o)]
    for override in groups:
        _check_choice(override)
    task = next((str(o.value()) for o in reversed(groups) if o.key_or_group == "task"), None)
    keys = known(task, tuple(plugins.folders()))
    for override in overrides:
        if override not in groups:
            section = isinstance(override.value(), dict)
            add, delete = override.is_add(), override.is_delete()
            line = override.input_line or ""
            check_key(line, override.key_or_group, keys, add=add, delete=delete, section=section)
    composed = _compose([o.input_line or "" for o in overrides])
    if any(o.key_or_group.startswith("task.") for o in overrides):
        defaults = _defaults(tuple(o.input_line or "" for o in groups), tuple(plugins.folders()))
        for override in overrides:
            _check_task_option(override, defaults)
    return composed


@functools.lru_cache(maxsize=64)
def _defaults(groups: tuple[str, ...], folders: tuple[Path, ...]) -> DictConfig:
    """What holds once these groups are chosen. Composed once for all runs of a table."""
    return _compose(list(groups))


def _compose(overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    logging.getLogger("hydra").setLevel(logging.ERROR)
    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        _register_outside_tasks(overrides)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", overrides)
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
        TypeError,
    ) as error:  # Hydra's own checks raise any
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise UserError(f"configuration: {str(cause).strip().splitlines()[0]}") from error


def _register_outside_tasks(overrides: Sequence[str]) -> None:
    """Tell Hydra the YAML of tasks that are not in `conf/`. UserError for a broken one that is asked for."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig, OmegaConf

    for item in plugins.find("conf/task").values():
        if item.source.built_in:
            continue
        try:
            node = OmegaConf.load(item.path)
            if not isinstance(node, DictConfig):
                raise ValueError("holds no keys and values")
            ConfigStore.instance().store(item.name, node, group="task", package="_global_")
        except Exception as error:  # besides YAMLError, tags with wrong values raise anything
            if f"task={item.name}" in overrides:
                raise UserError(plugins.why(item.path, error)) from error
            plugins.left_out(plugins.why(item.path, error))


def register_resolvers() -> None:
    """`${by_scale:smoke,small,paper}`, `${share_of_steps:0.75}` and `${first_found:fashion_mnist,digits}`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
    OmegaConf.register_new_resolver("share_of_steps", _share_of_steps, replace=True)
    OmegaConf.register_new_resolver("first_found", _first_found, replace=True)


def _environment(name: str, default: Any = _NONE) -> Any:
    """`${oc.env:NAME,default}` for emabench's own variables alone: what it gives is recorded with the run."""
    if not name.startswith("EMABENCH_"):
        raise ValueError(
            f"${{oc.env:{name}}}: only variables that begin with EMABENCH_ are read here, for the value is written to "
            "files and pages; let the shell insert others"
        )
    if name not in os.environ and default is _NONE:
        raise ValueError(f"${{oc.env:{name}}}: is not set")
    return os.environ.get(name, default)


def _by_scale(*values: Any, _root_: DictConfig) -> Any:
    from emabench.config import SCALES

    if len(values) != len(SCALES):
        raise ValueError(f"by_scale takes one value each for {', '.join(SCALES)}, not {len(values)}")
    return values[SCALES.index(_root_.scale)]


def _share_of_steps(share: float, *, _root_: DictConfig) -> int:
    """A step by its place in the run, whatever length the user gives the run."""
    steps = _root_.steps
    return (
        round(share * steps) if isinstance(steps, int | float) else 0
    )  # any other type is reported for `steps` itself


def _first_found(*names: str, _root_: DictConfig) -> str:
    """The first of these data sets that is on this machine, else the last one."""
    return next((name for name in names if catalog.found(name, Path(_root_.data_dir))), names[-1])


def groups() -> dict[str, list[str]]:
    """The config groups with their choices: {"task": ["classification", "ddpm"]}."""
    return {"task": sorted(plugins.find("conf/task"))}


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups() or "/" in override.key_or_group


def _check_choice(override: Override) -> None:
    if override.key_or_group in groups():
        plugins.get(f"conf/{override.key_or_group}", str(override.value()), override.input_line or "")


KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def _check_task_option(override: Override, known: DictConfig) -> None:
    """A task's own options are typed in its file, which imports torch: catch a wrong kind of value before that."""
    if not override.key_or_group.startswith("task.") or override.is_delete() or override.is_sweep_override():
        return

    from omegaconf import OmegaConf

    value, default = override.value(), OmegaConf.select(known, override.key_or_group)
    expected = type(default)
    if expected is int and isinstance(value, float) and value.is_integer():
        return  # 1e4
    fits = isinstance(value, expected | (int if expected is float else expected)) and (
        expected is bool or not isinstance(value, bool)
    )
    if value is not None and expected in KINDS and not fits:
        raise UserError(f"{override.input_line}: should be {KINDS[expected]}, {default!r} for example")
