"""Find tasks, tables, sweeps, averages and metrics: those of the package, and a user's own.

A user's own are in folders given by `--path DIR` or EMABENCH_PATH, and in installed distributions that have an entry
point in the group `emabench.path`, whose value is the name of a package of theirs. Such a folder (or package) holds,
as far as it has them:

    tasks/NAME.py  conf/task/NAME.yaml  conf/table/NAME.yaml  conf/sweep/NAME.yaml
    averages/NAME.py  metrics/NAME.py  claims/NAME.py

Nothing is imported in order to find it. A folder is used only where the user names it, never because it is the
working directory. A name that is taken already is an error that names both files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from emabench.errors import UserError, nearest
from emabench.paths import PACKAGE, conf_dir

VARIABLE = "EMABENCH_PATH"  # environment variable: folders, separated as in PATH
OPTION = "--path"
GROUP = "emabench.path"  # of entry points

FOLDERS = {
    "conf/task": ".yaml",
    "conf/table": ".yaml",
    "conf/sweep": ".yaml",
    "tasks": ".py",
    "averages": ".py",
    "metrics": ".py",
    "claims": ".py",
}
"""Each kind of thing is called after the folder it is in. A Python file may be a package, NAME/__init__.py."""

_BUILT_IN = {"tasks": PACKAGE / "tasks", "claims": PACKAGE / "tables" / "claims"}  # code that the package has
_NO_PLUGINS = {"base"}  # modules in these folders that define nothing of the kind


@dataclass(frozen=True)
class Source:
    """Where things are found: the package, a folder, or a distribution."""

    name: str  # as errors and results give it: "emabench", the folder, "name version"
    root: Path
    package: str  # name of the Python package that `root` is imported as

    @property
    def built_in(self) -> bool:
        return self.package == "emabench"

    def folder(self, kind: str) -> Path | None:
        """The folder of a kind."""
        if not self.built_in:
            return self.root / kind
        return conf_dir() / kind.removeprefix("conf/") if kind.startswith("conf/") else _BUILT_IN.get(kind)


@dataclass(frozen=True)
class Item:
    """One thing by its name. `clash` is a later one of the same name, which is not used."""

    kind: str
    name: str
    path: Path
    source: Source
    clash: Item | None = None


def find(kind: str) -> dict[str, Item]:
    """All things of a kind by name, those of the package first."""
    items: dict[str, Item] = {}
    for source in sources():
        for item in _in(source, kind):
            first = items.get(item.name)
            if first is None:
                items[item.name] = item
            elif first.clash is None:
                items[item.name] = Item(first.kind, first.name, first.path, first.source, clash=item)
                left_out(_both(items[item.name]))
    return items


def get(kind: str, name: str, option: str) -> Item:
    """One thing by its name. Raises UserError, which begins with `option`, the words that asked for it."""
    items = find(kind)
    if name not in items:
        noun = kind.rpartition("/")[2].removesuffix("s")
        outside = "" if folders() else f" (your own: {OPTION} DIR or {VARIABLE})"
        raise UserError(f"{option}: there is no {noun} {name!r}{nearest(name, items)}{outside}")
    if items[name].clash:
        raise UserError(f"{option}: {_both(items[name])}; rename one of them")
    return items[name]


def load(kind: str, name: str) -> ModuleType:
    """The module of a Python thing. Raises UserError with file and line where one from outside cannot be imported."""
    item = get(kind, name, name)
    module = f"{item.source.package}.{_module(item)}"
    if item.source.built_in:
        return import_module(module)
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(why(item.path, error)) from error


def origins(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of these (kind, name), those from outside the package: {"tasks/spiral": "…/spiral.py, sha256 0a1b2c3d4e5f"}."""
    outside = {}
    for kind, name in names:
        item = find(kind).get(name)
        if item and not item.source.built_in:
            digest = hashlib.sha256(item.path.read_bytes()).hexdigest()[:12]
            of = f" of {item.source.name}" if item.source.root != Path(item.source.name) else ""
            outside[f"{kind}/{name}"] = f"{item.path}{of}, sha256 {digest}"
    return outside


# -- folders ----------------------------------------------------------------------------------------------------


def split(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The command's words without `--path DIR` and `--path=DIR`, and those folders. Raises UserError."""
    rest, given = [], []
    queue = iter(words)
    for word in queue:
        option, equals, value = word.partition("=")
        if option != OPTION:
            rest.append(word)
            continue
        text = value if equals else next(queue, "")
        if not text:
            raise UserError(f"{OPTION}: give a folder after it: {OPTION} DIR")
        if os.pathsep in text:
            raise UserError(f"{OPTION} {text}: one folder at a time; {OPTION} may be given again")
        given.append(_absolute(text))
    return rest, given


@contextmanager
def using(given: Sequence[Path]) -> Iterator[None]:
    """Inside the block these folders are searched too, here and in every process that is started."""
    global _given
    before, _given = (os.environ.get(VARIABLE), _given), list(given)
    if given or before:  # absolute from here on: a process may be started in another directory
        os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys([*given, *folders()])))
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        variable, _given = before
        if variable is not None:
            os.environ[VARIABLE] = variable


def given() -> list[Path]:
    """The folders of this command's `--path`."""
    return _given


_given: list[Path] = []


def check(given: Sequence[Path]) -> None:
    """Raises UserError for a folder of `--path` in which nothing can be found; of EMABENCH_PATH it is left out."""
    for folder in folders():
        if folder not in given and not folder.is_dir():
            left_out(f"{VARIABLE}: {folder} is not a folder")
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{OPTION} {folder}: is not a folder (emabench new task NAME makes one)")
        if not any((folder / kind).is_dir() for kind in FOLDERS):
            raise UserError(f"{OPTION} {folder}: has none of {', '.join(FOLDERS)} in it")


def folders() -> list[Path]:
    """The folders that the user has named, by `--path` and EMABENCH_PATH."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return list(dict.fromkeys(_absolute(text) for text in named if text.strip()))


def sources() -> list[Source]:
    """Everywhere that is searched, in order."""
    return [Source("emabench", PACKAGE, "emabench"), *map(_folder, folders()), *_distributions()]


def left_out(text: str) -> None:
    """Tell the user, once, what cannot be used; the command continues without it."""
    if text not in _reported and os.environ.get("RANK", "0") == "0":
        _reported.add(text)
        print(f"emabench: left out: {text}", file=sys.stderr)


_reported: set[str] = set()


def _absolute(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _in(source: Source, kind: str) -> Iterator[Item]:
    folder, suffix = source.folder(kind), FOLDERS[kind]
    try:
        paths = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    except OSError as error:
        left_out(f"{folder}: cannot be read ({error.strerror})")
        return
    for path in paths:
        name = path.name.removesuffix(suffix) if path.is_file() else path.name
        if path.is_dir() and suffix == ".py" and (path / "__init__.py").is_file():
            path /= "__init__.py"
        elif path.suffix != suffix or not path.is_file():
            continue
        if name.startswith(("_", ".")) or (source.built_in and name in _NO_PLUGINS):
            continue
        if suffix == ".py" and not name.isidentifier():
            left_out(f"{path}: the name of a Python file has letters, digits and _ alone")
            continue
        yield Item(kind, name, path, source)


def _both(item: Item) -> str:
    assert item.clash
    return f"{item.name} is both {item.path} and {item.clash.path}"


def _module(item: Item) -> str:
    """The module of an item within its source's package: tasks.spiral."""
    if item.source.built_in:
        return ".".join((*_BUILT_IN[item.kind].relative_to(PACKAGE).parts, item.name))
    return f"{item.kind}.{item.name}"


def _folder(root: Path) -> Source:
    """A folder, importable as a package of its own: what is in it can be pickled, and two folders do not mix."""
    digest = hashlib.sha256(str(root).encode(errors="surrogateescape")).hexdigest()[:8]
    package = f"{__name__}.{re.sub(r'[^0-9A-Za-z]', '_', root.name) or 'folder'}_{digest}"
    if package not in sys.modules:
        module = ModuleType(package, f"What is in {root}.")
        module.__path__ = [str(root)]
        sys.modules[package] = module
    return Source(str(root), root, package)


@functools.cache
def _distributions() -> tuple[Source, ...]:
    """The packages that entry points name, found without importing them."""
    from importlib import metadata

    packages = {}
    for point in metadata.entry_points(group=GROUP):
        top, *rest = point.module.split(".")
        named = f"entry point {point.name} of group {GROUP}"
        of = f"{point.dist.name} {point.dist.version}" if point.dist else named
        try:
            spec = util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        roots = [Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ()]
        root = next(filter(Path.is_dir, roots), None)
        if root is None:
            left_out(f"{of}: {named} has the value {point.value!r}, which is not a package")
        else:
            packages[point.module] = Source(of, root, point.module)
    return tuple(packages[module] for module in sorted(packages))


def why(path: Path, error: BaseException) -> str:
    """Where a file of Python or YAML is broken, and why, in a line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    if mark := getattr(error, "problem_mark", None):  # a yaml.MarkedYAMLError
        return f"{path}:{mark.line + 1}: not YAML: {getattr(error, 'problem', error)}"
    inside = path.parent if path.name == "__init__.py" else path
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if Path(frame.filename).is_relative_to(inside)]
    at = f"{lines[-1].filename}:{lines[-1].lineno}" if lines else str(path)
    return f"{at}: {type(error).__name__}: {' '.join(str(error).split())}"


# A process that is started to unpickle something of a folder imports this module first: the folders are packages then.
__path__: list[str] = []
for _root in folders():
    _folder(_root)
