"""LaTeX formulas as a line of text for a terminal."""

from __future__ import annotations

import re

COMMANDS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ", "lambda": "λ",
    "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "Delta": "Δ", "Sigma": "Σ",
    "leq": "≤", "geq": "≥", "approx": "≈", "sim": "~", "propto": "∝", "infty": "∞", "to": "→", "rightarrow": "→",
    "Rightarrow": "⇒", "leftarrow": "←", "nabla": "∇", "partial": "∂", "sum": "Σ", "prod": "Π", "int": "∫",
    "cdot": "·", "times": "×", "pm": "±", "ll": "≪", "gg": "≫", "lesssim": "≲", "langle": "⟨", "rangle": "⟩",
    "in": "∈", "top": "ᵀ", "ldots": "…", "cdots": "…", "quad": "  ", "qquad": "   ", "max": "max", "min": "min", "arg": "arg ", "|": "‖",
}  # fmt: skip
DROPPED = r"\\(?:boldsymbol|mathbf|mathbb|mathcal|mathrm|text|operatorname|mathop|left|right|displaystyle|textstyle|bm)(?![A-Za-z])"
OVER = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304"}


def plain(latex: str) -> str:
    """The formula with Unicode symbols; fractions and roots with a slash and √."""
    text = re.sub(r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|&", "", latex).replace(r"\\", " ; ").replace(r"\,", " ")
    text = re.sub(DROPPED, "", text).replace("tfrac", "frac")
    for accent, mark in OVER.items():
        text = re.sub(rf"\\{accent}\{{\{{?(\\?\w+)\}}?\}}", rf"{{\1{mark}}}", text)
    text = _with_arguments(text)
    text = re.sub(r"\\([A-Za-z]+|\|)", lambda m: COMMANDS.get(m[1], m[1]), text)
    text = re.sub(r"\\([%_{} #])", r"\1", text)
    while (simpler := re.sub(r"([_^])\{([^{}]*)\}", _script, text)) != text:
        text = simpler
    return re.sub(r"\s+", " ", text.replace("{", "").replace("}", "")).strip()


def _script(match: re.Match[str]) -> str:
    """A sub- or superscript, in brackets where it could be misread."""
    inside = match[2]
    clear = len(inside) < 2 or inside.isdigit() or inside.isalpha() or (inside[0], inside[-1]) == ("(", ")")
    return match[1] + (inside if clear else f"({inside})")


def _with_arguments(text: str) -> str:
    r"""\frac{a}{b} as (a)/(b) and \sqrt{a} as √(a), inner ones too."""
    while (match := re.search(r"\\(frac|sqrt|underbrace)\s*(?=[\w{])", text)) is not None:
        first, end = _argument(text, match.end())
        if match[1] == "frac":
            second, end = _argument(text, end)
            plain = f"{_grouped(first)}/{_grouped(second)}"
        else:
            plain = f"√{_grouped(first)}" if match[1] == "sqrt" else first
        text = text[: match.start()] + plain + text[end:]
    return text


def _argument(text: str, at: int) -> tuple[str, int]:
    """The argument that begins at a place, braces taken off, and where it ends."""
    while text[at] == " ":
        at += 1
    if text[at] != "{":
        return text[at], at + 1
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
        if depth == 0:
            return text[at + 1 : end], end + 1
    return text[at + 1 :], len(text)


def _grouped(text: str) -> str:
    return text if re.fullmatch(r"\\?\w+|\{\w+\}", text) else f"({text})"
