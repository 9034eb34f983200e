"""The pages that are checked, and the fenced blocks in them.

A block of commands is run unless a comment before it says otherwise, with a reason:

    <!-- not run: needs a cluster -->      nothing in the block is run
    <!-- dry run: submits jobs -->         emabench commands are run with --dry-run
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^<!-- (?P<note>not run|dry run): (?P<reason>[^>]+?) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and how it is to be run ("", "not run", "dry run")."""

    page: str
    line: int
    language: str
    title: str
    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page that a user reads."""
    top = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md", "slurm/README.md"]
    return [ROOT / name for name in top] + sorted((ROOT / "docs").rglob("*.md"))


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all pages in these languages."""
    return [block for path in pages() for block in blocks_of(path) if block.language in languages]


def blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["options"])
        yield Block(
            page=str(path.relative_to(ROOT)),
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            title=title[1] if title else "",
            text=textwrap.dedent(match["text"]),
            note=match["note"] or "",
        )
