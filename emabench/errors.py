"""What ends a command, and with which exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 75


class UserError(Exception):
    """The user's mistake. The message names the key, the value and how to fix it, in one or two lines (exit 2)."""


class RunFailed(Exception):
    """A run that could not be finished, for a reason other than a mistake in the command (exit 1)."""


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint is written and the same command resumes it (exit 75)."""


def nearest(word: str, known: Iterable[str], otherwise: Iterable[str] | None = None) -> str:
    """'; did you mean …?' with the nearest known word, else the known words (`otherwise`, where those are fewer)."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    close = close or [each for each in known if word and each.startswith(word)][:1]
    if close:
        return f"; did you mean {close[0]!r}?"
    rest = sorted(set(otherwise)) if otherwise is not None else known
    return f"; known: {', '.join(rest)}" if rest else ""
