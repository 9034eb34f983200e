"""The statements there are, found by folder, and how a user names them.

Every module of `sections/` holds statements of one section; nothing else lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from emabench.audit.statement import Statement
from emabench.errors import UserError, nearest

FOLDER = Path(__file__).parent / "sections"
EQUATIONS = range(1, 117)
ADDRESS = "https://spaces.ac.cn/archives/11301"
SECTIONS = {
    "0": "The problem: SignSGD and Adam",
    "1": "What an EMA is",
    "2": "What averaging does",
    "3": "EMA and batch size",
    "4": "Generalisation",
    "5": "SWA, Lookahead, LAWA",
    "6": "Applications",
    "7": "Convergence, the best β, schedules",
    "8": "Experiments",
    "9": "Practice",
    "10": "Frontier",
    "11": "Summary",
    "12": "Convergence in detail",
    "13": "The EMA as a filter",
    "14": "Stochastic differential equations",
    "15": "Numerics and precision",
    "16": "Case studies",
    "17": "EMA with other techniques",
}
TITLE = "重新思考学习率与Batch Size（四）：EMA"  # its text is cited by equation and section


@functools.cache
def statements() -> tuple[Statement, ...]:
    """All statements, in the article's order (of files, and within each). Their checks import what they need when they run."""
    every = [
        value
        for path in sorted(FOLDER.glob("s*.py"))
        for value in vars(import_module(f"{__package__}.sections.{path.stem}")).values()
        if isinstance(value, Statement)
    ]
    return tuple(every)


def chosen(words: Sequence[str]) -> list[Statement]:
    """The statements that words name: an equation's number, an id, or a section with what is below it.

    A bare number is an equation ("35"), one with a point a section ("7.3"); "§12" is the whole of section 12.
    """
    if not words:
        return list(statements())
    named: dict[str, Statement] = {}
    for word in words:
        named |= {each.id: each for each in _named(word)}
    return [each for each in statements() if each.id in named]


def of_table(name: str) -> list[Statement]:
    """The statements that a table of conf/table measures: what the table's page links back to."""
    return [each for each in statements() if each.table == name]


def _named(word: str) -> list[Statement]:
    plain = word.strip("()§").removesuffix(".")
    by_id = {each.id: each for each in statements()}
    if plain in by_id and not word.startswith("§"):
        return [by_id[plain]]
    if plain.isdigit() and not word.startswith("§"):
        raise UserError(
            f"{word}: the article's equations are numbered 1 to {EQUATIONS[-1]} (a section is written §{plain})"
        )
    inside = [each for each in statements() if each.section == plain or each.section.startswith(plain + ".")]
    if inside:
        return inside
    known = {*by_id, *(each.section for each in statements())}
    hint = nearest(plain, known, otherwise=()) if plain else ""
    raise UserError(
        f"{word!r} is no equation, section or statement of the article{hint} "
        "(35 an equation, 7.3 or §12 a section, 9.2-apply a statement; `emabench audit` shows all)"
    )
