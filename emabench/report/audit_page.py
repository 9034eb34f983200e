"""The audit as a self-contained page, as Markdown and as LaTeX.

Formulas become MathML, which browsers render without a script or a font from elsewhere.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

import emabench
from emabench.audit import Result, Statement, Verdict, counts, of_table, worst
from emabench.audit.catalog import ADDRESS, SECTIONS, TITLE
from emabench.audit.statement import Curves
from emabench.audit.units import units
from emabench.report import files, svg
from emabench.report.audit import SHORT, as_json
from emabench.runs.files import write_text

NAME = "audit"
MARKS = {
    Verdict.HOLDS: "✓",
    Verdict.CONDITIONAL: "if",
    Verdict.APPROXIMATE: "≈",
    Verdict.WRONG: "✗",
    Verdict.DEFINITION: ":=",
    Verdict.EMPIRICAL: "⌕",
    Verdict.NOT_CHECKABLE: "?",
}
# Words that LaTeX would set letter by letter, where they stand in sub- and superscripts.
WORDS = (
    "ema|poly|SWA|eff|fast|slow|min|max|init|ramp|mach|fp16|fp32|test|train|teacher|student|target|final|supervised|"
    "consistency|warm|task|meta|RC|EMA|rank|fl|discrete"
)


def write(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write audit.html, .md, .tex and .json to a folder; returns their paths.

    Raises UserError where the folder cannot be written to.
    """
    with files.writing(folder):
        texts = {
            "html": page(results, folder),
            "md": markdown(results),
            "tex": latex(results),
            "json": as_json(results) + "\n",
        }
        for ending, text in texts.items():
            write_text(folder / f"{NAME}.{ending}", text)
    return [folder / f"{NAME}.{ending}" for ending in texts]


def links(table: str, page: str = f"{NAME}.html") -> list[tuple[str, str]]:
    """The statements that a table of conf/table measures: their names and where they are on the audit's page."""
    return [(each.label, f"{page}#{each.anchor}") for each in of_table(table)]


def page(results: Sequence[Result], folder: Path | None = None) -> str:
    """The page's text. A table is linked to where `folder` holds its page."""
    return (
        _templates()
        .get_template("audit.html.j2")
        .render(
            sections=list(_sections(results)),
            counts=counts(results),
            total=len(results),
            equations=sum(result.statement.is_equation for result in results),
            worst=worst(results),
            page_of=functools.partial(_table_page, folder),
            version=emabench.__version__,
            address=ADDRESS,
            title=TITLE,
        )
    )


def _sections(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """Number, title and results of each section."""
    for number, group in itertools.groupby(results, key=lambda r: r.statement.section.partition(".")[0]):
        yield number, SECTIONS[number], list(group)


def _table_page(folder: Path | None, table: str) -> str:
    """Where a table's page lies next to the audit's; empty if it does not exist."""
    scales = ("paper", "small", "smoke")
    pages = [files.page_of(table, scale, folder) for scale in scales] if folder else []
    return next((path.name for path in pages if path.exists()), "")


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emabench.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        marks=MARKS, short=SHORT, formula=formula, figure=figure, Verdict=Verdict, slug=slug, units=units
    )
    return environment


def slug(verdict: Verdict) -> str:
    """A verdict as a class name."""
    return verdict.name.lower().replace("_", "-")


# -- formulas -------------------------------------------------------------------------------------------------
def formula(of: Statement, text: str) -> Markup:
    """A printed or corrected form: a listing as code, everything else as MathML."""
    if of.listing or "\n" in text:
        return Markup("<pre>{}</pre>").format(text)
    return Markup('<div class="formula">{}</div>').format(mathml(text))


def mathml(text: str) -> Markup:
    """LaTeX as MathML."""
    from latex2mathml.converter import convert

    mathml = convert(_upright(text), display="block")
    return Markup(
        mathml.replace(r"\_", "_").replace(r"\%", "%")
    )  # it leaves these as they are inside \text{…}


def _upright(text: str) -> str:
    r"""Words of several letters in \mathrm, outside of \text{…}; spellings that the converter does not know."""
    text = text.replace(r"\mathop{\arg\min}", r"\operatorname{argmin}").replace(r"\tfrac", r"\frac")
    text = text.replace(r"\textstyle", "").replace("{aligned}", "{align*}")
    parts = re.split(r"(\\(?:text|mathrm|operatorname)\{[^{}]*\})", text)
    plain = (re.sub(rf"(?<![\\A-Za-z])({WORDS})(?![A-Za-z])", r"\\mathrm{\1}", part) for part in parts[::2])
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(plain, parts[1::2], fillvalue="")))


# -- figures --------------------------------------------------------------------------------------------------
CLASSES = {"printed": "article", "right": "measured", "measured": "raw"}


def figure(of: Statement) -> Markup:
    """The printed and the right curve, where a statement has a figure; nothing where it has none."""
    if of.figure is None:
        return Markup("")
    curves = of.figure()
    names = Markup("").join(
        Markup('<span class="key line {}">{}</span>').format(CLASSES[name], name) for name in curves.lines
    )
    return Markup('<figure class="plot">{}<figcaption>{} {}</figcaption></figure>').format(
        Markup(_drawn(curves)), names, curves.title
    )


def _drawn(curves: Curves) -> str:
    points = [point for line in curves.lines.values() for point in line]
    x = svg.Axis.around([a for a, _ in points], log=curves.log_x, margin=0.0)
    y = svg.Axis.around([b for _, b in points], log=curves.log_y)
    drawn = svg.Figure(x, y, left=58)
    drawn.axes(curves.x, curves.y, x_label=_tick)
    for name, line in curves.lines.items():
        drawn.line(line, CLASSES[name])
    return drawn.svg(f"{curves.title}: {', '.join(curves.lines)}")


def _tick(value: float) -> str:
    return svg.label(value) if abs(value) >= 0.01 or value == 0 else f"{value:.0e}".replace("e-0", "e−")


# -- Markdown -------------------------------------------------------------------------------------------------
def markdown(results: Sequence[Result]) -> str:
    """All results, formulas as MathML (raw HTML, which Markdown lets through)."""
    lines = ["# The article's statements, checked", ""]
    lines += ["| verdict | statements | meaning |", "|---|--:|---|"]
    lines += [f"| {v} | {n} | {v.meaning} |" for v, n in counts(results).items() if n]
    if worst(results):
        lines += ["", "## The ten that would hurt you most if you copied them", ""]
        for result in worst(results):
            of = result.statement
            lines.append(f"{of.rank}. [{of.label}](#{of.anchor}) {_plain(of.says)} *{_plain(of.harm)}*")
    for number, title, group in _sections(results):
        lines += ["", f"## §{number} {title}"]
        for result in group:
            lines += ["", *_markdown_of(result)]
    return "\n".join(lines) + "\n"


def _markdown_of(result: Result) -> Iterator[str]:
    of = result.statement
    yield f'### {of.label}: {result.verdict} <a id="{of.anchor}"></a>'
    yield ""
    yield _plain(of.says)
    for name, text in (("printed", of.formula), ("corrected", of.corrected)):
        if text:
            yield ""
            if of.listing or "\n" in text:
                yield from (f"{name}:", "", "```python", text.rstrip(), "```")
            else:
                yield f"<p>{name}: {mathml(text)}</p>"
    yield ""
    for name, text in _facts(result):
        yield f"- {name}: {_plain(text)}"


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    """What is shown of a result besides the formulas, where anything is."""
    of = result.statement
    facts = {
        "assumes": of.states,
        "needs": of.needs,
        "checked by": of.method,
        "expected": result.outcome.expected,
        "measured": result.outcome.measured,
        "the corrected form": result.corrected.measured if result.corrected else "",
        "units": units(of.id),
        "note": of.note,
        "measured by": f"`emabench table {of.table}`" if of.table else "",
        "not supported": result.complaint,
    }
    yield from ((name, text) for name, text in facts.items() if text)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([*_<>|])", r"\\\1", text)


# -- LaTeX ----------------------------------------------------------------------------------------------------
SPECIAL = {c: rf"\{c}" for c in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
GREEK = dict(
    zip(
        "αβγδεζηθκλμνξπρστφχψωΔΣΠΛΩ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "varepsilon",
            "zeta",
            "eta",
            "theta",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "varphi",
            "chi",
            "psi",
            "omega",
            "Delta",
            "Sigma",
            "Pi",
            "Lambda",
            "Omega",
        ],
        strict=True,
    )
)
SYMBOLS = GREEK | {
    "≤": "le", "≥": "ge", "≈": "approx", "≠": "neq", "∞": "infty", "→": "to", "←": "leftarrow", "∇": "nabla", "∂": "partial",
    "√": "surd", "∫": "int", "·": "cdot", "×": "times", "±": "pm", "∝": "propto", "‖": "|", "⟨": "langle", "⟩": "rangle",
    "≪": "ll", "≫": "gg", "−": "-", "′": "prime", "≙": "equiv",
}  # fmt: skip
SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀ", "0123456789-T", strict=True))
SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
ACCENTS = {"\u0302": "hat", "\u0303": "tilde", "\u0304": "bar"}  # combining characters
OTHER = {
    "ı": r"\i{}",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
    "°": r"$^\circ$",
    "½": r"$\frac12$",
    "§": r"\S{}",
    "⅕": r"$\frac15$",
    "🡒": "",
}


def latex(results: Sequence[Result]) -> str:
    """A document that pdflatex takes."""
    lines = [
        r"\documentclass[a4paper]{article}",
        r"\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{amsmath,amssymb,bm,longtable}",
        r"\newcommand{\bigline}{\par\medskip\noindent}\emergencystretch=3em",
        r"\title{The article's statements, checked}\author{emabench " + emabench.__version__ + r"}\date{}",
        r"\begin{document}\maketitle",
        r"\begin{longtable}{lrp{8cm}}",
    ]
    lines += [rf"{tex(str(v))} & {n} & {tex(v.meaning)}\\" for v, n in counts(results).items() if n]
    lines.append(r"\end{longtable}")
    for number, title, group in _sections(results):
        lines.append(rf"\section*{{\S{number} {tex(title)}}}")
        for result in group:
            lines += _latex_of(result)
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _latex_of(result: Result) -> Iterator[str]:
    of = result.statement
    yield rf"\bigline\textbf{{{tex(of.label)}}} \emph{{{tex(str(result.verdict))}}}. {tex(of.says)}"
    for name, text in (("printed", of.formula), ("corrected", of.corrected)):
        if text and (of.listing or "\n" in text):
            yield rf"\par {name}:" + "\n" + r"\begin{verbatim}" + f"\n{text.rstrip()}\n" + r"\end{verbatim}"
        elif text:
            yield rf"\par {name}: $\displaystyle {_tex_formula(text)}$"
    for name, text in _facts(result):
        yield rf"\par {name}: {tex(text)}"


def _tex_formula(text: str) -> str:
    r"""A formula: what stands in \text{…} escaped, the rest as it is."""
    text = text.replace(r"\boldsymbol", r"\bm").replace(r"\mathop{\arg\min}", r"\operatorname*{arg\,min}")
    return "".join(
        "{" + tex(c) + "}" if ord(c) > 127 and c not in OTHER else OTHER.get(c, c) for c in text
    ).replace("$", "")


def tex(text: str) -> str:
    """Text for LaTeX, in ASCII: symbols in math mode."""
    out: list[str] = []
    for part in re.findall(f"[{''.join(SUPER)}]+|[{''.join(SUB)}]+|.", text, re.DOTALL):
        if part in ACCENTS:
            out.append(rf"$\{ACCENTS[part]}{{{out.pop().strip('$')}}}$")
        elif part[0] in SUPER:
            out.append(f"$^{{{''.join(SUPER[c] for c in part)}}}$")
        elif part[0] in SUB:
            out.append(f"$_{{{''.join(SUB[c] for c in part)}}}$")
        elif part in SYMBOLS:
            out.append("$-$" if part == "−" else f"$\\{SYMBOLS[part]}$")
        else:
            out.append(SPECIAL.get(part) or OTHER.get(part, part))
    return "".join(out).replace("$$", "")
