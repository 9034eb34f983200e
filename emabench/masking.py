"""What looks like a key or a password, or names a home directory, is not recorded."""

from __future__ import annotations

import re

MASK = "[masked]"
WANDB = re.compile(r"\b[0-9a-f]{40}\b")  # also a commit in full
KEY = re.compile(
    r"""\b(?:
        sk-[\w-]{16,} | hf_\w{20,} | gh[opsur]_\w{20,} | github_pat_\w{20,} | glpat-[\w-]{16,} | wandb_v1_\w{16,}
        | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[\w-]{30,} | xox[abprs]-[\w-]{10,} | eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+
    )(?![\w-])""",
    re.VERBOSE,
)
NAMED = re.compile(
    r"(?i)([\w.]*(?:api_?key|token|secret|passw(?:or)?d|credential)\w*\s*[=:]\s*)[^\s,;&'\"}\]]+"
)
USER = re.compile(r"(\w+://)[^/@\s]+@")
HOME = re.compile(r"(?<![\w.~-])(?:/home|/Users)/[^/\s'\":,]+|(?<![\w.~-])/root(?=/|$|[\s'\":,])")


def masked(text: str) -> str:
    """The text without what looks like a key, a password or the user part of an address, home directories as `~`."""
    text = NAMED.sub(rf"\1{MASK}", WANDB.sub(MASK, KEY.sub(MASK, text)))
    return HOME.sub("~", USER.sub(r"\1", text))


def looks_like_key(text: str) -> bool:
    """Whether a value, given without a name, has the form of a service's key."""
    return KEY.search(text) is not None
