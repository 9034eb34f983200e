"""write the start of a task, table, average, metric or sweep of your own"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from emabench import plugins
from emabench.errors import DONE, UserError, nearest
from emabench.paths import PACKAGE

FILES = {  # by what is asked for: the templates, and where each is written
    "task": {"task.py": "tasks/{}.py", "task.yaml": "conf/task/{}.yaml"},
    "table": {"table.yaml": "conf/table/{}.yaml"},
    "average": {"average.py": "averages/{}.py"},
    "metric": {"metric.py": "metrics/{}.py"},
    "sweep": {"sweep.yaml": "conf/sweep/{}.yaml"},
}
FOLDER = "emabench_plugins"
USAGE = f"emabench new {'|'.join(FILES)} NAME [--path DIR]; new table NAME [task=TASK]"


def main(words: Sequence[str]) -> int:
    """`emabench new task|table|average|metric|sweep NAME [--path DIR]`: a commented file that runs as it is, to be changed.

    It is written into DIR (./emabench_plugins unless given) and never over anything. `new table NAME task=TASK` is a
    table of that task.
    """
    if len(words) < 2 or words[0] not in FILES:
        raise UserError(f"{USAGE}{nearest(words[0], FILES) if words else ''}")
    kind, name, *rest = words
    task = next((word[5:] for word in rest if word.startswith("task=")), "")
    for word in rest:
        if kind != "table" or not word.startswith("task="):
            raise UserError(f"{word}: {USAGE}")
    folder = Path(plugins.given()[0] if plugins.given() else FOLDER).absolute()
    with plugins.using([folder]):
        _check_name(kind, name)
        changes = {"NAME": name}
        if kind == "table":
            changes |= _of_task(task or _own_task(folder))
        texts = {
            folder / place.format(name): _text(template, changes) for template, place in FILES[kind].items()
        }
        if existing := [str(path) for path in texts if path.exists()]:
            raise UserError(f"{', '.join(existing)}: exists already; choose another name, or another --path")
        for path, text in texts.items():
            _write(path, text)
            print(f"wrote   {path}")
    for note, command in _next(kind, name).items():
        shown = [os.environ.get("EMABENCH_CALLED", "emabench"), *command, "--path", _relative(folder)]
        print(f"{note:<8}{shlex.join(shown)}")
    return DONE


def _check_name(kind: str, name: str) -> None:
    """Raises UserError for a name that cannot be used, or that is taken."""
    if not name.isidentifier() or name.startswith("_"):
        raise UserError(f"{name}: a name has letters, digits and _ alone, and begins with a letter")
    from emabench.averaging.profiles import KINDS

    place = {"average": "averages", "metric": "metrics"}.get(kind, f"conf/{kind}")
    item = plugins.find(place).get(name)
    if item or (kind == "average" and name in KINDS):
        raise UserError(
            f"{name}: there is a{'n' if kind == 'average' else ''} {kind} of that name"
            f"{f' ({item.path})' if item else ''}; choose another"
        )


def _own_task(folder: Path) -> str:
    """The task of the folder where it has one alone, else the quickest of the package."""
    own = [item.name for item in plugins.find("conf/task").values() if item.source.root == folder]
    return own[0] if len(own) == 1 else "quadratic"


def _of_task(task: str) -> dict[str, str]:
    """What a table of this task says of it."""
    from emabench import tasks
    from emabench.compose import configuration

    if configuration([f"task={task}"]).ema.active:
        raise UserError(
            f"task={task}: trains with its average, so that a decay is an arm of its own; start from a copy of "
            f"{plugins.find('conf/table')['td3_target'].path}"
        )
    metrics = tasks.load(task).Task.metrics
    lines = [f"  {metric}: {{label: {metric}, better: {better}}}" for metric, better in metrics.items()]
    main, better = next(iter(metrics.items()))
    gain = "+5%" if better == "higher" else "-5%"
    return {"TASK": task, "METRICS": "\n".join(lines), "METRIC": main, "GAIN": gain}


def _text(template: str, changes: dict[str, str]) -> str:
    text = (PACKAGE / "templates" / template).read_text(encoding="utf-8")
    return re.sub(rf"\b({'|'.join(changes)})\b", lambda match: changes[match[0]], text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:  # never over a file
            file.write(text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); --path names another folder"
        ) from error


def _next(kind: str, name: str) -> dict[str, list[str]]:
    """What to run now."""
    return {
        "task": {
            "try": [f"task={name}", "scale=smoke"],
            "test": ["test", "task", name],
            "measure": [f"task={name}"],
        },
        "table": {"try": ["table", name, "scale=smoke"], "measure": ["table", name]},
        "average": {"try": ["task=quadratic", "scale=smoke", f"+averages.mine={{kind: {name}}}"]},
        "metric": {"try": ["task=quadratic", "scale=smoke", f"metrics=[{name}]"]},
        "sweep": {
            "look": ["-m", f"sweep={name}", "task=quadratic", "scale=smoke", "--dry-run"],
            "try": ["-m", f"sweep={name}", "task=quadratic", "scale=smoke"],
        },
    }[kind]


def _relative(folder: Path) -> str:
    """The folder as it is shortest to type."""
    cwd = Path.cwd()
    return str(folder.relative_to(cwd)) if folder != cwd and folder.is_relative_to(cwd) else str(folder)
