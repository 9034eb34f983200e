"""Text to train language models on: what every Python carries, files, folders, Hugging Face data sets.

A corpus has three splits, `train`, `valid` and `test`, each a sequence of documents. Its digest stands for all of
its text; `text_tokens` turns it into token ids once and keeps them under that digest.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from emabench.data import catalog
from emabench.errors import UserError

SPLITS = ("train", "valid", "test")
BLOCK = 2048  # characters: what is held out of a text without splits of its own, at a time
HELD_OUT = 20  # of so many blocks one is for validation and one for the test
HELD_OUT_HUB = 400  # of data sets that are large
SUFFIXES = (".txt", ".md", ".rst", ".tokens")

# Parts of the standard library that distributions leave out or put into packages of their own.
NOT_EVERYWHERE = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py", "ensurepip", "distutils"}
    | {"site-packages", "dist-packages", "__pycache__"}
)


@dataclass(frozen=True)
class Corpus:
    """Text in three splits. `documents(split)` starts again at every call, one document after the other."""

    name: str  # what results say of it
    digest: str  # hex; the same for the same text
    documents: Callable[[str], Iterator[str]]


def open_corpus(name: str, data_dir: Path, key: str = "task.corpus") -> Corpus:
    """The corpus that a configuration names.

    `topics`: the language reference in `pydoc_data.topics` (0.46 million characters); `python`: that and the
    docstrings of the standard library (1.8 million); `hub:NAME[,CONFIG][+NAME…]`: Hugging Face data sets;
    else a text file, or a folder of them, looked for below `data_dir` and then from where the command runs.
    Raises UserError, in the terms of the configuration's `key`.
    """
    if name in ("topics", "python"):
        return _python_corpus(name, key)
    if name.startswith("hub:"):
        return _hub_corpus(name, key)
    path = located(name, data_dir, key)
    assert path is not None
    return _file_corpus(path, f"{key}={name}") if path.is_file() else _folder_corpus(path, f"{key}={name}")


def located(name: str, data_dir: Path, key: str = "task.corpus") -> Path | None:
    """The file or folder of a corpus, None for those that are not one. Raises UserError where it does not exist."""
    if name in ("topics", "python") or name.startswith("hub:"):
        return None
    for path in (data_dir / name, Path(name).expanduser()):
        if path.is_file() or path.is_dir():
            return path
    if name in catalog.DATASETS:
        raise UserError(f"{key}={name}: not found in {data_dir / name}\n{catalog.DATASETS[name].how_to_get}")
    raise UserError(
        f"{key}={name}: there is no such file or folder, in {data_dir} or from here; give one, or topics, "
        "python (what every Python carries) or hub:<data set>"
    )


def held_out(index: int, every: int = HELD_OUT) -> str:
    """The split of the block with this index, counted through the whole corpus."""
    return {every // 2: "valid", every - 1: "test"}.get(index % every, "train")


def _in_blocks(texts: Iterable[str], split: str) -> Iterator[str]:
    """What of the texts belongs to a split. Neighbouring blocks of a text stay one document."""
    index = 0
    for text in texts:
        blocks = [text[at : at + BLOCK] for at in range(0, len(text), BLOCK)]
        numbered = enumerate(blocks, index)
        for belongs, group in groupby(numbered, lambda block: held_out(block[0])):
            if belongs == split:
                yield "".join(block for _, block in group)
        index += len(blocks)


# -- what every Python carries --------------------------------------------------------------------------------


def _python_corpus(name: str, key: str) -> Corpus:
    """Documents are help topics and modules. Modules are read as source: nothing is imported."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(
            f"{key}={name}: this Python came without pydoc_data.topics; give a text file or a folder of them"
        ) from error
    library = Path(sysconfig.get_path("stdlib"))
    modules = (
        {path.relative_to(library).as_posix(): path for path in _modules(library)} if name == "python" else {}
    )
    digest = hashlib.sha256(repr(sorted(topics.items())).encode())
    for module, path in modules.items():
        digest.update(module.encode() + path.read_bytes())

    @functools.cache
    def texts() -> list[str]:
        return [text for _, text in sorted(topics.items())] + [_docstrings(path) for path in modules.values()]

    label = f"{name} of {platform.python_implementation()} {platform.python_version()}"
    return Corpus(label, digest.hexdigest(), lambda split: _in_blocks(texts(), split))


def _modules(library: Path) -> Iterator[Path]:
    """The source files of the standard library that every Python has, sorted."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if NOT_EVERYWHERE.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            yield path


def _docstrings(path: Path) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, documented)
    ]
    return "\n\n".join(doc for doc in docstrings if doc)


# -- files and folders ----------------------------------------------------------------------------------------


def _file_corpus(path: Path, option: str) -> Corpus:
    text = _read(path, option)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(path.name, digest, lambda split: _in_blocks([text], split))


def _folder_corpus(path: Path, option: str) -> Corpus:
    """A folder: split as its files' names say (`ptb.train.txt`), or in blocks where they say nothing."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{option}: no {', '.join(SUFFIXES)} file in {path}; put the text into it")
    splits = [_named_split(file) for file in files]
    texts = [_read(file, option) for file in files]
    digest = hashlib.sha256(repr([*zip(splits, texts, strict=True)]).encode()).hexdigest()
    if "train" not in splits:
        return Corpus(path.name, digest, lambda split: _in_blocks(texts, split))
    if missing := [split for split in SPLITS if split not in splits]:
        raise UserError(
            f"{option}: {path} has a train file and none for {' and '.join(missing)}; "
            f"add {path / f'{missing[0]}.txt'}"
        )
    return Corpus(
        path.name, digest, lambda split: (t for s, t in zip(splits, texts, strict=True) if s == split)
    )


def _named_split(file: Path) -> str | None:
    parts = set(file.name.lower().replace("-", ".").replace("_", ".").split("."))
    aliases = {"train": {"train"}, "valid": {"valid", "validation", "dev"}, "test": {"test"}}
    return next((split for split, words in aliases.items() if words & parts), None)


def _read(path: Path, option: str) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{option}: {path} is not UTF-8 (byte {error.start}); convert it, for example with "
            f"iconv -t UTF-8 -f LATIN1"
        ) from error
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{option}: {path} is empty; give it some text")
    return text.replace("\r\n", "\n")


# -- Hugging Face ---------------------------------------------------------------------------------------------


def load_hub(name: str, config: str | None, option: str) -> Any:
    """A data set of the Hugging Face hub as a `DatasetDict`. Raises UserError where it cannot be had."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{option}: needs the package datasets: pip install 'emabench[hub]'") from error
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # of many kinds: no network, no such data set, a script instead of files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{option}: {name} cannot be loaded ({reason[0]}); is there a network?") from error


def _hub_corpus(name: str, key: str) -> Corpus:
    option = f"{key}={name}"
    parts = []
    for part in name.removeprefix("hub:").split("+"):
        dataset, _, config = part.partition(",")
        loaded = load_hub(dataset, config or None, option)
        if "train" not in loaded or "text" not in loaded["train"].column_names:
            raise UserError(
                f"{option}: {dataset} has no split train with a column text; name another data set"
            )
        parts.append((dataset, loaded))
    # A data set's fingerprint changes with its files and with whatever was done to it.
    prints = [(name, split, part[split]._fingerprint) for name, part in parts for split in sorted(part)]
    digest = hashlib.sha256(repr(prints).encode()).hexdigest()

    def documents(split: str) -> Iterator[str]:
        for _, loaded in parts:
            own = {"train": "train", "valid": "validation", "test": "test"}[split]
            if own in loaded and (split != "train" or {"validation", "test"} <= set(loaded)):
                yield from _joined(loaded[own])
                continue
            for index, block in enumerate(_joined(loaded["train"])):
                if held_out(index, HELD_OUT_HUB) == split:
                    yield block

    return Corpus(name.removeprefix("hub:"), digest, documents)


def _joined(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The rows' texts, joined until they are long enough for a document."""
    held: list[str] = []
    size = 0
    for row in rows:
        held.append(row["text"])
        size += len(row["text"])
        if size >= BLOCK:
            yield "\n".join(held)
            held, size = [], 0
    if size:
        yield "\n".join(held)
