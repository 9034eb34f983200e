"""The words of a command before Hydra reads them: what one looks like, which keys there are, and paths as they are.

Nothing here imports Hydra, OmegaConf or pydantic: a mistyped key is answered in a tenth of a second.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from emabench import plugins
from emabench.errors import UserError, nearest
from emabench.paths import conf_dir

PATHS = ("results_dir", "data_dir", "task.inception_weights")  # their values are paths, whatever is in them
NAMES_OR_PATHS = (
    "task.corpus",
    "task.tokenizer",
    "task.classes",
)  # names, of which several may be listed, or a path
GROUPS = ("task",)
FREE = ("averages",)  # sections whose keys are the user's own
NOT_ONE = "is not an override; write key=value, for example ema.decay=0.999 or seed=0,1,2"
WORD = re.compile(r"(?P<sign>\+{1,2}|~|)(?P<key>[A-Za-z_]\w*(?:\.\w+)*)(?:=(?P<value>.*))?", re.DOTALL)
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check(words: Sequence[str]) -> None:
    """Raises UserError for a word that cannot be an override, or for a choice or a key that does not exist.

    What this does not understand is left to Hydra's grammar.
    """
    folders = tuple(plugins.folders())
    parts = [WORD.fullmatch(word) for word in words]
    for word, part in zip(words, parts, strict=True):
        if part is None and "=" not in word and not word.startswith("~"):
            raise UserError(not_an_override(word))
        if part is not None and part["value"] is None and part["sign"] != "~":
            raise UserError(not_an_override(word))
    chosen = {part["key"]: part["value"] for part in parts if part and part["key"] in GROUPS}
    for key, value in chosen.items():
        if re.fullmatch(r"\w+", value or ""):
            _chosen(key, value, folders)
    if not re.fullmatch(r"\w+", chosen.get("task") or "ddpm"):
        return  # several tasks, say
    keys = known(chosen.get("task"), folders)
    for word, part in zip(words, parts, strict=True):
        if part and part["key"] not in GROUPS and not part["key"].startswith("hydra"):
            section = (part["value"] or "").startswith("{")
            check_key(
                word, part["key"], keys, add="+" in part["sign"], delete=part["sign"] == "~", section=section
            )


@functools.lru_cache(maxsize=64)
def _chosen(group: str, name: str, folders: tuple[Path, ...]) -> None:
    plugins.get(f"conf/{group}", name, f"{group}={name}")


def not_an_override(word: str) -> str:
    """What is wrong with a word, and what an override looks like."""
    cut = word.endswith(",") or any(word.count(a) != word.count(b) for a, b in ("[]", "{}"))
    return f"{word!r} {NOT_ONE}{'; there is a space after it: put the whole word in quotes' if cut else ''}"


def path_of(word: str) -> tuple[str, str] | None:
    """The key of a word whose value is a path, and that path with `~` expanded; None for any other word.

    A value in quotes is what Hydra takes it for.
    """
    key, equals, value = word.partition("=")
    bare = key.lstrip("+")
    if not equals or not value or QUOTED.fullmatch(value) or bare not in (*PATHS, *NAMES_OR_PATHS):
        return None
    path = os.path.expanduser(value)  # noqa: PTH111 - a Path would normalise what it is given
    if bare in NAMES_OR_PATHS and not (os.sep in path and Path(path).exists()):
        return None
    return key, path


@functools.lru_cache(maxsize=64)
def known(task: str | None, folders: tuple[Path, ...]) -> dict[str, Any]:
    """Every key with its value as `conf/` has it: those of all runs, with a task's own.

    folders: those of the user's own in which the task is looked for.
    """
    base = _file(conf_dir() / "config.yaml")
    defaults = base.pop("defaults", [])
    task = task or next(entry["task"] for entry in defaults if isinstance(entry, dict))
    item = plugins.find("conf/task").get(task)
    try:
        own = _file(item.path) if item else {}
    except (OSError, ValueError, yaml.YAMLError):
        own = {}  # Hydra says where it is broken
    return _merged(base, own if isinstance(own, dict) else {})


def _file(path: Path) -> Any:
    return yaml.load(path.read_bytes(), LOADER)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[str(key)] = value
    return merged


def check_key(
    word: str, key: str, known: Mapping[str, Any], *, add: bool, delete: bool, section: bool
) -> None:
    """Raises UserError for a key that does not exist, with a `+` before it or without: every key is typed.

    section: the word gives it a mapping.
    """
    node: Any = known
    for position, part in enumerate(parts := key.split(".")):
        if position and parts[0] in FREE:
            if part not in node and not add and not delete:
                raise UserError(f"{word}: does not exist yet; write +{word}")
            return
        if not isinstance(node, Mapping) or part not in node:
            place = ".".join(parts[:position])
            where = f" in {place}" if place else ""
            keys = [str(key) for key in node] if isinstance(node, Mapping) else []
            close = nearest(part, keys) if position else _nearest_anywhere(key, known)
            if place == "ema.warmup":  # the one key that takes a mapping of its own
                close = f"; write {place}={{{part}: …}}"
            raise UserError(f"{word}: there is no key {part!r}{where}{close}")
        node = node[part]
    if delete and key not in FREE:
        raise UserError(f"{word}: every run needs {key}; set it ({key}=…). Only averages can be left out")
    if isinstance(node, Mapping) and not section and not delete:
        first = str(next(iter(node), "key"))
        raise UserError(f"{word}: {key} is a section; set its keys ({parts[-1]}.{first}=…)")


def _nearest_anywhere(word: str, known: Mapping[str, Any]) -> str:
    """For a key that is not at the top: one of that name in a section, the nearest, or what is at the top."""
    inside = [key for key in _all_keys(known) if key.rpartition(".")[2] == word.rpartition(".")[2]]
    if inside:
        return f"; did you mean {inside[0]!r}?"
    return nearest(word, _all_keys(known), otherwise=list(known))


def _all_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _all_keys(value, f"{prefix}{key}.")
