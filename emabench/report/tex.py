"""Text and tables as LaTeX that compiles with booktabs and amssymb: ASCII alone, whatever the text holds."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

LETTERS = {
    "\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "√": r"$\surd$", "∞": r"$\infty$",
    "≥": r"$\geq$", "≤": r"$\leq$", "≠": r"$\neq$", "≈": r"$\approx$", "→": r"$\to$", "←": r"$\leftarrow$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "⇅": r"$\updownarrow$", "⊥": r"$\bot$", "∝": r"$\propto$", "∑": r"$\sum$",
    "✓": r"$\checkmark$", "◐": r"($\checkmark$)", "✗": r"$\times$", "○": r"$\circ$", "◆": r"$\blacklozenge$",
    "…": r"\ldots{}", "–": "--", "—": "---", "§": r"\S{}", "“": "``", "”": "''", "‘": "`", "’": "'", "°": r"$^\circ$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "ζ": r"$\zeta$",
    "η": r"$\eta$", "θ": r"$\theta$", "κ": r"$\kappa$", "λ": r"$\lambda$", "μ": r"$\mu$", "ν": r"$\nu$", "ξ": r"$\xi$",
    "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "φ": r"$\varphi$", "χ": r"$\chi$", "ψ": r"$\psi$",
    "ω": r"$\omega$", "Γ": r"$\Gamma$", "Δ": r"$\Delta$", "Θ": r"$\Theta$", "Λ": r"$\Lambda$", "Π": r"$\Pi$",
    "Σ": r"$\Sigma$", "Φ": r"$\Phi$", "Ψ": r"$\Psi$", "Ω": r"$\Omega$", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}",
    "æ": r"\ae{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,",
    "\u2011": "-", "\n": " ",
}  # fmt: skip
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k",
}  # fmt: skip


def text(words: str) -> str:
    """Words as LaTeX. What it has no sign for is named by its code point, so that it is seen to be missing."""
    return "".join(_letter(letter) for letter in unicodedata.normalize("NFC", words))


def row(cells: Sequence[str]) -> str:
    """A line of a table. In braces where it begins with a bracket, which would be the last line's option."""
    line = " & ".join(map(text, cells))
    return ("{}" if line.startswith(("[", "*")) else "") + line + r" \\"


def table(columns: str, lines: Iterable[str], caption: str, label: str) -> list[str]:
    """A table, no wider than the text."""
    return [
        r"\begin{table}",
        r"\centering\small",
        r"\begin{tabular}{" + columns + "}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\caption{" + text(caption) + "}",
        r"\label{" + label.replace("_", "-") + "}",
        r"\end{table}",
    ]


def _letter(letter: str) -> str:
    if letter in LETTERS:
        return LETTERS[letter]
    if ord(letter) < 128:
        return letter if letter.isprintable() else " "
    kind, _, plain = unicodedata.decomposition(letter).rpartition(" ")
    if kind.startswith(("<super>", "<sub>")):  # superscripts and subscripts: ², ᵗ, ⁻
        inner = "".join(_letter(chr(int(code, 16))) for code in [*kind.split()[1:], plain]).replace("$", "")
        return f"${'^' if kind.startswith('<super>') else '_'}{{{inner}}}$"
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and marks and all(mark in ACCENTS for mark in marks):
        for mark in marks:
            base = f"\\{ACCENTS[mark]}{{{base}}}"
        return base
    simpler = unicodedata.normalize("NFKC", letter)
    if simpler != letter:
        return text(simpler)
    return f"[U+{ord(letter):04X}]"
