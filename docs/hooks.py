"""Pages that are generated when the site is built: from the README, the configuration, the tables' committed files.

Reads sources as text, and imports nothing that needs torch.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from emabench import audit, averaging
from emabench.config import SCALES, Config, Section
from emabench.report import audit_page

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "benchmarks" / "tables"
FOUND = "What was found"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add one page a table to the navigation."""
    pages = [{"All tables": "results/index.md"}]
    pages += [{title(path): f"results/{path.stem}.md"} for path in table_pages()]
    for section in config.nav or []:
        if FOUND in section:
            section[FOUND] = pages
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put lists in the place of their markers: <!-- list: sweeps -->."""
    return re.sub(r"^<!-- list: (\w+) -->$", lambda m: "\n".join(LISTS[m[1]]()), markdown, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for uri, text in generated().items():
        files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, "audit-statements.html", content=audit_statements()))
    for path in sorted(TABLES.glob("*.json")) + sorted(TABLES.glob("*.csv")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def generated() -> dict[str, str]:
    """Every generated page by its place in the site."""
    return {
        "index.md": relinked(text_of("README.md")),
        "contributing.md": relinked(text_of("CONTRIBUTING.md")),
        "changelog.md": relinked(text_of("CHANGELOG.md")),
        "clusters.md": relinked(text_of("slurm/README.md")),
        "results/index.md": "\n".join(results_index()),
        **{f"results/{path.stem}.md": result_page(path) for path in table_pages()},
        "reference/command.md": "\n".join(command_reference()),
        "reference/keys.md": "\n".join(key_reference()),
        "reference/tasks.md": "\n".join(task_reference()),
    }


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# -- pages that also stand in the repository ------------------------------------------------------------------
IN_SITE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "slurm/README.md": "clusters.md",
    "benchmarks/tables": "results/index.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)")


def relinked(text: str) -> str:
    """A page of the repository's root with links that hold in the site; to other files, plain text is left."""
    text = LINK.sub(lambda match: site_path(match[1]), text)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(outside:[^)]*\)", r"\1", text)


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site."""
    path = path.rstrip("/")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/tables/"):
        return path.removeprefix("benchmarks/tables/").join(("results/", ""))
    return IN_SITE.get(path, f"outside:{path}")


# -- what was found -------------------------------------------------------------------------------------------
def table_pages() -> list[Path]:
    """The committed page of every table."""
    return sorted(TABLES.glob("*.md"))


def title(path: Path) -> str:
    """A page's first heading."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()


OLDER = (
    "!!! note\n    These verdicts are of an earlier rule, t-intervals on five pilot seeds. By the "
    "[rule in force](../reading.md#how-a-claim-is-decided), the exact sign test on planned seeds, five seeds decide none "
    "of these claims.\n"
)


def results_index() -> Iterator[str]:
    yield "# What was found\n"
    yield (
        "Each table of the article, measured at the small scale: stand-ins that train in minutes on two CPU cores. "
        "A verdict here is about the stand-in. The pages are what `emabench table NAME` wrote.\n"
    )
    yield "| table | question |\n|---|---|"
    for path in table_pages():
        question = path.read_text(encoding="utf-8").split("\n\n")[1]
        yield f"| [{title(path)}]({path.name}) | {cell(' '.join(question.split()))} |"


def result_page(path: Path) -> str:
    """A committed page, one heading level up, with its numbers to download and the command that made it."""
    text = re.sub(r"^##", "#", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if "decide nothing" not in text:  # of intervals: the page is older than the rule in force
        heading, _, rest = text.partition("\n")
        text = f"{heading}\n\n{OLDER}\n{rest}"
    data = [
        f"[{kind}]({path.stem}.{kind})" for kind in ("json", "csv") if path.with_suffix(f".{kind}").exists()
    ]
    return f"{text}\n\nNumbers by run: {', '.join(data)}. Made by `emabench table {path.stem}`.\n"


def audit_statements() -> str:
    """The page that `emabench audit out=DIR` writes, from the committed results."""
    return audit_page.page(audit.from_plain(json.loads(text_of("benchmarks/audit.json"))))


# -- lists in pages that are written by hand -------------------------------------------------------------------
def sweeps() -> Iterator[str]:
    """`conf/sweep/` by the first line of each file."""
    yield "| sweep | what it is |\n|---|---|"
    for path in sorted((ROOT / "conf" / "sweep").glob("*.yaml")):
        yield f"| `{path.stem}` | {cell(path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# '))} |"


def claims() -> Iterator[str]:
    """The types of claims by the docstrings of their files."""
    yield "| `type` | what is claimed |\n|---|---|"
    for path in sorted((ROOT / "emabench" / "tables" / "claims").glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n")[0]
        yield f"| `{path.stem}` | {cell(sentence(first.partition('`: ')[2] or first))} |"


def kinds() -> Iterator[str]:
    """The kinds of averages by the first lines of their classes."""
    yield "| kind | class | what it is |\n|---|---|---|"
    for kind, rule in sorted(averaging.KINDS.items()):
        name = rule.__name__
        shown = f"[`{name}`][emabench.averaging.{name}]" if name in averaging.__all__ else f"`{name}`"
        first = re.split(r"(?<![Ee]q)\. ", " ".join((rule.__doc__ or "").partition("\n\n")[0].split()))[0]
        yield f"| `{kind}` | {shown} | {cell(first.rstrip('.'))} |"


def profiles() -> Iterator[str]:
    """The reference of every public kind."""
    for _, rule in sorted(averaging.KINDS.items()):
        if rule.__name__ in averaging.__all__:
            yield f"::: emabench.averaging.{rule.__name__}\n"


def verdicts() -> Iterator[str]:
    """The verdicts in the words of a page, on a stand-in and on the published setting."""
    from emabench.report import words

    yield "| | on a stand-in | at `scale=paper` | meaning |\n|---|---|---|---|"
    for kind, meaning in words.MEANINGS.items():
        where = [words.kind(kind, stand_in=stand_in) for stand_in in (True, False)]
        yield f"| {words.MARKS[kind]} | {where[0]} | {where[1]} | {cell(meaning)} |"


def judging() -> Iterator[str]:
    """How claims are decided, as every page says it."""
    from emabench.report import words

    yield from (f"* {text}" for text in words.HOW)


LISTS = {
    "judging": judging,
    "verdicts": verdicts,
    "sweeps": sweeps,
    "claims": claims,
    "kinds": kinds,
    "profiles": profiles,
}


# -- reference ------------------------------------------------------------------------------------------------
def command_reference() -> Iterator[str]:
    yield "# Command line\n"
    yield (
        "`emabench [key=value …]` trains one task with its averages; a first word without `=` is one of the commands "
        "below. Exit status: 0 done; 1 the run failed or diverged; 2 a mistake in the command, explained in a line that "
        "names the key, the value and how to fix it; 75 interrupted and resumable.\n"
    )
    for path in sorted((ROOT / "emabench" / "commands").glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        main = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"), None)
        usage = ast.get_docstring(main) if main else None
        yield f"\n## {path.stem}\n\n{sentence(ast.get_docstring(tree) or '')}\n"
        yield usage or ""


def sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def key_reference() -> Iterator[str]:
    yield "# Keys\n"
    yield (
        "Every key that a run has, with its default. A task sets its own values for some of them "
        "([tasks and their options](tasks.md)); `key=value` on the command line beats both. `emabench --cfg key=value …` "
        "prints what a command would run with. Keys after `results_dir` change nothing in the result.\n"
    )
    defaults = yaml.safe_load(text_of("conf/config.yaml"))
    yield "| key | default | meaning |\n|---|---|---|"
    for key, value, meaning in keys(Config, defaults):
        yield f"| {code(key)} | {value} | {cell(meaning)} |"


def keys(kind: type[Section], defaults: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) in the order of `conf/config.yaml`."""
    for name, value in defaults.items():
        field = kind.model_fields.get(name)
        if field is None:
            continue
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield f"{prefix}{name}", "", f"**{(inner.__doc__ or '').partition(chr(10))[0].rstrip('.')}**"
            yield from keys(inner, value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                "set by the task" if value == "???" else by_scale(value),
                field.description or "",
            )


def by_scale(value: Any) -> str:
    """A default as it is shown: one value, or one for each scale."""
    parts = scales(value)
    return code(parts[0]) if len(set(parts)) == 1 else " / ".join(map(code, parts))


def scales(value: Any) -> list[str]:
    """The value at each of the scales, as YAML."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    match = re.fullmatch(r"\$\{by_scale:(.*)\}", text)
    if not match:
        return [text] * len(SCALES)
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(match[1]):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append(match[1][start:position])
            start = position + 1
    return [*parts, match[1][start:]]


def task_reference() -> Iterator[str]:
    yield "# Tasks and their options\n"
    yield (
        "`emabench task=NAME task.OPTION=value`. Values stand for the scales smoke, small and paper where they "
        "differ.\n"
    )
    for path in sorted((ROOT / "conf" / "task").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comments = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]
        comments = [line for line in comments if not line.startswith("@package")]
        meanings = option_meanings(path.stem)
        yield f"\n## {path.stem}\n\n" + "\n".join(comments).strip() + "\n"
        yield "| option | meaning | smoke | small | paper |\n|---|---|---|---|---|"
        for key, value in flat(yaml.safe_load(text)["task"]):
            if key != "name":
                cells = " | ".join(code(part) for part in scales(value))
                yield f"| {code(key)} | {cell(meanings.get(key, ''))} | {cells} |"


def flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def option_meanings(task: str) -> dict[str, str]:
    """What a task's options mean: the comments beside the fields of its class `Options`."""
    folder = ROOT / "emabench" / "tasks"
    files = (
        [folder / f"{task}.py"] if (folder / f"{task}.py").exists() else sorted((folder / task).glob("*.py"))
    )
    classes: dict[str, list[tuple[str, str, str]]] = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = [
                    (
                        item.target.id,
                        ast.unparse(item.annotation),
                        lines[(item.end_lineno or 1) - 1].partition("  # ")[2],
                    )
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                ]
    return dict(_meanings("Options", classes))


def _meanings(name: str, classes: dict[str, list[tuple[str, str, str]]]) -> Iterator[tuple[str, str]]:
    for field, annotation, comment in classes.get(name, []):
        choices = re.fullmatch(r"Literal\[(.*)\]", annotation)
        yield field, "; ".join(filter(None, (choices[1].replace("'", "") if choices else "", comment)))
        yield from ((f"{field}.{inner}", text) for inner, text in _meanings(annotation, classes))


def code(text: str) -> str:
    return f"`{cell(text)}`" if text else ""


def cell(text: str) -> str:
    return str(text).replace("|", "\\|")
