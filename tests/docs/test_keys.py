"""Each key's meaning is written once, in emabench/config.py; conf/config.yaml repeats it word for word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs import hooks
from emabench.config import Config, Section

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: [^#]*)?(?: # (?P<comment>.*))?$")


def described(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, meaning) for every section and key below `kind`, but for the task's own."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield f"{prefix}{name}", (inner.__doc__ or "").partition("\n")[0].rstrip(".")
            yield from described(inner, f"{prefix}{name}.")
        elif name != "task":
            yield f"{prefix}{name}", field.description or ""


def commented(text: str) -> Iterator[tuple[str, str]]:
    """(key, comment) for every line of a YAML file with at most two levels."""
    section = ""
    for line in text.splitlines():
        if (match := LINE.match(line)) and match["key"] != "defaults":
            section = section if match["indent"] else match["key"]
            key = f"{section}.{match['key']}" if match["indent"] else match["key"]
            yield key, match["comment"] or ""


def test_every_key_is_described_once() -> None:
    meanings = dict(described(Config))
    assert not [key for key, meaning in meanings.items() if not meaning]
    comments = dict(commented((ROOT / "conf" / "config.yaml").read_text(encoding="utf-8")))
    assert comments == meanings


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "task").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_reference_knows_every_option_of_a_task(path: Path) -> None:
    """A value for every field of the task's `Options`, and what each of them means, from the comment beside it."""
    given = {key for key, _ in hooks.flat(yaml.safe_load(path.read_text(encoding="utf-8"))["task"])}
    fields = {
        key for key in hooks.option_meanings(path.stem) if not any(k.startswith(f"{key}.") for k in given)
    }
    assert fields == given
