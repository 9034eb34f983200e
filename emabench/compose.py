"""From the words on the command line to checked configurations, through Hydra's composition."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emabench import plugins
from emabench.config import SCALES, Config, bind
from emabench.data import catalog
from emabench.errors import UserError, nearest
from emabench.paths import conf_dir

NOT_ONE = "is not an override; write key=value, for example ema.decay=0.999 or seed=0,1,2"
FREE = ("averages",)  # sections whose keys are the user's own


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
    return bind(composed(parsed))


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, in Hydra's order, before anything is composed. Raises UserError."""
    return [list(job) for job in itertools.product(*map(choices, parse(overrides)))]


def choices(override: Override) -> list[str]:
    """One word for every value that an override gives its key."""
    key, line, value = override.get_key_element(), override.input_line or "", override.value()
    if not override.is_sweep_override():
        return [line]
    if isinstance(value, Glob):
        values: Iterable[object] = value.filter(groups().get(override.key_or_group, []))
    elif override.is_discrete_sweep():
        values = override.sweep_string_iterator()
    else:
        raise UserError(f"{line}: is not a list of values; write {key}=v1,v2 or {key}=range(0,5)")
    found = [f"{key}={value}" for value in values]
    if not found:
        raise UserError(f"{line}: gives {key} no value")
    return found


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words as Hydra reads them; a word that is no override is answered with what one looks like."""
    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            cut = word.endswith(",") or any(word.count(a) != word.count(b) for a, b in ("[]", "{}"))
            spaces = "; there is a space after it: put the whole word in quotes" if cut else ""
            raise UserError(f"{word!r} {NOT_ONE}{spaces}") from error
        if not override.key_or_group:
            raise UserError(f"{word!r} {NOT_ONE}")
        if override.is_hydra_override():
            raise UserError(
                f"{word}: Hydra's own settings say nothing here; results_dir=… says where files go, "
                "and with -m launcher=slurm (or hydra/launcher=slurm) where the runs do"
            )
        parsed.append(override)
    return parsed


def composed(overrides: Sequence[Override]) -> DictConfig:
    """The composed configuration, unresolved. Every key is held against what the configuration knows."""
    groups = [o for o in overrides if _is_group(o)]
    for override in groups:
        _check_choice(override)
    known = _known(tuple(o.input_line or "" for o in groups), tuple(plugins.folders()))
    for override in overrides:
        if override not in groups:
            _check_key(override, known)
            _check_task_option(override, known)
    return _compose([o.input_line or "" for o in overrides])


@functools.lru_cache(maxsize=64)
def _known(groups: tuple[str, ...], folders: tuple[Path, ...]) -> DictConfig:
    """What there is to override once these groups are chosen. Composed once for all runs of a table."""
    return _compose(list(groups))


def _compose(overrides: list[str]) -> DictConfig:
    logging.getLogger("hydra").setLevel(logging.ERROR)
    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"), _tasks_from_outside(overrides):
            return hydra_compose("config", overrides)
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
        TypeError,
    ) as error:  # Hydra's own checks raise any
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise UserError(f"configuration: {str(cause).strip().splitlines()[0]}") from error


@contextmanager
def _tasks_from_outside(overrides: Sequence[str]) -> Iterator[None]:
    """Inside the block Hydra knows the YAML of tasks that are not in `conf/`. UserError for a broken one asked for."""
    store = ConfigStore.instance()
    outside = [item for item in plugins.find("conf/task").values() if not item.source.built_in]
    for item in outside:
        try:
            node = OmegaConf.load(item.path)
            if not isinstance(node, DictConfig):
                raise ValueError("holds no keys and values")
            store.store(item.name, node, group="task", package="_global_")
        except (
            Exception
        ) as error:  # besides YAMLError, tags with wrong values raise whatever comes (PyYAML 6)
            if f"task={item.name}" in overrides:
                raise UserError(plugins.why(item.path, error)) from error
            plugins.left_out(plugins.why(item.path, error))
    try:
        yield
    finally:
        for item in outside:
            store.repo.get("task", {}).pop(f"{item.name}.yaml", None)


def register_resolvers() -> None:
    """`${by_scale:smoke,small,paper}`, `${share_of_steps:0.75}` and `${first_found:fashion_mnist,digits}`."""
    OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
    OmegaConf.register_new_resolver("share_of_steps", _share_of_steps, replace=True)
    OmegaConf.register_new_resolver("first_found", _first_found, replace=True)


def _by_scale(*values: Any, _root_: DictConfig) -> Any:
    if len(values) != len(SCALES):
        raise ValueError(f"by_scale takes one value each for {', '.join(SCALES)}, not {len(values)}")
    return values[SCALES.index(_root_.scale)]


def _share_of_steps(share: float, *, _root_: DictConfig) -> int:
    """A step by its place in the run, whatever length the user gives the run."""
    steps = _root_.steps
    return round(share * steps) if isinstance(steps, int) else 0  # what else it is, is said of `steps` itself


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


def _check_key(override: Override, known: DictConfig) -> None:
    """A key has to be there already, with a `+` before it or without: the configuration is typed as a whole."""
    node: Any = known
    for position, part in enumerate(parts := override.key_or_group.split(".")):
        if position and parts[0] in FREE:
            if part not in node and not override.is_add() and not override.is_delete():
                raise UserError(f"{override.input_line}: is not there yet; write +{override.input_line}")
            return
        if not isinstance(node, DictConfig) or part not in node:
            place = ".".join(parts[:position])
            where = f" in {place}" if place else ""
            keys = [str(key) for key in node] if isinstance(node, DictConfig) else []
            close = nearest(part, keys) if position else _nearest_anywhere(override.key_or_group, known)
            if place == "ema.warmup":  # the one key that takes a mapping of its own
                close = f"; write {place}={{{part}: …}}"
            raise UserError(f"{override.input_line}: there is no key {part!r}{where}{close}")
        node = node._get_node(part)
    if isinstance(node, DictConfig) and not isinstance(override.value(), dict) and not override.is_delete():
        first = str(next(iter(node), "key"))
        raise UserError(
            f"{override.input_line}: {override.key_or_group} is a section; set its keys ({parts[-1]}.{first}=…)"
        )


KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def _check_task_option(override: Override, known: DictConfig) -> None:
    """A task's own options are typed in its file, which imports torch: catch a wrong kind of value before that."""
    if not override.key_or_group.startswith("task.") or override.is_delete() or override.is_sweep_override():
        return
    value, default = override.value(), OmegaConf.select(known, override.key_or_group)
    expected = type(default)
    fits = isinstance(value, expected | (int if expected is float else expected)) and (
        expected is bool or not isinstance(value, bool)
    )
    if value is not None and expected in KINDS and not fits:
        raise UserError(f"{override.input_line}: should be {KINDS[expected]}, {default!r} for example")


def _nearest_anywhere(word: str, known: DictConfig) -> str:
    """For a key that is not at the top: one of that name in a section, the nearest, or what is at the top."""
    inside = [key for key in _all_keys(known) if key.rpartition(".")[2] == word.rpartition(".")[2]]
    if inside:
        return f"; did you mean {inside[0]!r}?"
    return nearest(word, _all_keys(known), otherwise=[str(key) for key in known])


def _all_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key!s}"
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            yield from _all_keys(node, f"{prefix}{key!s}.")
